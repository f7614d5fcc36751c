use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::balance::breaker::health::Settings;

/// A server that does this with each connection.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn ask_at(address: SocketAddr, probe: Probe) -> Checked {
    let second = Duration::from_secs(1);
    let settings = Settings {
        probe,
        timeout: second / 2,
        interval: second,
        unhealthy_interval: second,
        healthy_edge_interval: second,
        unhealthy_edge_interval: second,
        no_traffic_interval: second,
        no_traffic_healthy_interval: second,
        initial_jitter: Duration::ZERO,
        interval_jitter: Duration::ZERO,
        interval_jitter_percent: 0,
        unhealthy_threshold: 1,
        healthy_threshold: 1,
    };
    let now = std::time::Instant::now();
    let job = Job::new(address, "orders.shop:8080", Arc::new(settings), now);
    ask(&job, None, &Mesh::new(crate::identity::Slot::default())).await
}

fn web(path: &str, http2: bool) -> Probe {
    Probe::Http {
        method: Method::GET,
        host: None,
        path: path.into(),
        http2,
        expected: vec![200..201, 204..205],
        retriable: vec![Range { start: 503, end: 504 }],
    }
}

/// Answers `/<status>` with it, in HTTP/1; everything else in a way of its own.
async fn app(mut stream: TcpStream) {
    let mut head = BytesMut::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = String::from_utf8(head.to_vec()).unwrap();
    assert!(head.contains("host: orders.shop:8080\r\n"), "{head}");
    assert!(head.contains("user-agent: weft-health-check/"), "{head}");
    let what = head.split(' ').nth(1).unwrap().trim_start_matches('/');
    let answer = match what {
        "nothing" => return std::future::pending().await,
        "nonsense" => "hello\r\n\r\n".to_owned(),
        "stalls" => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf".to_owned(),
        "large" => {
            format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(ANSWER_MAX + 1))
        }
        status => format!("HTTP/1.1 {status} Whatever\r\ncontent-length: 2\r\n\r\nok"),
    };
    drop(stream.write_all(answer.as_bytes()).await);
    std::future::pending().await
}

#[tokio::test]
async fn a_status_is_an_answer_and_silence_is_none() {
    let address = server(app).await;
    let table = [
        ("/200", Checked::Passed),
        ("/204", Checked::Passed),
        ("/201", Checked::FailedForGood),
        ("/500", Checked::FailedForGood),
        ("/503", Checked::Failed),
        ("/nothing", Checked::Failed),
        ("/nonsense", Checked::Failed),
        ("/stalls", Checked::Failed),
        ("/large", Checked::Passed),
    ];
    for (path, checked) in table {
        assert_eq!(ask_at(address, web(path, false)).await, checked, "{path}");
    }
}

#[tokio::test]
async fn a_closed_port_fails_whatever_is_asked() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let probes = [
        web("/200", false),
        web("/200", true),
        Probe::Grpc { service: "".into(), authority: None },
        Probe::Tcp { send: vec![], receive: vec![] },
    ];
    for probe in probes {
        assert_eq!(ask_at(address, probe).await, Checked::Failed);
    }
}

/// `grpc.health.v1.Health` for three services; also answers plain requests, by HTTP/2.
async fn grpc_app(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            assert_eq!(request.uri().authority().map(|a| a.as_str()), Some("orders.shop:8080"));
            if request.method() == Method::GET {
                let response = http::Response::builder().status(204).body(()).unwrap();
                respond.send_response(response, true).unwrap();
                return;
            }
            assert_eq!(
                (request.uri().path(), &request.headers()["te"]),
                (GRPC_PATH, &"trailers".parse().unwrap())
            );
            let mut body = request.into_body();
            let message = body.data().await.unwrap().unwrap();
            let service = HealthCheckRequest::decode(&message[5..]).unwrap().service;
            let (status, code) = match &*service {
                "" => (Some(SERVING), "0"),
                "orders" => (Some(2), "0"),
                "empty" => (None, "0"),
                _ => (None, "5"),
            };
            let response = http::Response::builder().header("content-type", "application/grpc");
            let mut answer = respond.send_response(response.body(()).unwrap(), false).unwrap();
            if let Some(status) = status {
                let message = HealthCheckResponse { status }.encode_to_vec();
                let mut frame = vec![0, 0, 0, 0, message.len() as u8];
                frame.extend(message);
                answer.send_data(frame.into(), false).unwrap();
            }
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
            answer.send_trailers(trailers).unwrap();
        });
    }
}

#[tokio::test]
async fn a_grpc_service_says_whether_it_serves() {
    let address = server(grpc_app).await;
    let table = [
        ("", Checked::Passed),
        ("orders", Checked::FailedForGood),
        ("unknown", Checked::FailedForGood),
        ("empty", Checked::Failed),
    ];
    for (service, checked) in table {
        let probe = Probe::Grpc { service: service.into(), authority: None };
        assert_eq!(ask_at(address, probe).await, checked, "{service:?}");
    }
    assert_eq!(ask_at(address, web("/", true)).await, Checked::Passed, "plain HTTP/2");
}

#[tokio::test]
async fn bytes_must_come_in_their_order() {
    let address = server(|mut stream: TcpStream| async move {
        let mut asked = [0; 4];
        if stream.read_exact(&mut asked).await.is_ok() {
            // In two pieces, which are one answer all the same.
            drop(stream.write_all(b"+PO").await);
            tokio::task::yield_now().await;
            drop(stream.write_all(b"NG ok\r\n").await);
        }
    })
    .await;
    let probe = |receive: &[&str]| Probe::Tcp {
        send: b"PING".to_vec(),
        receive: receive.iter().map(|piece| piece.as_bytes().to_vec()).collect(),
    };
    assert_eq!(ask_at(address, probe(&["PONG", "ok"])).await, Checked::Passed);
    assert_eq!(ask_at(address, probe(&["ok", "PONG"])).await, Checked::Failed, "closed before it came");
    assert_eq!(ask_at(address, Probe::Tcp { send: vec![], receive: vec![] }).await, Checked::Passed);
}
