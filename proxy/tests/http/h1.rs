//! HTTP/1 as it should be.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use weft_proxy::balance::policy::Algorithm;
use weft_proxy::http::Target;
use weft_proxy::http::Version::Http1;
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint};

use crate::policy::{listener, rule};

use crate::harness::{App, GET, OK, Raw, answering, app, nobody, story, until};

#[test]
fn one_client_connection_needs_one_to_the_app() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        for _ in 0..3 {
            let (head, body) = client.call(GET).await;
            assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
            assert_eq!(body, "ok");
        }
        assert_eq!(app.connections(), 1);
        mesh.recorded(&["http_server_request_duration_seconds_count", " 3"]).await;
    });
}

#[test]
fn another_client_connection_shares_it() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let sidecar = mesh.inbound(app.address).await;
        for _ in 0..3 {
            Raw::connect(sidecar).await.call(GET).await;
        }
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn the_request_arrives_as_it_was_but_for_the_hop() {
    story(|mesh| async move {
        let seen = Rc::new(RefCell::new(String::new()));
        let to = Rc::clone(&seen);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                *to.borrow_mut() = raw.head().await;
                raw.write("HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nX-App: 1\r\nContent-Length: 0\r\n\r\n")
                    .await;
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let (head, _) = client
            .call("GET /a?b=%20 HTTP/1.1\r\nHost: orders\r\nConnection: keep-alive, x-mine\r\nX-Mine: 1\r\nCookie: c\r\n\r\n")
            .await;
        let request = seen.take();
        assert!(request.starts_with("get /a?b=%20 http/1.1\r\n"), "{request}");
        assert!(request.contains("host: orders\r\n") && request.contains("cookie: c\r\n"), "{request}");
        assert!(!request.contains("x-mine") && !request.contains("connection"), "{request}");
        assert_eq!(request.matches("traceparent: ").count(), 1, "{request}");
        assert!(head.contains("x-app: 1") && !head.contains("x-hop"), "{head}");
    });
}

#[test]
fn a_method_that_is_about_a_body_says_when_there_is_none() {
    story(|mesh| async move {
        let seen = Rc::new(RefCell::new(String::new()));
        let to = Rc::clone(&seen);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                while let Some(head) = raw.try_head().await {
                    *to.borrow_mut() = head;
                    raw.write(OK).await;
                }
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        for (method, says) in [("POST", true), ("OPTIONS", true), ("GET", false), ("DELETE", false)] {
            client.call(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(seen.take().contains("content-length: 0\r\n"), says, "{method}");
        }
    });
}

#[test]
fn chunks_go_both_ways() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            let head = raw.head().await;
            assert!(head.contains("transfer-encoding: chunked"), "{head}");
            let body = raw.until("0\r\n\r\n").await;
            assert_eq!(body.replace("\r\n", "|"), "5|hello|6| world|0||");
            raw.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n")
                .await;
            raw.write("0\r\nX-Sum: 7\r\n\r\n").await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.write("5\r\nhello\r\n").await;
        tokio::task::yield_now().await;
        client.write("6\r\n world\r\n0\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
        assert_eq!(client.until("\r\n\r\n").await.to_lowercase(), "3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n");
    });
}

#[test]
fn a_chunked_get_keeps_its_body() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.until("0\r\n\r\n").await;
            raw.write(OK).await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let request = "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
        assert_eq!(client.call(request).await.1, "ok");
    });
}

#[test]
fn the_app_decides_about_100_continue() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            let head = raw.head().await;
            assert!(head.contains("expect: 100-continue"), "{head}");
            raw.write("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(raw.exactly(4).await, "body");
            raw.write(OK).await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
        assert_eq!(client.head().await, "http/1.1 100 continue\r\n\r\n");
        client.write("body").await;
        assert_eq!(client.response().await.1, "ok");
    });
}

#[test]
fn a_refused_body_is_never_asked_for() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await;
            assert_eq!(raw.rest().await.0, "", "no byte of the body");
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
        assert!(client.head().await.starts_with("http/1.1 417 "));
    });
}

#[test]
fn an_upgrade_becomes_a_pipe() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            let head = raw.head().await;
            assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
            raw.write(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
            )
            .await;
            let said = raw.until("\n").await;
            raw.write(format!("you said {said}")).await;
            assert_eq!(raw.rest().await.0, "", "half-close arrives");
            raw.write("bye").await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client
            .write("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n\r\nearly\n")
            .await;
        let head = client.head().await;
        assert!(head.starts_with("http/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
        assert_eq!(client.until("hello").await, "hello");
        assert_eq!(client.until("\n").await, "you said early\n");
        AsyncWriteExt::shutdown(&mut client.stream).await.unwrap();
        assert_eq!(client.rest().await, ("bye".into(), true));
    });
}

#[test]
fn an_upgrade_that_is_declined_is_a_response() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let request = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(client.call(request).await.1, "ok");
        assert_eq!(client.call(GET).await.1, "ok");
    });
}

#[test]
fn requests_may_come_before_their_predecessors_are_answered() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write(GET.repeat(5)).await;
        for _ in 0..5 {
            assert_eq!(client.response().await.1, "ok");
        }
    });
}

#[test]
fn an_http_1_0_client_is_served() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            let head = raw.head().await;
            assert!(
                head.starts_with("get / http/1.1\r\n") && head.contains("host: orders.shop:8080\r\n"),
                "{head}"
            );
            raw.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("GET / HTTP/1.0\r\n\r\n").await;
        let head = client.head().await;
        assert!(head.starts_with("http/1.0 200 ok") && !head.contains("chunked"), "{head}");
        assert_eq!(client.rest().await, ("ok".into(), true));
    });
}

#[test]
fn an_http_1_0_app_ends_its_body_by_closing() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.0 200 OK\r\n\r\nall there is").await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write(GET).await;
        assert!(client.head().await.contains("transfer-encoding: chunked"));
        assert!(client.until("0\r\n\r\n").await.contains("all there is"));
    });
}

#[test]
fn responses_without_a_body_have_none() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            while let Some(head) = raw.try_head().await {
                let status = if head.starts_with("head") {
                    "200 OK\r\nContent-Length: 99"
                } else {
                    "304 Not Modified\r\nETag: x"
                };
                raw.write(format!("HTTP/1.1 {status}\r\n\r\n")).await;
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        for request in ["HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"].repeat(2) {
            client.write(request).await;
            let head = client.head().await;
            let expected = if request.starts_with("HEAD") { "content-length: 99" } else { "http/1.1 304" };
            assert!(head.contains(expected), "{head}");
        }
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn a_forward_proxy_goes_where_each_request_says() {
    story(|mesh| async move {
        let (one, two) =
            (answering(OK).await, answering("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo").await);
        let mut client = Raw::connect(mesh.sidecar(Http1, Target::ForwardProxy).await).await;
        for (app, body) in [(&one, "ok"), (&two, "two"), (&one, "ok")] {
            let request = format!(
                "GET http://{}/ HTTP/1.1\r\nHost: ignored\r\nProxy-Connection: x\r\n\r\n",
                app.address
            );
            assert_eq!(client.call(&request).await.1, body);
        }
        assert_eq!((one.connections(), two.connections()), (1, 1));
        let (head, _) = client.call(GET).await;
        assert!(
            head.starts_with("http/1.1 400 ")
                && head.contains("x-weft-reason: protocol_error; by=client_proxy"),
            "{head}"
        );
    });
}

#[test]
fn a_forward_proxy_tunnels() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            let said = raw.until("\n").await;
            raw.write(said).await;
        })
        .await;
        let mut client = Raw::connect(mesh.sidecar(Http1, Target::ForwardProxy).await).await;
        client.write(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nany bytes\n", app.address)).await;
        assert!(client.head().await.starts_with("http/1.1 200 "));
        assert_eq!(client.until("\n").await, "any bytes\n");
        assert_eq!(client.rest().await, (String::new(), true));
    });
}

#[test]
fn a_pass_through_destination_is_called_by_its_host() {
    story(|mesh| async move {
        let app = answering(OK).await;
        let mut client = Raw::connect(mesh.sidecar(Http1, Target::PassThrough(app.address)).await).await;
        assert_eq!(client.call("GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n").await.1, "ok");
        mesh.recorded(&["http_client_request_duration_seconds_count", "api.example.com"]).await;
    });
}

#[test]
fn nobody_there_has_a_reason() {
    story(|mesh| async move {
        let mut client = Raw::connect(mesh.inbound(nobody().await).await).await;
        let (head, body) = client.call(GET).await;
        assert!(head.starts_with("http/1.1 502 "), "{head}");
        assert!(head.contains("x-weft-reason: connect_refused; by=server_proxy"), "{head}");
        assert_eq!(body, "weft: connect_refused (decided by server_proxy)\n");
        // The connection goes on.
        assert!(client.call(GET).await.0.starts_with("http/1.1 502 "));
        mesh.recorded(&["connect_refused", " 2"]).await;
    });
}

#[test]
fn a_grpc_caller_is_told_in_its_own_words() {
    story(|mesh| async move {
        let mut client = Raw::connect(mesh.inbound(nobody().await).await).await;
        let (head, _) =
            client.call("GET / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\n\r\n").await;
        assert!(head.starts_with("http/1.1 200 ") && head.contains("grpc-status: 14"), "{head}");
    });
}

#[test]
fn an_app_may_answer_before_it_has_read_everything() {
    story(|mesh| async move {
        let got = Rc::new(RefCell::new(String::new()));
        let to = Rc::clone(&got);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                raw.head().await;
                raw.write(OK).await;
                *to.borrow_mut() = raw.exactly(8).await;
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nhalf").await;
        assert_eq!(client.response().await.1, "ok");
        client.write("half").await;
        until(|| *got.borrow() == "halfhalf").await;
    });
}

#[test]
fn large_bodies_flow_both_ways() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            for _ in 0..2 {
                raw.head().await;
                let body = raw.exactly(3_000_000).await;
                raw.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
            }
        })
        .await;
        let client = Raw::connect(mesh.inbound(app.address).await).await;
        let (mut read, mut write) = client.stream.into_split();
        let send = spawn_local(async move {
            for letter in [b'a', b'b'] {
                let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n";
                AsyncWriteExt::write_all(&mut write, head).await.unwrap();
                AsyncWriteExt::write_all(&mut write, &vec![letter; 3_000_000]).await.unwrap();
            }
            write
        });
        let mut count = [0, 0];
        let mut buffer = vec![0; 100_000];
        // Heads have neither letter often enough to matter.
        while count[0] < 3_000_000 || count[1] < 3_000_000 {
            let length = AsyncReadExt::read(&mut read, &mut buffer).await.unwrap();
            assert!(length > 0, "{count:?}");
            for byte in &buffer[..length] {
                count[0] += usize::from(*byte == b'a');
                count[1] += usize::from(*byte == b'b');
            }
        }
        drop(send.await.unwrap());
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn an_app_that_reads_no_more_can_still_say_why() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")
                .await;
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").await;
        client.write(vec![b'x'; 10_000]).await;
        let (head, body) = client.response().await;
        assert!(head.starts_with("http/1.1 413 "), "{head}");
        assert_eq!(body, "big");
    });
}

#[test]
fn what_follows_a_response_is_nobodys() {
    story(|mesh| async move {
        let app = answering(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        )
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        for round in 1..=3 {
            assert_eq!(client.call(GET).await.1, "ok");
            assert_eq!(app.connections(), round, "the connection is not used again");
        }
    });
}

#[test]
fn an_app_that_answered_early_gets_the_end_of_the_body_too() {
    story(|mesh| async move {
        // More than the sockets between hold, so that the end is still here when the response is over.
        const LENGTH: usize = 32 * 1024 * 1024;
        let got = Rc::new(Cell::new(0));
        let read_on = Rc::new(tokio::sync::Notify::new());
        let (to, when) = (Rc::clone(&got), Rc::clone(&read_on));
        let app = app(move |mut raw, _| {
            let (to, when) = (Rc::clone(&to), Rc::clone(&when));
            async move {
                raw.head().await;
                raw.skip(LENGTH - 8 * 1024 * 1024, &to).await;
                raw.write(OK).await;
                when.notified().await;
                raw.skip(LENGTH, &to).await;
            }
        })
        .await;
        let client = TcpStream::connect(mesh.inbound(app.address).await).await.unwrap();
        let (mut read, mut write) = client.into_split();
        let sent = spawn_local(async move {
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
            write.write_all(head.as_bytes()).await.unwrap();
            write.write_all(&vec![b'x'; LENGTH]).await.unwrap();
            write
        });
        let mut answer = vec![0; 4096];
        assert!(read.read(&mut answer).await.unwrap() > 0);
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
        read_on.notify_one();
        until(|| got.get() == LENGTH).await;
        drop(sent.await);
    });
}

#[test]
fn a_body_that_was_refused_is_not_asked_for_while_the_refusal_is_read() {
    story(|mesh| async move {
        let app = app(|mut raw, _| async move {
            raw.head().await;
            raw.write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 4\r\n\r\nno").await;
            // Longer than anybody waits for `100 Continue`.
            let more = tokio::time::timeout(Duration::from_millis(1500), raw.try_until("body")).await;
            assert!(!matches!(more, Ok(Some(_))), "{more:?}");
            raw.write("no").await;
            assert_eq!(raw.rest().await.0, "", "no byte of the body");
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
        assert!(client.head().await.starts_with("http/1.1 417 "));
        client.write("body").await;
        assert_eq!(client.exactly(4).await, "nono");
    });
}

#[test]
fn what_has_no_body_needs_no_frame() {
    for (method, answer) in [
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked"),
        ("GET", "204 No Content\r\nContent-Length: 5"),
        ("GET", "204 No Content\r\nTransfer-Encoding: chunked"),
        ("GET", "304 Not Modified\r\nContent-Length: 5"),
        ("GET", "304 Not Modified\r\nTransfer-Encoding: chunked"),
    ] {
        story(|mesh| async move {
            let app = app(move |mut raw, _| async move {
                while let Some(head) = raw.try_head().await {
                    let answer =
                        if head.contains("/last") { OK.into() } else { format!("HTTP/1.1 {answer}\r\n\r\n") };
                    raw.write(answer).await;
                }
            })
            .await;
            let mut client = Raw::connect(mesh.inbound(app.address).await).await;
            client.write(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let head = client.head().await;
            assert!(head.starts_with(&format!("http/1.1 {} ", &answer[..3])), "{method} {answer}: {head}");
            assert_eq!(
                client.call("GET /last HTTP/1.1\r\nHost: a\r\n\r\n").await.1,
                "ok",
                "{method} {answer}"
            );
            assert_eq!(app.connections(), 1, "{method} {answer}");
        });
    }
}

/// An endpoint without a connection must not lose its turn to those that have one.
#[test]
fn everybody_gets_a_turn_and_with_it_a_first_connection() {
    story(|mesh| async move {
        let apps = [answering(OK).await, answering(OK).await, answering(OK).await];
        let mut spec = ClusterSpec::new("orders.shop:80");
        spec.balancing.algorithm = Algorithm::RoundRobin;
        let endpoints = apps.iter().map(|app| Endpoint::new(app.address)).collect();
        let to = listener(rule(|_| {}), Cluster::new(spec, endpoints), vec![]);
        let mut client = Raw::connect(mesh.sidecar(Http1, Target::Listener(to)).await).await;
        for _ in 0..3 {
            assert_eq!(client.call(GET).await.1, "ok");
        }
        assert_eq!(apps.each_ref().map(App::connections), [1, 1, 1]);
    });
}
