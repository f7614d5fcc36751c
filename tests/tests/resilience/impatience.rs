//! A connection that comes before the control plane has said where it goes: passed on, and routed from the first request
//! after the answer, however long the connection lives.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_tests::backend::Troupe;
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use super::{forward, samples, service, value};

/// One request on a connection that must live; answers the status.
async fn ask(stream: &mut TcpStream, target: &str, host: &str) -> anyhow::Result<u16> {
    stream.write_all(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("the connection ended")?);
    }
    let head = String::from_utf8(head)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("length")?;
    stream.read_exact(&mut vec![0; length.parse()?]).await?;
    Ok(head.split(' ').nth(1).context("status")?.parse()?)
}

/// How many connections did not wait for the control plane's answer.
async fn impatient(caller: &Sidecar) -> anyhow::Result<f64> {
    let limits = samples(caller, "weft_limit_total").await?;
    let counted = limits.iter().find(|sample| sample.contains("\"discovery_timeout\""));
    counted.map(|sample| value(sample)).context("it is counted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_does_not_stay_where_it_went_before_the_answer() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let troupe = Troupe::start(2)?;
    let services = ["orders", "stock"].iter().zip(&troupe.backends);
    let services: String = services.map(|(name, backend)| service(name, &[backend.address])).collect();
    let plane = Plane::start(&services).await?;
    // Nobody waits for the answer.
    let flags = [forward("orders"), "--discovery-timeout=0ms".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let caller = Sidecar::start(directory.path(), plane.control, "web", &flags).await?;

    // As to the service itself, and as to an HTTP proxy.
    let ways: [(SocketAddr, &str, &str); 2] = [
        (caller.address("/forwards/0")?, "/", "orders"),
        (caller.address("/outbound")?, "http://stock.shop:8080/", "stock.shop:8080"),
    ];
    for (number, (address, target, host)) in ways.into_iter().enumerate() {
        let mut stream = TcpStream::connect(address).await?;
        poll::until("the same connection is routed", PATIENCE, async || {
            let status = ask(&mut stream, target, host).await?;
            ensure!(status == 200, "{status}");
            Ok(())
        })
        .await?;
        let impatient = impatient(&caller).await?;
        assert!(impatient > number as f64, "{target}: it waited for the answer, so this shows nothing");
    }
    assert_eq!(troupe.total(), 2, "each service was asked once");
    caller.stop().await?;
    plane.stop().await;
    Ok(())
}
