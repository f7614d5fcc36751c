//! Forwarding between real sockets on loopback: no sleeps, every wait is for an event.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::balance::breaker::outlier;
use crate::record::{Direction, Tls};
use crate::worker::tests::worker;
use crate::xds;

/// A connected pair: (their end, our end).
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), accepted.unwrap().0)
}

fn record(worker: &Worker) -> ConnectionRecord {
    let spec = EdgeSpec {
        direction: Direction::Outbound,
        service: None,
        server_address: "db.example".into(),
        server_port: 5432,
        tls: Tls::None,
        client: None,
        caller: None,
    };
    worker.shard.edge(&spec).connection(record::Protocol::Tcp)
}

/// Both far ends and the forwarding between them.
async fn forwarded(prefix: &'static [u8]) -> (TcpStream, TcpStream, impl Future<Output = End>) {
    let worker = worker(&[]);
    let (client, near_client) = pair().await;
    let (server, near_server) = pair().await;
    let record = record(&worker);
    let forwarding = async move {
        let client = Prefixed::new(near_client.into(), Bytes::from_static(prefix));
        forward(&worker, client, Prefixed::new(near_server.into(), Bytes::new()), record).await
    };
    (client, server, forwarding)
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let (mut client, mut server, forwarding) = forwarded(b"hello, ").await;
    let story = async {
        client.write_all(b"server").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = String::new();
        server.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "hello, server");
        // The client's direction is closed, the server's is not.
        server.write_all(b"hello, client").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello, client");
    };
    let (end, ()) = tokio::join!(forwarding, story);
    assert!(matches!(end, End::Closed), "{end:?}");
}

#[tokio::test]
async fn megabytes_pass_whole_at_the_receivers_pace() {
    let (mut client, mut server, forwarding) = forwarded(b"").await;
    let sent: Vec<u8> = (0..8_000_000u32).map(|i| (i % 251) as u8).collect();
    let story = async {
        let sending = async {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let receiving = async {
            let mut received = Vec::new();
            server.read_to_end(&mut received).await.unwrap();
            received
        };
        let ((), received) = tokio::join!(sending, receiving);
        assert!(received == sent, "bytes differ");
        drop(server);
        client.read_to_end(&mut Vec::new()).await.unwrap();
    };
    let (end, ()) = tokio::join!(forwarding, story);
    assert!(matches!(end, End::Closed), "{end:?}");
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset() {
    let (mut client, server, forwarding) = forwarded(b"").await;
    reset(&server);
    drop(server);
    let story = async {
        let error = client.read(&mut [0; 8]).await.expect_err("not an orderly end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    };
    let (end, ()) = tokio::join!(forwarding, story);
    assert_eq!(end.reason(), Some(Reason::UpstreamReset), "{end:?}");
}

#[tokio::test]
async fn a_silent_connection_ends_at_the_idle_limit() {
    let worker = worker(&["--tcp-idle-timeout=1ms"]);
    let (mut client, near_client) = pair().await;
    let (_server, near_server) = pair().await;
    let record = record(&worker);
    let client_io = Prefixed::new(near_client.into(), Bytes::new());
    let end = forward(&worker, client_io, Prefixed::new(near_server.into(), Bytes::new()), record).await;
    assert!(matches!(end, End::Idle), "{end:?}");
    assert_eq!(client.read(&mut [0; 8]).await.unwrap(), 0, "an orderly end");
}

#[tokio::test]
async fn the_end_of_a_drain_resets_what_is_left() {
    let worker = worker(&[]);
    let (mut client, near_client) = pair().await;
    let (_server, near_server) = pair().await;
    let record = record(&worker);
    let drain = worker.drain.clone();
    let client_io = Prefixed::new(near_client.into(), Bytes::new());
    let forwarding = forward(&worker, client_io, Prefixed::new(near_server.into(), Bytes::new()), record);
    let (end, ()) = tokio::join!(forwarding, async { drain.turn(crate::drain::Phase::Expired) });
    assert_eq!(end.reason(), Some(Reason::ShuttingDown));
    let error = client.read(&mut [0; 8]).await.expect_err("not an orderly end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_server_that_is_not_there_resets_the_client() {
    let local = tokio::task::LocalSet::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let worker = worker(&[]);
    let (mut client, near_client) = pair().await;
    let scope = Scope {
        edge: EdgeSpec {
            direction: Direction::Outbound,
            service: None,
            server_address: "db.example".into(),
            server_port: 5432,
            tls: Tls::None,
            client: None,
            caller: None,
        },
        protocol: record::Protocol::Tcp,
        target: Target::Address(nobody),
        opened: None,
        failed: None,
    };
    local.run_until(serve(worker, Prefixed::new(near_client.into(), Bytes::new()), scope)).await;
    let error = client.read(&mut [0; 8]).await.expect_err("not an orderly end");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

/// What an opaque connection costs for as long as it lives, apart from its sockets.
#[tokio::test]
async fn a_forwarded_connection_is_small() {
    let (_client, near_client) = pair().await;
    let worker = worker(&[]);
    let record = record(&worker);
    let (_server, near_server) = pair().await;
    let client_io = Prefixed::new(near_client.into(), Bytes::new());
    let forwarding = forward(&worker, client_io, Prefixed::new(near_server.into(), Bytes::new()), record);
    let size = size_of_val(&forwarding);
    assert!(size <= 2048, "{size} bytes");
}

#[tokio::test]
async fn an_endpoint_that_does_not_accept_is_ejected() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = gone.local_addr().unwrap();
    drop(gone);
    let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut spec = xds::ClusterSpec::new("db.shop:5432");
    spec.breaking.outlier = Some(outlier::Settings {
        split: true,
        consecutive_local_origin_failure: 3,
        max_ejection_percent: 50,
        ..outlier::Settings::default()
    });
    let endpoints = [dead, alive.local_addr().unwrap()].map(xds::Endpoint::new);
    let (worker, cluster) = (worker(&[]), xds::Cluster::new(spec, endpoints.to_vec()));
    let state = worker.clusters.of(&cluster);
    while state.circuit().ejected() == 0 {
        let opened = open(Rc::clone(&worker), Target::Cluster(cluster.clone()), None).await.unwrap();
        assert_ne!(opened.address, dead);
    }
    assert!(!state.circuit().endpoint(dead).available());
}
