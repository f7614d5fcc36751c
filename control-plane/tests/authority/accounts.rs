//! Service account tokens, asked of a small API server that speaks `TokenReview` over real HTTPS.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::Code;

use super::client::{Config, Request, Run};

/// What the server says of each token; everything about the request is checked.
fn review(request: &str) -> (u16, Value) {
    let (head, body) = request.split_once("\r\n\r\n").unwrap_or_default();
    if !head.starts_with("POST /apis/authentication.k8s.io/v1/tokenreviews HTTP/1.1") {
        return (404, json!({}));
    }
    if !head.to_lowercase().contains("authorization: bearer own-token") {
        return (403, json!({"kind": "Status", "code": 403}));
    }
    let asked: Value = serde_json::from_str(body).unwrap();
    assert_eq!(asked["kind"], "TokenReview");
    assert_eq!(asked["spec"]["audiences"], json!(["weft"]));
    let user = |name: &str| json!({"username": name});
    let status = match asked["spec"]["token"].as_str().unwrap() {
        "good.token.x" => {
            json!({"authenticated": true, "audiences": ["weft"], "user": user("system:serviceaccount:shop:orders")})
        }
        "api.token.x" => json!({"authenticated": true, "audiences": ["https://kubernetes.default.svc"],
                                "user": user("system:serviceaccount:shop:orders")}),
        "old.server.x" => json!({"authenticated": true, "user": user("system:serviceaccount:shop:orders")}),
        "human.token.x" => json!({"authenticated": true, "audiences": ["weft"], "user": user("ada")}),
        "own.plane.x" => json!({"authenticated": true, "audiences": ["weft"],
                                "user": user("system:serviceaccount:weft-system:weft-control-plane")}),
        "broken.server.x" => return (500, json!({"kind": "Status", "code": 500})),
        _ => json!({"authenticated": false, "error": "token has been invalidated"}),
    };
    (
        201,
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                 "spec": {"token": "x"}, "status": status}),
    )
}

async fn api_server(credentials: &Path) -> SocketAddr {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(credentials.join("ca.crt"), certificate.pem()).unwrap();
    std::fs::write(credentials.join("token"), "own-token\n").unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let pkcs8 = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], pkcs8)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = String::new();
                // The body is JSON, and whole when it parses.
                let whole = |request: &str| {
                    let body = request.split_once("\r\n\r\n").map(|(_, body)| body);
                    body.is_some_and(|body| serde_json::from_str::<Value>(body).is_ok())
                };
                while !whole(&request) {
                    let mut buffer = [0; 4096];
                    let Ok(read @ 1..) = stream.read(&mut buffer).await else { return };
                    request.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
                }
                let (status, body) = review(&request);
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
                drop(stream.write_all(answer.as_bytes()).await);
                drop(stream.shutdown().await);
            });
        }
    });
    address
}

async fn start(credentials: &Path, port: u16) -> Run {
    let url = format!("https://localhost:{port}");
    let directory = credentials.display().to_string();
    let arguments = ["--token-review", &url, "--token-review-credentials", &directory];
    Run::start(Config { arguments: arguments.map(str::to_owned).to_vec(), ..Config::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_token_gives_that_accounts_identity() {
    let credentials = tempfile::tempdir().unwrap();
    let server = api_server(credentials.path()).await;
    let run = start(credentials.path(), server.port()).await;
    for _ in 0..2 {
        let own = run.ask(None, Request::new().bearer("good.token.x")).await.unwrap();
        assert_eq!(own.id(), "spiffe://cluster.local/ns/shop/sa/orders");
    }
    let other = Request::new().wanting("spiffe://cluster.local/ns/shop/sa/web").bearer("good.token.x");
    assert_eq!(run.ask(None, other).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_account_tokens_that_prove_nothing_are_refused_in_words() {
    let credentials = tempfile::tempdir().unwrap();
    let server = api_server(credentials.path()).await;
    let run = start(credentials.path(), server.port()).await;
    let cases = [
        ("bad.token.x", "account_rejected", Code::Unauthenticated, "token has been invalidated"),
        ("api.token.x", "account_audience", Code::Unauthenticated, "for the audience https://kubernetes"),
        ("old.server.x", "account_audience", Code::Unauthenticated, "nobody in particular"),
        ("human.token.x", "account_other", Code::Unauthenticated, "\"ada\""),
        ("own.plane.x", "own_identity", Code::PermissionDenied, "given to nobody"),
        ("broken.server.x", "review_unavailable", Code::Unavailable, "try again"),
    ];
    for (token, word, code, text) in cases {
        let refusal = run.ask(None, Request::new().bearer(token)).await.unwrap_err();
        assert_eq!(refusal.code(), code, "{word}: {}", refusal.message());
        assert!(refusal.message().contains(text), "{word}: {}", refusal.message());
        assert!(run.refused(word).await >= 1.0, "{word}");
    }
    // Whoever else pretends to be the API server is not believed.
    let key = rcgen::KeyPair::generate().unwrap();
    let other =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(credentials.path().join("ca.crt"), other.pem()).unwrap();
    let refusal = run.ask(None, Request::new().bearer("good.token.x")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
}
