//! Tokens of the cluster: an API server by TLS that answers `TokenReview`, and what its answers are worth here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::{client, start, stop};

const OWN: &str = "the control plane's own";

struct ApiServer {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

/// What a token with three parts means to the server: its user, groups, and audience.
fn known() -> HashMap<&'static str, Value> {
    let user = |name: &str, groups: &[&str], audience: &str| json!({"authenticated": true, "audiences": [audience], "user": {"username": name, "groups": groups}});
    let monitoring = "system:serviceaccounts:monitoring";
    HashMap::from([
        ("a.viewer.x", user("system:serviceaccount:monitoring:prometheus", &[monitoring], "weft-api")),
        ("an.operator.x", user("alice", &["system:authenticated", "sre"], "weft-api")),
        ("no.role.x", user("mallory", &["system:authenticated"], "weft-api")),
        ("for.others.x", user("alice", &["sre"], "https://kubernetes.default.svc")),
    ])
}

impl ApiServer {
    /// Its certificate, and the token that it wants to see, are in `credentials`.
    async fn start(credentials: &Path) -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        std::fs::write(credentials.join("ca.crt"), made.cert.pem()).unwrap();
        std::fs::write(credentials.join("token"), OWN).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self { address: listener.local_addr().unwrap(), asked: Arc::default() };
        let asked = Arc::clone(&server.asked);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                asked.fetch_add(1, Ordering::Relaxed);
                let request = request(&mut stream).await;
                let answer = answer(&request);
                let head = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\n";
                let text = format!("{head}Content-Length: {}\r\n\r\n{answer}", answer.len());
                stream.write_all(text.as_bytes()).await.unwrap();
                stream.shutdown().await.ok();
            }
        });
        server
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    let mut bytes = [0; 4096];
    loop {
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && serde_json::from_str::<Value>(body).is_ok()
        {
            return text;
        }
        let read = stream.read(&mut bytes).await.unwrap();
        assert_ne!(read, 0, "it broke off: {text}");
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
}

fn answer(request: &str) -> String {
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews "), "{head}");
    assert!(head.contains(&format!("Bearer {OWN}")), "{head}");
    let asked: Value = serde_json::from_str(body).unwrap();
    assert_eq!(asked["spec"]["audiences"], json!(["weft-api"]));
    let token = asked["spec"]["token"].as_str().unwrap();
    let status = known().remove(token).unwrap_or_else(|| json!({"authenticated": false, "error": "invalid"}));
    json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {}, "status": status})
        .to_string()
}

fn flags(server: SocketAddr, credentials: &Path) -> Vec<String> {
    vec![
        format!("--api-token-review=https://{server}"),
        format!("--token-review-credentials={}", credentials.display()),
        "--api-token-review-viewer-group=system:serviceaccounts:monitoring".to_owned(),
        "--api-token-review-operator-group=sre".to_owned(),
    ]
}

#[tokio::test]
async fn the_cluster_says_whose_a_token_is_and_is_asked_once() {
    let directory = tempfile::tempdir().unwrap();
    let server = ApiServer::start(directory.path()).await;
    let flags = flags(server.address, directory.path());
    let app = start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    let session =
        async |token: &str| client(&app).bearing(token).get("/api/session").await.json()["who"].clone();

    let viewer = session("a.viewer.x").await;
    assert_eq!(viewer["name"], "system:serviceaccount:monitoring:prometheus");
    assert_eq!((&viewer["role"], &viewer["how"]), (&"viewer".into(), &"token_review".into()));
    assert_eq!(session("an.operator.x").await["role"], "operator");
    assert_eq!(server.asked(), 2);
    for _ in 0..5 {
        assert_eq!(client(&app).bearing("a.viewer.x").get("/api/graph").await.status, 200);
    }
    assert_eq!(server.asked(), 2, "it is known for a while");
    for token in ["no.role.x", "for.others.x", "made.up.x"] {
        assert_eq!(client(&app).bearing(token).get("/api/graph").await.status, 401, "{token}");
    }
    assert_eq!(server.asked(), 5);
    for token in ["weft_api_00", "a.b", "x"] {
        assert_eq!(client(&app).bearing(token).get("/api/graph").await.status, 401, "{token}");
    }
    assert_eq!(server.asked(), 5, "what is no token of a cluster stays here");
    let signed_in = client(&app).bearing("a.viewer.x").send("POST", "/api/session", "").await;
    assert_eq!(signed_in.status, 200, "in the dashboard too");
    stop(app).await;
}

#[tokio::test]
async fn a_cluster_that_cannot_be_asked_is_no_refusal() {
    let directory = tempfile::tempdir().unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = flags(gone, directory.path());
    let app = start(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await.unwrap();
    let answer = client(&app).bearing("a.viewer.x").get("/api/graph").await;
    assert_eq!(answer.status, 503);
    assert!(answer.detail().contains("API server cannot be asked"), "{}", answer.detail());
    stop(app).await;
}
