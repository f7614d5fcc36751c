//! The program as it is started: flags in, sockets and signals out. No control plane, no privileges.

#![expect(clippy::unwrap_used, reason = "a test's helpers are tests")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// Longest wait for anything; only reached when the test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at something that has no event.
const LOOK: Duration = Duration::from_millis(10);

/// A running sidecar and where it listens.
struct Sidecar {
    child: Child,
    bound: serde_json::Value,
    _directory: tempfile::TempDir,
}

impl Sidecar {
    /// Starts one on free ports of loopback and waits until it serves.
    async fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ready: PathBuf = directory.path().join("ready.json");
        let mut command = program();
        for listener in ["inbound", "outbound", "metrics", "admin"] {
            command.arg(format!("--{listener}-listen=127.0.0.1:0"));
        }
        let child = command.arg("--ready-file").arg(&ready).args(flags).spawn().unwrap();
        let bound =
            eventually("the ready file", async || serde_json::from_slice(&std::fs::read(&ready).ok()?).ok());
        Self { bound: bound.await, child, _directory: directory }
    }

    fn address(&self, listener: &str) -> SocketAddr {
        self.bound[listener].as_str().unwrap().parse().unwrap()
    }

    fn forward(&self) -> SocketAddr {
        self.bound["forwards"][0].as_str().unwrap().parse().unwrap()
    }

    async fn metrics(&self) -> String {
        get(self.address("metrics"), "/metrics", "").await
    }

    /// The metrics, once they contain `text`.
    async fn metrics_with(&self, text: &str) -> String {
        eventually(text, async || Some(self.metrics().await).filter(|metrics| metrics.contains(text))).await
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("runs")).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn ended(mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("ends in time").unwrap()
    }
}

/// The program without what the environment of the tests might say.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    command.env_clear().stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("no {what} in time"))
}

/// One request on a connection of its own; the whole response as text.
async fn get(address: SocketAddr, target: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    response
}

/// An app that answers every request with the head it received, after `released` lets it.
async fn echo_app(released: tokio::sync::watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut released = released.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut head).await {
                    if !head.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    released.wait_for(|released| *released).await.unwrap();
                    let length = head.len();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
                    stream.write_all(&[answer, std::mem::take(&mut head)].concat()).await.unwrap();
                }
            });
        }
    });
    address
}

async fn app() -> SocketAddr {
    let (release, released) = tokio::sync::watch::channel(true);
    let address = echo_app(released).await;
    // Held for as long as the app listens.
    tokio::spawn(async move { release.closed().await });
    address
}

/// A server that says hello and then returns what it hears.
async fn greeter() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 hello\r\n").await.unwrap();
                let (mut reading, mut writing) = stream.split();
                // Ends with the client's connection, however that ends.
                drop(tokio::io::copy(&mut reading, &mut writing).await);
            });
        }
    });
    address
}

#[tokio::test]
async fn explicit_inbound_connections_reach_the_app_and_are_measured() {
    let app = app().await;
    let sidecar = Sidecar::start(&[&format!("--inbound-forward={app}")]).await;
    let response = get(sidecar.address("inbound"), "/orders/42", "").await;
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.contains("GET /orders/42 HTTP/1.1\r\n"), "{response}");
    assert!(response.contains("\ntraceparent: 00-"), "no trace context in {response}");
    let metrics = sidecar.metrics_with("http_server_request_duration_seconds_count").await;
    assert!(metrics.contains("http_route=\"/orders/{id}\""), "{metrics}");
}

#[tokio::test]
async fn the_outbound_listener_is_a_forward_proxy() {
    let app = app().await;
    let sidecar = Sidecar::start(&[]).await;
    let proxy = sidecar.address("outbound");
    let response = get(proxy, &format!("http://{app}/direct"), "").await;
    assert!(response.contains("GET /direct HTTP/1.1\r\n"), "{response}");

    let greeter = greeter().await;
    let mut tunnel = TcpStream::connect(proxy).await.unwrap();
    let connect = format!("CONNECT {greeter} HTTP/1.1\r\nhost: {greeter}\r\n\r\n");
    tunnel.write_all(connect.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"220 hello\r\n") {
        assert_ne!(tunnel.read_buf(&mut heard).await.unwrap(), 0, "{}", heard.escape_ascii());
    }
    assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", heard.escape_ascii());
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_at_once() {
    let greeter = greeter().await;
    let sidecar = Sidecar::start(&[&format!("--outbound-forward=127.0.0.1:0={greeter}")]).await;
    let mut client = TcpStream::connect(sidecar.forward()).await.unwrap();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    client.write_all(b"and back").await.unwrap();
    client.shutdown().await.unwrap();
    let mut echo = String::new();
    client.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "and back");
    let metrics = sidecar.metrics_with("weft_client_connections_total").await;
    assert!(metrics.contains("weft_detect_duration_seconds_count{result=\"server_first\"} 1\n"), "{metrics}");
    assert!(metrics.contains("weft_limit_total{limit=\"detect_timeout\"} 0\n"), "{metrics}");
}

#[tokio::test]
async fn a_tls_connection_passes_through_and_is_called_by_its_sni() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = listener.local_addr().unwrap();
    let sidecar = Sidecar::start(&[&format!("--outbound-forward=127.0.0.1:0={server}")]).await;
    let mut client = TcpStream::connect(sidecar.forward()).await.unwrap();
    let hello = client_hello("api.example.com");
    // In two pieces, as a large hello arrives.
    client.write_all(&hello[..20]).await.unwrap();
    client.write_all(&hello[20..]).await.unwrap();
    let (mut passed, _) = listener.accept().await.unwrap();
    let mut heard = vec![0; hello.len()];
    passed.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, hello, "not a byte is changed");
    let metrics = sidecar.metrics_with("server_address=\"api.example.com\"").await;
    assert!(metrics.contains("network_protocol_name=\"tls\""), "{metrics}");
}

/// A minimal TLS 1.2 ClientHello.
fn client_hello(name: &str) -> Vec<u8> {
    fn sized(width: usize, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&length[4 - width..], content].concat()
    }
    let entry = [&[0][..], &sized(2, name.as_bytes())].concat();
    let server_name = [&[0, 0][..], &sized(2, &sized(2, &entry))].concat();
    let signature_algorithms = [&[0, 13][..], &sized(2, &sized(2, &[4, 3]))].concat();
    let extensions = [server_name, signature_algorithms].concat();
    let ciphers = sized(2, &[0xc0, 0x2b]);
    let body =
        [&[3, 3][..], &[7; 32], &sized(1, &[]), &ciphers, &sized(1, &[0]), &sized(2, &extensions)].concat();
    let handshake = [&[1][..], &sized(3, &body)].concat();
    [&[0x16, 3, 1][..], &sized(2, &handshake)].concat()
}

#[tokio::test]
async fn a_connection_to_the_sidecar_itself_is_refused_and_counted() {
    let sidecar = Sidecar::start(&[]).await;
    // On a busy machine the reset is there before the client has seen that it is connected.
    let error = match TcpStream::connect(sidecar.address("inbound")).await {
        Ok(mut client) => client.read(&mut [0; 1]).await.expect_err("not an orderly end"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    sidecar.metrics_with("error_type=\"request_loop\"").await;
}

#[tokio::test]
async fn a_drain_lets_the_request_in_flight_finish() {
    let (release, released) = tokio::sync::watch::channel(false);
    let app = echo_app(released).await;
    let sidecar = Sidecar::start(&[&format!("--inbound-forward={app}")]).await;
    let inbound = sidecar.address("inbound");
    let mut client = TcpStream::connect(inbound).await.unwrap();
    client.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    // A second connection shows that the first one's request has been seen: it holds a permit.
    let mut kept = TcpStream::connect(inbound).await.unwrap();
    kept.write_all(b"GET /kept HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    eventually("both requests", async || {
        sidecar
            .metrics()
            .await
            .contains("weft_detect_duration_seconds_count{result=\"http1\"} 2\n")
            .then_some(())
    })
    .await;

    sidecar.signal(Signal::SIGTERM);
    eventually("closed listener", async || TcpStream::connect(inbound).await.is_err().then_some(())).await;
    assert!(get(sidecar.address("metrics"), "/ready", "").await.starts_with("HTTP/1.1 503"));
    release.send(true).unwrap();
    for stream in [&mut client, &mut kept] {
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(response.to_lowercase().contains("connection: close"), "{response}");
    }
    assert!(sidecar.ended().await.success());
}

#[tokio::test]
async fn opaque_connections_get_until_the_deadline() {
    let greeter = greeter().await;
    let forward = format!("--outbound-forward=127.0.0.1:0={greeter}");
    let sidecar = Sidecar::start(&[&forward, "--drain-deadline=300ms"]).await;
    let mut client = TcpStream::connect(sidecar.forward()).await.unwrap();
    client.read_exact(&mut [0; 11]).await.unwrap();
    sidecar.signal(Signal::SIGTERM);
    client.write_all(b"still here").await.unwrap();
    client.read_exact(&mut [0; 10]).await.unwrap();
    let error = client.read(&mut [0; 1]).await.expect_err("not an orderly end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(sidecar.ended().await.success());
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let greeter = greeter().await;
    let forward = format!("--outbound-forward=127.0.0.1:0={greeter}");
    let sidecar = Sidecar::start(&[&forward, "--drain-deadline=1h"]).await;
    let mut client = TcpStream::connect(sidecar.forward()).await.unwrap();
    client.read_exact(&mut [0; 11]).await.unwrap();
    sidecar.signal(Signal::SIGTERM);
    eventually("draining", async || {
        get(sidecar.address("metrics"), "/ready", "").await.starts_with("HTTP/1.1 503").then_some(())
    })
    .await;
    sidecar.signal(Signal::SIGINT);
    assert!(sidecar.ended().await.success());
}

#[tokio::test]
async fn a_client_that_connected_ahead_of_time_does_not_hold_up_a_drain() {
    let app = app().await;
    let sidecar = Sidecar::start(&[&format!("--inbound-forward={app}"), "--drain-deadline=1h"]).await;
    let mut silent = TcpStream::connect(sidecar.address("inbound")).await.unwrap();
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(sidecar.ended().await.success());
}

#[tokio::test]
async fn the_admin_face_is_for_this_machine() {
    let sidecar = Sidecar::start(&["--log=warn"]).await;
    let admin = sidecar.address("admin");
    assert!(get(admin, "/", "").await.contains("POST /drain"));
    let circuits = get(admin, "/circuits", "").await;
    assert!(circuits.contains("application/json") && circuits.contains("\"left_out\": 0"), "{circuits}");
    let dump = get(admin, "/config", "").await;
    assert!(dump.contains("\"workload\": \"default/standalone\""), "{dump}");
    assert!(get(admin, "/ready", "").await.starts_with("HTTP/1.1 200"));
    assert!(get(admin, "/drain", "").await.starts_with("HTTP/1.1 405"));
    assert!(get(sidecar.address("metrics"), "/config", "").await.starts_with("HTTP/1.1 404"));
    let mut stream = TcpStream::connect(admin).await.unwrap();
    stream.write_all(b"POST /drain HTTP/1.1\r\nhost: attacker.example\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 403");
}

#[tokio::test]
async fn a_wrong_setting_ends_the_start_with_its_name_and_the_fix() {
    let mut command = program();
    let output = command.env("WEFT_DRAIN_DEADLINE", "soon").stderr(Stdio::piped()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.starts_with("weft-proxy: WEFT_DRAIN_DEADLINE=\"soon\" is not a duration; write"), "{said}");
}
