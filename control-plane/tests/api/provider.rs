//! A small OpenID Connect provider on a real socket. It signs with its own code, so that the control plane's checks are not
//! compared with themselves; and it can do everything wrong that a provider, or somebody in between, can do wrong.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::Timestamp;
use rcgen::{RsaKeySize, SigningKey as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Nothing,
    Nonce,
    Audience,
    Issuer,
    Expired,
    Future,
    /// Signed by a key that is not published, under the name of one that is.
    ForeignKey,
    /// Not signed, and says so.
    Unsigned,
    /// Signed with the published key as a shared secret.
    SharedSecret,
    UnknownKey,
    NoToken,
    NoGroups,
}

/// The provider.
pub(crate) struct Provider {
    pub(crate) address: SocketAddr,
    state: Arc<Inner>,
}

struct Inner {
    issuer: String,
    secret: Option<String>,
    fault: Mutex<Fault>,
    groups: Mutex<Vec<String>>,
    /// Code → what it was asked for with.
    codes: Mutex<HashMap<String, HashMap<String, String>>>,
    key: EcdsaKeyPair,
    other: EcdsaKeyPair,
    rsa: Option<rcgen::KeyPair>,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Provider {
    /// With an EC key, or an RSA key, and a secret that the client must know, if any.
    pub(crate) async fn start(rsa: bool, secret: Option<&str>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let key = || EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let rsa_key =
            || rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        let state = Arc::new(Inner {
            issuer: format!("http://{address}"),
            secret: secret.map(str::to_owned),
            fault: Mutex::new(Fault::Nothing),
            groups: Mutex::new(vec!["dev".to_owned()]),
            codes: Mutex::default(),
            key: key(),
            other: key(),
            rsa: rsa.then(rsa_key),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(document))
            .route("/keys", get(keys))
            .route("/authorize", get(authorize))
            .route("/token", post(token))
            .with_state(Arc::clone(&state));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, state }
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.state.issuer
    }

    pub(crate) fn fail(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = fault;
    }

    pub(crate) fn put_into(&self, groups: &[&str]) {
        *self.state.groups.lock().unwrap() = groups.iter().map(|&group| group.to_owned()).collect();
    }
}

async fn document(State(inner): State<Arc<Inner>>) -> Json<Value> {
    let issuer = &inner.issuer;
    Json(json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{issuer}/authorize"),
        "token_endpoint": format!("{issuer}/token"),
        "jwks_uri": format!("{issuer}/keys"),
        "token_endpoint_auth_methods_supported": ["client_secret_basic"],
    }))
}

async fn keys(State(inner): State<Arc<Inner>>) -> Json<Value> {
    Json(json!({ "keys": [inner.jwk()] }))
}

/// Asks nobody for a password: whoever comes is alice.
async fn authorize(
    State(inner): State<Arc<Inner>>,
    Query(asked): Query<HashMap<String, String>>,
) -> Response {
    for (name, value) in [("response_type", "code"), ("client_id", "weft"), ("code_challenge_method", "S256")]
    {
        if asked.get(name).map(String::as_str) != Some(value) {
            return (StatusCode::BAD_REQUEST, format!("{name} is not {value}: {asked:?}")).into_response();
        }
    }
    if !asked["scope"].split(' ').any(|scope| scope == "openid") {
        return (StatusCode::BAD_REQUEST, "no openid").into_response();
    }
    let mut codes = inner.codes.lock().unwrap();
    let code = format!("code-{}", codes.len());
    let back = format!("{}?code={code}&state={}", asked["redirect_uri"], asked["state"]);
    codes.insert(code, asked);
    (StatusCode::FOUND, [("location", back)]).into_response()
}

async fn token(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: String) -> Response {
    let refuse = |why: &str| (StatusCode::BAD_REQUEST, Json(json!({ "error": why }))).into_response();
    let fields: HashMap<&str, String> = body
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name, value.replace("%3A", ":").replace("%2F", "/")))
        .collect();
    let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
    if let Some(secret) = &inner.secret {
        let expected = format!("Basic {}", STANDARD.encode(format!("weft:{secret}")));
        if headers.get("authorization").and_then(|value| value.to_str().ok()) != Some(&expected) {
            return refuse("invalid_client");
        }
    } else if field("client_id") != "weft" {
        return refuse("invalid_client");
    }
    // A code is worth something once, to whoever knows what its challenge was made of.
    let Some(asked) = inner.codes.lock().unwrap().remove(&field("code")) else {
        return refuse("invalid_grant");
    };
    let challenge = b64(Sha256::digest(field("code_verifier")));
    if challenge != asked["code_challenge"] || field("redirect_uri") != asked["redirect_uri"] {
        return refuse("invalid_grant");
    }
    let fault = *inner.fault.lock().unwrap();
    if fault == Fault::NoToken {
        return Json(json!({ "access_token": "x", "token_type": "Bearer" })).into_response();
    }
    let token = inner.id_token(&asked["nonce"], fault);
    Json(json!({ "access_token": "x", "token_type": "Bearer", "id_token": token })).into_response()
}

impl Inner {
    fn jwk(&self) -> Value {
        if let Some(rsa) = &self.rsa {
            use x509_parser::prelude::FromDer as _;
            let info = rcgen::PublicKeyData::subject_public_key_info(rsa);
            let (_, info) = x509_parser::x509::SubjectPublicKeyInfo::from_der(&info).unwrap();
            let x509_parser::public_key::PublicKey::RSA(key) = info.parsed().unwrap() else {
                panic!("not RSA")
            };
            let modulus = key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus);
            return json!({"kty": "RSA", "use": "sig", "kid": "one", "n": b64(modulus), "e": b64(key.exponent)});
        }
        let point = self.key.public_key().as_ref();
        let (x, y) = (b64(&point[1..33]), b64(&point[33..65]));
        json!({"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "one", "x": x, "y": y})
    }

    fn id_token(&self, nonce: &str, fault: Fault) -> String {
        let now = Timestamp::now().as_second();
        let (issued, end) = match fault {
            Fault::Expired => (now - 7_200, now - 3_600),
            Fault::Future => (now + 3_600, now + 7_200),
            _ => (now, now + 300),
        };
        let claims = json!({
            "iss": if fault == Fault::Issuer { "http://evil.example" } else { &self.issuer },
            "aud": if fault == Fault::Audience { "another" } else { "weft" },
            "nonce": if fault == Fault::Nonce { "another" } else { nonce },
            "iat": issued,
            "exp": end,
            "sub": "1",
            "preferred_username": "alice",
            "groups": if fault == Fault::NoGroups { json!([]) } else { json!(*self.groups.lock().unwrap()) },
        });
        let algorithm = match (fault, &self.rsa) {
            (Fault::Unsigned, _) => "none",
            (Fault::SharedSecret, _) => "HS256",
            (_, Some(_)) => "RS256",
            (_, None) => "ES256",
        };
        let kid = if fault == Fault::UnknownKey { "two" } else { "one" };
        let header = json!({"typ": "JWT", "alg": algorithm, "kid": kid});
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = match (fault, &self.rsa) {
            (Fault::Unsigned, _) => Vec::new(),
            (Fault::SharedSecret, _) => {
                let key =
                    aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, self.key.public_key().as_ref());
                aws_lc_rs::hmac::sign(&key, message.as_bytes()).as_ref().to_vec()
            }
            (Fault::ForeignKey, _) => ec(&self.other, &message),
            (_, Some(rsa)) => rsa.sign(message.as_bytes()).unwrap(),
            (_, None) => ec(&self.key, &message),
        };
        format!("{message}.{}", b64(signature))
    }
}

fn ec(key: &EcdsaKeyPair, message: &str) -> Vec<u8> {
    key.sign(&SystemRandom::new(), message.as_bytes()).unwrap().as_ref().to_vec()
}
