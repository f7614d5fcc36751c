//! Connections over time: idle, stale, broken, cancelled, drained.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_proxy::drain::Phase;
use weft_proxy::record::PeerIndex;
use weft_proxy::tcp::Upstream;

use crate::harness::{GET, OK, Raw, abandoned, answering, app, story, until};

#[test]
fn idle_connections_are_parked_and_come_back() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        for round in 0..3 {
            assert_eq!(client.call(GET).await.1, "ok", "round {round}");
            until(|| mesh.worker.http.lot.parked() == 1).await;
        }
        assert_eq!(app.connections(), 1, "the app's connection was parked and taken again");
    });
}

#[test]
fn a_request_wakes_its_connection_twice() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.call(GET).await;
        let before = mesh.polls.get();
        for _ in 0..20 {
            client.call(GET).await;
        }
        // Once for the request, once for the response: no wake-ups between tasks. A little room for the sweep.
        let polls = mesh.polls.get() - before;
        assert!(polls <= 20 * 2 + 4, "{polls}");
    });
}

#[test]
fn half_a_head_survives_parking() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("GET / HTTP/1.1\r\nHo").await;
        until(|| mesh.worker.http.lot.parked() == 1).await;
        assert_eq!(client.call("st: a\r\n\r\n").await.1, "ok");
    });
}

#[test]
fn a_connection_that_the_app_closed_is_not_used() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write(OK).await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        for _ in 0..3 {
            assert_eq!(client.call(GET).await.1, "ok");
        }
        assert_eq!(app.connections(), 3);
    });
}

#[test]
fn a_request_that_met_a_closing_connection_is_sent_again() {
    story(|mesh| async move {
        // Reads the second request of the first connection and closes without a word.
        let app = app(|mut raw, connection| async move {
            raw.head().await;
            raw.write(OK).await;
            raw.head().await;
            if connection > 1 {
                raw.write(OK).await;
                raw.head().await;
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        assert_eq!(client.call(GET).await.1, "ok");
        assert_eq!(client.call(GET).await.1, "ok");
        assert_eq!(app.connections(), 2);
        // What may have had an effect is not repeated.
        let (head, _) = client.call("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert!(head.starts_with("http/1.1 200 ") || head.contains("upstream_reset"), "{head}");
    });
}

#[test]
fn a_body_that_was_sent_is_never_sent_as_a_request() {
    // A body of its own buffer, one that is copied behind the head, one in chunks; and each looks like a request.
    let evil = "GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n";
    let large = format!("{evil}{}", "x".repeat(6000));
    let chunked = format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{evil}\r\n0\r\n\r\n", evil.len());
    for (method, rest, end) in [
        ("PUT", format!("Content-Length: {}\r\n\r\n{evil}", evil.len()), evil),
        ("POST", format!("Content-Length: {}\r\n\r\n{evil}", evil.len()), evil),
        ("PUT", format!("Content-Length: {}\r\n\r\n{large}", large.len()), "xxx"),
        ("POST", format!("Content-Length: {}\r\n\r\n{large}", large.len()), "xxx"),
        ("PUT", chunked, "0\r\n\r\n"),
    ] {
        story(|mesh| async move {
            // Takes the first connection's second request whole, and closes without a word.
            let app = app(move |mut raw, connection| async move {
                raw.head().await;
                if connection == 1 {
                    raw.write(OK).await;
                    raw.head().await;
                    raw.until(end).await;
                } else {
                    raw.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil").await;
                }
            })
            .await;
            let mut client = Raw::connect(mesh.inbound(app.address).await).await;
            assert_eq!(client.call(GET).await.1, "ok");
            let (head, body) = client.call(&format!("{method} / HTTP/1.1\r\nHost: a\r\n{rest}")).await;
            assert!(
                head.starts_with("http/1.1 502 ") && head.contains("upstream_reset"),
                "{method} {head}{body}"
            );
            assert_eq!(app.connections(), 1, "{method}: nothing was sent again");
        });
    }
}

#[test]
fn what_began_to_be_answered_is_not_sent_again() {
    story(|mesh| async move {
        let app = app(|mut raw, connection| async move {
            raw.head().await;
            raw.write(OK).await;
            raw.head().await;
            raw.write(if connection == 1 { "HTTP/1.1 200 O" } else { OK }).await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        assert_eq!(client.call(GET).await.1, "ok");
        let (head, _) = client.call(GET).await;
        assert!(head.starts_with("http/1.1 502 ") && head.contains("protocol_error"), "{head}");
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn a_connection_opened_ahead_may_have_been_closed_meanwhile() {
    story(|mesh| async move {
        let app = app(|mut raw, connection| async move {
            if connection > 1 {
                raw.head().await;
                raw.write(OK).await;
            }
        })
        .await;
        let stream = TcpStream::connect(app.address).await.unwrap();
        stream.readable().await.unwrap();
        let opened = Upstream {
            stream: stream.into(),
            address: app.address,
            peer: PeerIndex::UNKNOWN,
            identity: None,
            working: None,
            permit: None,
        };
        let sidecar = mesh.ahead(opened).await;
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(Raw::connect(sidecar).await.call(post).await.1, "ok");
    });
}

#[test]
fn a_connection_opened_ahead_to_somebody_else_is_not_used() {
    story(|mesh| async move {
        let app = app(|mut raw, connection| async move {
            raw.head().await;
            raw.write(if connection == 1 {
                "HTTP/1.1 418 I am another\r\ncontent-length: 0\r\n\r\n"
            } else {
                OK
            })
            .await;
        })
        .await;
        let opened = Upstream {
            stream: TcpStream::connect(app.address).await.unwrap().into(),
            address: app.address,
            peer: PeerIndex::UNKNOWN,
            identity: Some(Arc::new("spiffe://cluster.local/ns/shop/sa/gone".parse().unwrap())),
            working: None,
            permit: None,
        };
        until(|| app.connections() == 1).await;
        let sidecar = mesh.ahead(opened).await;
        assert_eq!(Raw::connect(sidecar).await.call(GET).await.1, "ok");
    });
}

#[test]
fn no_answer_is_a_reset() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let (head, _) = client.call(GET).await;
        assert!(head.starts_with("http/1.1 502 "), "{head}");
        assert!(head.contains("x-weft-reason: upstream_reset; by=server_proxy"), "{head}");
        mesh.recorded(&["upstream_reset", " 1"]).await;
    });
}

#[test]
fn what_is_no_http_is_a_bad_gateway() {
    story(|mesh| async move {
        let app = answering("SSH-2.0-OpenSSH_9.9\r\n\r\n").await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let (head, _) = client.call(GET).await;
        assert!(head.starts_with("http/1.1 502 ") && head.contains("protocol_error"), "{head}");
    });
}

#[test]
fn half_a_response_is_not_a_whole_one() {
    for head in ["Content-Length: 100\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"] {
        story(|mesh| async move {
            let cut = Rc::new(tokio::sync::Notify::new());
            let when = Rc::clone(&cut);
            let app = app(move |mut raw, _| {
                let when = Rc::clone(&when);
                async move {
                    raw.head().await;
                    raw.write(format!("HTTP/1.1 200 OK\r\n{head}")).await;
                    when.notified().await;
                }
            })
            .await;
            let mut client = Raw::connect(mesh.inbound(app.address).await).await;
            client.write(GET).await;
            assert!(client.head().await.starts_with("http/1.1 200 "));
            client.until("part").await;
            cut.notify_one();
            let (rest, _) = client.rest().await;
            assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
            mesh.recorded(&["upstream_reset", " 1"]).await;
        });
    }
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    story(|mesh| async move {
        let (app, gone) = abandoned().await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write(GET).await;
        until(|| app.connections() == 1).await;
        drop(client);
        until(|| gone.get()).await;
        mesh.recorded(&["client_cancelled", " 1"]).await;
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_of_the_body_too() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").await;
            raw.rest().await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write(GET).await;
        client.until("part").await;
        drop(client);
        mesh.recorded(&["client_cancelled", " 1"]).await;
    });
}

#[test]
fn draining_closes_after_the_next_response() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let sidecar = mesh.inbound(app.address).await;
        let (mut busy, mut idle) = (Raw::connect(sidecar).await, Raw::connect(sidecar).await);
        busy.call(GET).await;
        idle.call(GET).await;
        until(|| mesh.worker.http.lot.parked() == 2).await;
        mesh.worker.drain.turn(Phase::Draining);
        let (head, body) = busy.call(GET).await;
        assert!(head.contains("connection: close"), "{head}");
        assert_eq!(body, "ok");
        assert_eq!(busy.rest().await, (String::new(), true));
        assert_eq!(idle.rest().await, (String::new(), true));
        until(|| mesh.worker.http.lot.is_empty()).await;
    });
}

#[test]
fn too_much_at_once_is_shed() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let mut permits = Vec::new();
        while let Ok(permit) = mesh.worker.http.shed.admit(|| 1.0) {
            permits.push(permit);
        }
        let (head, _) = client.call(GET).await;
        assert!(head.starts_with("http/1.1 503 ") && head.contains("overloaded"), "{head}");
        permits.pop();
        assert_eq!(client.call(GET).await.1, "ok");
    });
}
