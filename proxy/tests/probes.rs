//! The kubelet's probes, answered by the program as it is started: real sockets, an app for each kind of question.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests")]

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio_rustls::TlsAcceptor;

/// Longest wait for anything; only reached when the test fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that has no event.
const LOOK: Duration = Duration::from_millis(10);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    command.env_clear().stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// A sidecar that knows `probes`, and where it answers.
async fn sidecar(probes: &serde_json::Value) -> (Child, SocketAddr, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready.json");
    let mut command = program();
    for listener in ["inbound", "outbound", "metrics", "admin"] {
        command.arg(format!("--{listener}-listen=127.0.0.1:0"));
    }
    command.env("WEFT_PROBES", probes.to_string()).env("WEFT_POD_IPS", "127.0.0.1").stderr(Stdio::null());
    let child = command.arg("--ready-file").arg(&ready).spawn().unwrap();
    let looking = async {
        loop {
            let bound = std::fs::read(&ready).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if let Some::<serde_json::Value>(bound) = bound {
                return bound["metrics"].as_str().unwrap().parse().unwrap();
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let address = tokio::time::timeout(PATIENCE, looking).await.expect("the sidecar serves");
    (child, address, directory)
}

/// What the kubelet would ask; status and body.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_with(address, path, "").await
}

/// The same with more headers.
async fn get_with(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nuser-agent: kube-probe/1.36\r\naccept: */*\r\nconnection: close\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer").unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// One request on a connection, answered by path.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, own: SocketAddr) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let has = |line: &str| head.contains(&format!("\r\n{line}\r\n"));
    let (status, more) = match path.as_str() {
        "/headers" if has("host: web.example") && has("x-probe: 1") && has("user-agent: kube-probe/1.36") => {
            (200, String::new())
        }
        "/" if has(&format!("host: {own}")) => (204, String::new()),
        "/moved" => (302, format!("location: http://{own}/landed?x=1\r\n")),
        "/landed?x=1" => (200, String::new()),
        "/elsewhere" => (302, "location: http://other.example/\r\n".to_owned()),
        "/circle" => (302, "location: /circle\r\n".to_owned()),
        "/slow" => return std::future::pending().await,
        "/large" => {
            let body = "x".repeat(1 << 20);
            let all = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            // The sidecar stops reading; that is its right.
            stream.write_all(all.as_bytes()).await.ok();
            return;
        }
        _ => (503, String::new()),
    };
    let all = format!("HTTP/1.1 {status} X\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(all.as_bytes()).await.ok();
    stream.shutdown().await.ok();
}

async fn http_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, own));
        }
    });
    own
}

async fn tls_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    let certificate = rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate.cert.into()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answer(stream, own).await;
                }
            });
        }
    });
    own
}

/// `grpc.health.v1.Health`: serving, but for the service `down`.
async fn grpc_app() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        let asked = request.into_body().data().await.unwrap().unwrap();
                        let serving = if asked.ends_with(b"down") { 2 } else { 1 };
                        let head =
                            http::Response::builder().header("content-type", "application/grpc").body(());
                        let mut answer = respond.send_response(head.unwrap(), false).unwrap();
                        answer.send_data(vec![0, 0, 0, 0, 2, 8, serving].into(), false).unwrap();
                        let trailers = http::HeaderMap::from_iter([(
                            "grpc-status".parse().unwrap(),
                            "0".parse().unwrap(),
                        )]);
                        answer.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    own
}

#[tokio::test]
async fn the_sidecar_asks_the_app_as_the_kubelet_would() {
    let (web, tls, grpc) = (http_app().await, tls_app().await, grpc_app().await);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let get_of = |path: &str, app: SocketAddr| json!({ "httpGet": { "path": path, "port": "by-name" }, "port": app.port(), "timeoutSeconds": 20 });
    let cases = [
        ("root/liveness", get_of("", web), 200),
        ("moved/liveness", get_of("/moved", web), 200),
        ("elsewhere/liveness", get_of("/elsewhere", web), 200),
        ("circle/liveness", get_of("/circle", web), 502),
        ("large/liveness", get_of("/large", web), 200),
        ("sick/liveness", get_of("/sick", web), 503),
        ("gone/liveness", get_of("/", free), 502),
        (
            "slow/liveness",
            json!({ "httpGet": { "path": "/slow" }, "port": web.port(), "timeoutSeconds": 1 }),
            504,
        ),
        (
            "headers/readiness",
            json!({ "httpGet": { "path": "/headers", "httpHeaders": [{ "name": "Host", "value": "web.example" }, { "name": "X-Probe", "value": "1" }] }, "port": web.port(), "timeoutSeconds": 20 }),
            200,
        ),
        (
            "tls/readiness",
            json!({ "httpGet": { "path": "/", "scheme": "HTTPS" }, "port": tls.port(), "timeoutSeconds": 20 }),
            200,
        ),
        (
            "not-tls/readiness",
            json!({ "httpGet": { "path": "/", "scheme": "HTTPS" }, "port": web.port(), "timeoutSeconds": 1 }),
            504,
        ),
        ("tcp/startup", json!({ "tcpSocket": { "port": 1 }, "port": web.port(), "timeoutSeconds": 20 }), 200),
        ("no-tcp/startup", json!({ "tcpSocket": {}, "port": free.port(), "timeoutSeconds": 20 }), 502),
        ("grpc/startup", json!({ "grpc": { "port": 1 }, "port": grpc.port(), "timeoutSeconds": 20 }), 200),
        (
            "grpc-down/startup",
            json!({ "grpc": { "port": 1, "service": "down" }, "port": grpc.port(), "timeoutSeconds": 20 }),
            503,
        ),
        ("no-grpc/startup", json!({ "grpc": { "port": 1 }, "port": free.port(), "timeoutSeconds": 20 }), 502),
        // A hook is done when there was an answer, whatever it says.
        ("hook/pre-stop", get_of("/sick", web), 200),
        ("no-hook/post-start", get_of("/", free), 502),
    ];
    let probes: serde_json::Map<_, _> =
        cases.iter().map(|(key, probe, _)| ((*key).to_owned(), probe.clone())).collect();
    let (_child, sidecar, _directory) = sidecar(&probes.into()).await;
    for (key, _, expected) in &cases {
        let (status, words) = get(sidecar, &format!("/probe/{key}")).await;
        assert_eq!(status, *expected, "{key}: {words}");
    }
    assert_eq!(get(sidecar, "/probe/root/readiness").await.0, 404);
    assert_eq!(get(sidecar, "/probe/").await.0, 404);
    // None of it is a request or connection of the mesh.
    let (_, metrics) = get(sidecar, "/metrics").await;
    assert!(!metrics.contains("http_server_request_duration_seconds_count"), "{metrics}");
}

#[tokio::test]
async fn a_hook_with_a_secret_is_asked_for_by_whoever_knows_it_only() {
    let web = http_app().await;
    let header = |name: &str, value: &str| json!({ "name": name, "value": value });
    let headers = [header("X-Probe", "1"), header("Host", "web.example"), header("X-Secret", " s3cret")];
    let question = json!({ "httpGet": { "path": "/headers", "httpHeaders": headers }, "port": web.port(), "timeoutSeconds": 20 });
    let probes = json!({ "app/pre-stop": question, "app/readiness": question });
    let (_child, sidecar, _directory) = sidecar(&probes).await;
    for (headers, expected) in [
        ("", 403),
        ("x-secret: s3cret\r\n", 403),
        ("x-probe: 1\r\nx-secret: s3cre\r\n", 403),
        ("x-probe: 1\r\nx-secret: S3cret\r\n", 403),
        ("x-secret: s3cret\r\nx-probe: 1\r\n", 200),
    ] {
        let (status, words) = get_with(sidecar, "/probe/app/pre-stop", headers).await;
        assert_eq!(status, expected, "{headers:?}: {words}");
    }
    // A probe tells only how the app is.
    assert_eq!(get(sidecar, "/probe/app/readiness").await.0, 200);
}

#[tokio::test]
async fn probes_that_make_no_sense_end_the_start_with_one_clear_line() {
    let output = program().env("WEFT_PROBES", r#"{"app/alive": {}}"#).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("WEFT_PROBES") && said.contains("port"), "{said}");
}

#[tokio::test]
async fn wait_ends_when_the_sidecar_is_ready_and_says_why_it_did_not() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let wait = |address: SocketAddr, timeout: &str| {
        program().args(["wait", "--address", &address.to_string(), "--timeout", timeout]).output()
    };
    let output = wait(free, "300ms").await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("the sidecar at {free} is not ready after 300ms")), "{said}");
    let (_child, sidecar, _directory) = sidecar(&json!({})).await;
    let output = wait(sidecar, "30s").await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
