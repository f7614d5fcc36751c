//! The race: who speaks first decides. Real sockets on loopback, no sleeps: every wait is for an event.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A connected pair: (their end, our end).
async fn pair() -> (TcpStream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), accepted.unwrap().0.into())
}

/// What a race opens in these tests.
#[derive(Debug)]
struct Server(Stream);

impl AsRef<Stream> for Server {
    fn as_ref(&self) -> &Stream {
        &self.0
    }
}

async fn never() -> Result<Server, Reason> {
    panic!("no connection is needed")
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_client_that_speaks_http_opens_no_connection() {
    let (mut client, ours) = pair().await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let detected = race(&ours, LONG, &Watch::default(), never).await.unwrap();
    assert_eq!(detected.sniff, Sniff::Http1);
    assert_eq!(&detected.prefix[..], b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
}

#[tokio::test]
async fn a_server_that_speaks_first_decides_at_once() {
    let (_client, ours) = pair().await;
    let (mut server, upstream) = pair().await;
    server.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
    let detected = race(&ours, LONG, &Watch::default(), || async { Ok(Server(upstream)) }).await.unwrap();
    assert_eq!(detected.sniff, Sniff::Opaque);
    assert_eq!(detected.how, How::Server);
    assert!(detected.prefix.is_empty());
    let mut greeting = [0; 3];
    detected.opened.expect("the race's connection").0.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220");
}

#[tokio::test]
async fn a_request_line_in_pieces_is_still_http_and_keeps_the_opened_connection() {
    let (mut client, ours) = pair().await;
    let (_server, upstream) = pair().await;
    client.write_all(b"GE").await.unwrap();
    let (opened, open) = tokio::sync::oneshot::channel();
    let drain = Watch::default();
    let detecting = race(&ours, LONG, &drain, move || async move {
        opened.send(()).unwrap();
        Ok(Server(upstream))
    });
    let speaking = async {
        open.await.unwrap();
        client.write_all(b"T / HTTP/1.1\r\n").await.unwrap();
    };
    let (detected, ()) = tokio::join!(detecting, speaking);
    let detected = detected.unwrap();
    assert_eq!(detected.sniff, Sniff::Http1);
    assert_eq!(&detected.prefix[..], b"GET / HTTP/1.1\r\n");
    assert!(detected.opened.is_some());
}

#[tokio::test]
async fn ambiguous_bytes_are_held_back_only_until_the_deadline() {
    let (mut client, ours) = pair().await;
    let (_server, upstream) = pair().await;
    client.write_all(b"GET").await.unwrap();
    let detected =
        race(&ours, Duration::from_millis(1), &Watch::default(), || async { Ok(Server(upstream)) })
            .await
            .unwrap();
    assert_eq!(detected.sniff, Sniff::Opaque);
    assert_eq!(detected.how, How::Timeout);
    assert_eq!(&detected.prefix[..], b"GET");
}

#[tokio::test]
async fn a_failed_connection_lets_the_client_still_ask() {
    let (mut client, ours) = pair().await;
    let (failed, fail) = tokio::sync::oneshot::channel();
    let drain = Watch::default();
    let detecting = race(&ours, LONG, &drain, move || async move {
        failed.send(()).unwrap();
        Err::<Server, _>(Reason::ConnectRefused)
    });
    let speaking = async {
        fail.await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    };
    let (detected, ()) = tokio::join!(detecting, speaking);
    let detected = detected.unwrap();
    assert_eq!(detected.sniff, Sniff::Http1);
    assert!(detected.failed.is_some());
}

#[tokio::test]
async fn a_client_that_only_hangs_up_is_opaque() {
    let (client, ours) = pair().await;
    drop(client);
    let detected = race(&ours, LONG, &Watch::default(), never).await.unwrap();
    assert_eq!(detected.sniff, Sniff::Opaque);
}

#[tokio::test]
async fn the_first_eight_kilobytes_are_the_limit() {
    let (mut client, ours) = pair().await;
    let line = [b"GET /".as_slice(), &vec![b'a'; PEEK_MAX * 2]].concat();
    client.write_all(&line).await.unwrap();
    let detected = client_only::<Server>(&ours, LONG, &Watch::default()).await.unwrap();
    assert_eq!(detected.sniff, Sniff::Http1);
    assert!(detected.prefix.len() <= PEEK_MAX + READ_STEP);
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_those_who_say_nothing() {
    let (_client, ours) = pair().await;
    let (_server, upstream) = pair().await;
    let drain = Watch::default();
    drain.turn(crate::drain::Phase::Draining);
    let silent = race(&ours, LONG, &drain, || async { Ok(Server(upstream)) }).await;
    assert_eq!(silent.expect_err("gone").kind(), io::ErrorKind::ConnectionAborted);
}

#[tokio::test]
async fn a_server_that_resets_at_once_is_not_taken_for_one_that_hangs_up() {
    let (_client, ours) = pair().await;
    let (server, upstream) = pair().await;
    crate::tcp::reset(&server);
    drop(server);
    let detected = race(&ours, LONG, &Watch::default(), || async { Ok(Server(upstream)) }).await.unwrap();
    assert_eq!(detected.failed, Some(Reason::UpstreamReset));
    assert!(detected.opened.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_of_an_absent_server_learns_it_soon() {
    let (_client, ours) = pair().await;
    let absent = || async { Err::<Server, _>(Reason::ConnectRefused) };
    let detected = race(&ours, LONG, &Watch::default(), absent).await.unwrap();
    assert_eq!((detected.how, detected.failed), (How::Failed, Some(Reason::ConnectRefused)));
}
