//! Time and cancellation along a chain of sidecars.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use weft_proxy::http::Target;
use weft_proxy::http::Version::Http1;

use crate::harness::{App, GET, OK, Raw, abandoned, answering, app, story, until};
use crate::policy::{cluster, forward, listener, retrying};

fn within(after: Duration, to: SocketAddr) -> Target {
    let rule = forward(|forward| {
        forward.timeout = Some(after);
        forward.retry = Some(retrying("5xx", 1));
    });
    Target::Listener(listener(rule, cluster("orders.shop:80", &[to]), vec![]))
}

/// An app that shows the heads of its requests.
async fn witness() -> (App, Rc<RefCell<Vec<String>>>) {
    let heads = Rc::new(RefCell::new(Vec::new()));
    let to = Rc::clone(&heads);
    let app = app(move |mut raw, _| {
        let to = Rc::clone(&to);
        async move {
            while let Some(head) = raw.try_head().await {
                to.borrow_mut().push(head);
                raw.write(OK).await;
            }
        }
    })
    .await;
    (app, heads)
}

fn value<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn the_next_sidecar_hears_what_is_left_and_the_app_nothing() {
    story(|mesh| async move {
        let (app, heads) = witness().await;
        let direct = mesh.sidecar(Http1, within(Duration::from_secs(5), app.address)).await;
        Raw::connect(direct).await.call(GET).await;
        let inbound = mesh.inbound(app.address).await;
        let through = mesh.sidecar(Http1, within(Duration::from_secs(5), inbound)).await;
        Raw::connect(through).await.call(GET).await;
        let heads = heads.take();
        let left: u64 = value(&heads[0], "x-weft-deadline").expect("told").parse().unwrap();
        assert!((4000..=5000).contains(&left), "{left}");
        assert_eq!(value(&heads[1], "x-weft-deadline"), None, "between sidecars only");
    });
}

#[test]
fn a_callers_deadline_bounds_the_call_to_the_app() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.rest().await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let (head, _) = client.call("GET / HTTP/1.1\r\nHost: orders\r\nX-Weft-Deadline: 50\r\n\r\n").await;
        assert!(head.starts_with("http/1.1 504 "), "{head}");
        assert!(head.contains("x-weft-reason: request_timeout; by=server_proxy"), "{head}");
    });
}

#[test]
fn a_grpc_deadline_only_shrinks() {
    story(|mesh| async move {
        let (app, heads) = witness().await;
        let sidecar = mesh.sidecar(Http1, within(Duration::from_secs(2), app.address)).await;
        let call = |timeout: &str| {
            format!(
                "POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nGrpc-Timeout: {timeout}\r\nContent-Length: 0\r\n\r\n"
            )
        };
        let mut client = Raw::connect(sidecar).await;
        client.call(&call("10S")).await;
        client.call(&call("1S")).await;
        let heads = heads.take();
        let micros = |head: &str| -> u64 {
            let text = value(head, "grpc-timeout").expect("kept");
            // Nothing has passed yet when the first attempt begins: then the caller's own words stay.
            let (number, unit) = text.split_at(text.len() - 1);
            // The witness writes heads in lower case.
            let factor = if unit == "s" { 1_000_000 } else { 1 };
            number.parse::<u64>().unwrap() * factor
        };
        assert!(micros(&heads[0]) <= 2_000_000 && micros(&heads[0]) > 1_500_000, "{}", heads[0]);
        assert!(micros(&heads[1]) <= 1_000_000 && micros(&heads[1]) > 500_000, "{}", heads[1]);
    });
}

#[test]
fn a_caller_that_leaves_cancels_the_work_behind_two_sidecars() {
    story(|mesh| async move {
        let (app, gone) = abandoned().await;
        let inbound = mesh.inbound(app.address).await;
        let outbound = mesh.sidecar(Http1, within(Duration::from_secs(60), inbound)).await;
        let mut client = Raw::connect(outbound).await;
        client.write(GET).await;
        until(|| app.connections() == 1).await;
        drop(client);
        until(|| gone.get()).await;
        mesh.recorded(&["http_client_request_duration_seconds_count", "client_cancelled", " 1"]).await;
        mesh.recorded(&["http_server_request_duration_seconds_count", "client_cancelled", " 1"]).await;
    });
}

#[test]
fn a_caller_that_leaves_between_two_attempts_ends_them() {
    story(|mesh| async move {
        let app = answering("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n").await;
        let policy = weft_proxy::policy::retry::RetryPolicy {
            backoff: weft_proxy::policy::retry::Backoff::new(Duration::from_secs(3600), None),
            ..retrying("5xx", 9)
        };
        let rule = forward(|forward| forward.retry = Some(policy));
        let to = Target::Listener(listener(rule, cluster("orders.shop:80", &[app.address]), vec![]));
        let mut client = Raw::connect(mesh.sidecar(Http1, to).await).await;
        client.write(GET).await;
        until(|| app.connections() == 1).await;
        drop(client);
        mesh.recorded(&["http_client_request_duration_seconds_count", "client_cancelled", " 1"]).await;
    });
}

#[test]
fn an_answer_that_nobody_reads_does_not_hold_up_its_upload() {
    story(|mesh| async move {
        // Each far more than the sockets between hold.
        const LENGTH: usize = 32 * 1024 * 1024;
        let app = app(|mut raw, _| async move {
            raw.head().await;
            let (mut read, mut write) = raw.stream.into_split();
            let answer = spawn_local(async move {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
                write.write_all(head.as_bytes()).await.unwrap();
                write.write_all(&vec![b'y'; LENGTH]).await.unwrap();
                write
            });
            let mut sink = vec![0; 64 * 1024];
            while matches!(read.read(&mut sink).await, Ok(1..)) {}
            drop(answer.await);
        })
        .await;
        let client = TcpStream::connect(mesh.inbound(app.address).await).await.unwrap();
        let (mut read, mut write) = client.into_split();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        // All of it is sent before a byte of the answer is read.
        write.write_all(&vec![b'x'; LENGTH]).await.unwrap();
        let mut got = 0;
        let mut buffer = vec![0; 64 * 1024];
        while got < LENGTH {
            match read.read(&mut buffer).await.unwrap() {
                0 => break,
                count => got += count,
            }
        }
        assert!(got >= LENGTH, "{got}");
    });
}
