use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use weft_wire::Reason;

use super::*;
use crate::tls::fixture::{Authority, Leaf, mesh};
use crate::tls::{Alpn, Mesh, accept, connect};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SOON: Duration = Duration::from_secs(10);

type Ends = (Result<accept::Secured, Reason>, Result<accept::Secured, Reason>);

/// A handshake of `client`, which means `id`, with `server`.
async fn shake(client: &Mesh, server: &Mesh, id: &str, alpn: Option<Alpn>) -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (client, server) = (client.credentials().unwrap(), server.credentials().unwrap());
    let id = id.parse().unwrap();
    tokio::join!(
        connect::connect(&client, near.unwrap(), &id, alpn, SOON),
        accept::accept(&server, accepted.unwrap().0, &[], SOON),
    )
}

struct Pair {
    web: Arc<Mesh>,
    orders: Arc<Mesh>,
}

fn members() -> Pair {
    let authority = Authority::new();
    Pair { web: mesh(authority.material(WEB)), orders: mesh(authority.material(ORDERS)) }
}

impl Pair {
    async fn connected(&self) -> (Stream, Stream) {
        let (near, far) = shake(&self.web, &self.orders, ORDERS, None).await;
        (near.unwrap().stream, far.unwrap().stream)
    }
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is_and_what_is_spoken() {
    let pair = members();
    let (near, far) = shake(&pair.web, &pair.orders, ORDERS, Some(Alpn::Http2)).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!((near.peer.to_string(), far.peer.to_string()), (ORDERS.to_owned(), WEB.to_owned()));
    assert_eq!((near.alpn, far.alpn), (Some(Alpn::Http2), Some(Alpn::Http2)));
    let (near, far) = shake(&pair.web, &pair.orders, ORDERS, None).await;
    assert_eq!((near.unwrap().alpn, far.unwrap().alpn), (None, None));
}

#[tokio::test]
async fn the_second_connection_resumes_and_still_knows_who_is_there() {
    let pair = members();
    let (mut near, mut far) = pair.connected().await;
    // Tickets come with the first bytes.
    far.write_all(b"hello").await.unwrap();
    near.read_exact(&mut [0; 5]).await.unwrap();
    let (near, far) = shake(&pair.web, &pair.orders, ORDERS, None).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    assert!(near.resumed && far.resumed);
    assert_eq!((near.peer.to_string(), far.peer.to_string()), (ORDERS.to_owned(), WEB.to_owned()));
}

#[tokio::test]
async fn a_client_refuses_a_server_that_is_somebody_else() {
    let pair = members();
    let (near, far) = shake(&pair.web, &pair.web, ORDERS, None).await;
    assert_eq!(near.err(), Some(Reason::TlsIdentityMismatch));
    assert_eq!(far.err(), Some(Reason::TlsIdentityMismatch), "it is told");
}

#[tokio::test]
async fn a_server_refuses_strangers_each_for_its_reason_and_tells_them() {
    let authority = Authority::new();
    let orders = mesh(authority.material(ORDERS));
    let past = std::time::SystemTime::now() - Duration::from_secs(60);
    let cases = [
        (Authority::new().sign(&Leaf::of(&[WEB])), Reason::TlsUnknownIssuer),
        (Leaf::of(&[WEB]).self_signed(), Reason::TlsUnknownIssuer),
        (authority.sign(&Leaf { until: past, ..Leaf::of(&[WEB]) }), Reason::TlsCertificateExpired),
        (authority.sign(&Leaf::of(&["spiffe://elsewhere/ns/shop/sa/web"])), Reason::TlsTrustDomain),
        (authority.sign(&Leaf::of(&["https://web.shop"])), Reason::TlsIdentityMismatch),
    ];
    for (key, reason) in cases {
        let stranger = mesh(authority.material_with(WEB, key));
        let (near, far) = shake(&stranger, &orders, ORDERS, None).await;
        assert_eq!(far.err(), Some(reason));
        // In TLS 1.3 a client learns it with its first read.
        let mut near = near.unwrap().stream;
        let error = near.read_u8().await.expect_err("refused");
        assert_eq!(crate::tls::reason(&error), Some(reason));
    }
}

#[tokio::test]
async fn what_is_no_tls_is_refused() {
    let pair = members();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let credentials = pair.orders.credentials().unwrap();
    let far = accept::accept(&credentials, accepted.unwrap().0, b"GET / HTTP/1.1\r\n\r\n", SOON).await;
    assert_eq!(far.err(), Some(Reason::TlsHandshakeFailed));
    drop(near);
}

#[tokio::test]
async fn large_amounts_go_both_ways_at_once() {
    let pair = members();
    let (near, far) = pair.connected().await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(7919) >> 8) as u8).collect();
    let echo = async {
        let (mut reading, mut writing) = tokio::io::split(far);
        tokio::io::copy(&mut reading, &mut writing).await.unwrap();
        writing.shutdown().await.unwrap();
    };
    let talk = async {
        let (mut reading, mut writing) = tokio::io::split(near);
        let send = async {
            writing.write_all(&sent).await.unwrap();
            writing.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let receive = async { reading.read_to_end(&mut received).await.unwrap() };
        tokio::join!(send, receive);
        received
    };
    let ((), received) = tokio::join!(echo, talk);
    assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
}

#[tokio::test]
async fn tickets_do_not_look_like_words_of_the_server() {
    let pair = members();
    let (near, far) = pair.connected().await;
    far.flushed().await.unwrap();
    near.socket().readable().await.unwrap();
    let error = near.try_read(&mut [0]).expect_err("nothing was said");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn decrypted_bytes_wake_who_waits_for_them() {
    let pair = members();
    let (near, mut far) = pair.connected().await;
    far.write_all(b"hello").await.unwrap();
    near.spoken().await.unwrap();
    near.readable().await.unwrap();
    let mut first = [0; 2];
    assert_eq!(near.try_read(&mut first).unwrap(), 2);
    // The socket is empty by now.
    tokio::time::timeout(SOON, near.readable()).await.expect("ready").unwrap();
    let mut rest = BytesMut::with_capacity(16);
    assert_eq!(near.try_read_buf(&mut rest).unwrap(), 3);
    assert_eq!((&first[..], &rest[..]), (&b"he"[..], &b"llo"[..]));
}

#[tokio::test]
async fn slices_share_a_record() {
    let pair = members();
    let (mut near, mut far) = pair.connected().await;
    let slices = [IoSlice::new(b"head"), IoSlice::new(b""), IoSlice::new(b"body")];
    let written = poll_fn(|context| Pin::new(&mut near).poll_write_vectored(context, &slices)).await.unwrap();
    assert_eq!(written, 8);
    let mut room = [0; 16];
    assert_eq!(far.read(&mut room).await.unwrap(), 8);
}

#[tokio::test]
async fn an_end_is_told_from_a_cut() {
    let pair = members();
    let (mut near, mut far) = pair.connected().await;
    near.write_all(b"whole").await.unwrap();
    near.shutdown().await.unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "whole");
    // The other direction goes on.
    far.write_all(b"answer").await.unwrap();
    far.finish().await.unwrap();
    text.clear();
    near.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");

    let (near, mut far) = pair.connected().await;
    drop(near);
    let error = far.read_u8().await.expect_err("cut");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn garbage_in_a_session_breaks_it() {
    let pair = members();
    let (near, mut far) = pair.connected().await;
    let mut raw = match near {
        Stream::Tls(tls) => tls.socket,
        Stream::Plain(_) => unreachable!("it is TLS"),
    };
    raw.write_all(&[0x17, 3, 3, 0, 32]).await.unwrap();
    raw.write_all(&[7; 32]).await.unwrap();
    let error = far.read_u8().await.expect_err("no record of this session");
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_plain_connection_is_no_larger_than_its_socket() {
    assert_eq!(size_of::<Stream>(), size_of::<TcpStream>());
}
