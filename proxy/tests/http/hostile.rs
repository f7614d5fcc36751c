//! Bytes that try to mean two things at once.

use std::cell::RefCell;
use std::rc::Rc;

use crate::harness::{App, OK, Raw, app, story};

/// An app that keeps everything it was sent.
async fn witness() -> (App, Rc<RefCell<String>>) {
    let seen = Rc::new(RefCell::new(String::new()));
    let to = Rc::clone(&seen);
    let app = app(move |mut raw, _| {
        let to = Rc::clone(&to);
        async move {
            while let Some(head) = raw.try_head().await {
                to.borrow_mut().push_str(&head);
                raw.write(OK).await;
            }
        }
    })
    .await;
    (app, seen)
}

fn refused(request: &'static str, status: &'static str, reason: &'static str) {
    story(|mesh| async move {
        let (app, seen) = witness().await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client.write(request).await;
        let (answer, _) = client.rest().await;
        let answer = answer.to_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{request:?}: {answer}");
        assert!(
            answer.contains(&format!("x-weft-reason: {reason}; by=server_proxy")),
            "{request:?}: {answer}"
        );
        assert_eq!(answer.matches("http/1.1 ").count(), 1, "{request:?}: one answer: {answer}");
        assert_eq!(*seen.borrow(), "", "{request:?}: nothing of it reached the app");
    });
}

#[test]
fn two_lengths_are_refused() {
    refused(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nGET /",
        "400",
        "protocol_error",
    );
    refused("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\nbody", "400", "protocol_error");
}

#[test]
fn a_length_that_is_no_number_is_refused() {
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nbody",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\nbody",
    ] {
        refused(request, "400", "protocol_error");
    }
}

#[test]
fn a_coding_that_is_not_chunked_last_is_refused() {
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        refused(request, "400", "protocol_error");
    }
}

#[test]
fn odd_header_lines_are_refused() {
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\x01: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        "GET / HTTP/9.1\r\nHost: a\r\n\r\n",
        "GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        refused(request, "400", "protocol_error");
    }
}

#[test]
fn a_length_beside_a_coding_does_not_reach_the_app() {
    story(|mesh| async move {
        let seen = Rc::new(RefCell::new(String::new()));
        let to = Rc::clone(&seen);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                let head = raw.head().await;
                *to.borrow_mut() = head;
                raw.until("0\r\n\r\n").await;
                raw.write(OK).await;
                let rest = raw.rest().await.0;
                to.borrow_mut().push_str(&rest);
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        let smuggled = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a\r\n\r\n";
        client.write(smuggled).await;
        // Answered, and then closed: what follows is not believed.
        let (answer, _) = client.rest().await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 1, "{answer}");
        let seen = seen.borrow();
        assert!(seen.contains("transfer-encoding: chunked") && !seen.contains("content-length"), "{seen}");
        assert!(!seen.contains("evil"), "{seen}");
    });
}

#[test]
fn a_bad_chunk_breaks_the_request_off() {
    story(|mesh| async move {
        let ended = Rc::new(RefCell::new(String::new()));
        let to = Rc::clone(&ended);
        let app = app(move |mut raw, _| {
            let to = Rc::clone(&to);
            async move {
                raw.head().await;
                let rest = raw.rest().await.0;
                to.borrow_mut().push_str(&rest);
            }
        })
        .await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        client
            .write("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzz\r\n")
            .await;
        let (answer, _) = client.rest().await;
        assert!(answer.is_empty() || answer.contains("protocol_error"), "{answer}");
        mesh.recorded(&["protocol_error", " 1"]).await;
        assert!(!ended.borrow().ends_with("0\r\n\r\n"), "the app must not take it for a whole one");
    });
}

#[test]
fn a_head_that_is_too_large_is_refused_with_a_reason() {
    story(|mesh| async move {
        let (app, seen) = witness().await;
        let sidecar = mesh.inbound(app.address).await;
        let by_bytes = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(100_000));
        let by_count = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(200));
        for request in [by_bytes, by_count] {
            let mut client = Raw::connect(sidecar).await;
            client.write(request).await;
            let head = client.head().await;
            assert!(head.starts_with("http/1.1 431 "), "{head}");
            assert!(head.contains("x-weft-reason: header_too_large; by=server_proxy"), "{head}");
        }
        assert_eq!(*seen.borrow(), "");
        assert!(mesh.metrics().contains("header_bytes"));
    });
}

#[test]
fn an_unread_body_is_not_the_next_request() {
    story(|mesh| async move {
        let (app, seen) = witness().await;
        let mut client = Raw::connect(mesh.inbound(app.address).await).await;
        // Refused for its hosts before its body was read; the body looks like a request and comes late.
        client.write("POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 34\r\n\r\n").await;
        let (head, _) = client.response().await;
        assert!(head.starts_with("http/1.1 400 "), "{head}");
        client.write("GET /evil HTTP/1.1\r\nHost: evil\r\n\r\n").await;
        client.rest().await;
        assert_eq!(*seen.borrow(), "");
    });
}
