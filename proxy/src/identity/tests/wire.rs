//! Asking over real sockets: who is believed, and who is shown what.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use weft_wire::ca::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};

use super::*;
use crate::connect::{ConnectOptions, Dialer};
use crate::identity::authority::ControlPlane;
use crate::identity::client::Show;

const CONTROL_PLANE: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-control-plane";

/// One question as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    bearer: Option<String>,
    certificate: Option<String>,
}

/// A control plane's certificate service, as `shown`.
async fn serve(
    ca: &Arc<Authority>,
    shown: &str,
    refusal: Option<&'static str>,
) -> (SocketAddr, Arc<Mutex<Vec<Seen>>>) {
    let (chain, key, _) = ca.issue(&Says::id(shown, SystemTime::now(), HOUR));
    let roots = Bundle::parse(ca.root_pem().as_bytes()).unwrap().roots();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (ca, log) = (Arc::clone(ca), Arc::clone(&seen));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, ca, log) = (acceptor.clone(), Arc::clone(&ca), Arc::clone(&log));
            tokio::spawn(async move {
                // A client that does not believe us ends the handshake.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let certificate = stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone());
                let certificate = certificate.map(|leaf| svid::id(&leaf).unwrap().to_string());
                let service = hyper::service::service_fn(move |request| {
                    let (ca, log, certificate) = (Arc::clone(&ca), Arc::clone(&log), certificate.clone());
                    async move { Ok::<_, Infallible>(answer(&ca, &log, certificate, refusal, request).await) }
                });
                let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                drop(http2.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    });
    (address, seen)
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn answer(
    ca: &Authority,
    log: &Mutex<Vec<Seen>>,
    certificate: Option<String>,
    refusal: Option<&str>,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    assert_eq!(request.uri().path(), CREATE_CERTIFICATE);
    let bearer = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    assert!(request.headers().contains_key(weft_wire::ca::SENT_AT));
    log.lock().unwrap().push(Seen { bearer: bearer.clone(), certificate });
    let framed = request.into_body().collect().await.unwrap().to_bytes();
    let asked = CertificateRequest::decode(&framed[5..]).unwrap();
    let mut trailers = http::HeaderMap::new();
    let mut body = BytesMut::new();
    if let Some(refusal) = refusal {
        trailers.insert("grpc-status", "16".parse().unwrap());
        let said = format!("{refusal} {}", bearer.unwrap_or_default());
        trailers.insert("grpc-message", said.parse().unwrap());
    } else {
        let pem = ca.sign(&asked.csr, &Says::id(ORDERS, SystemTime::now(), HOUR));
        let message = CertificateResponse { cert_chain: vec![String::from_utf8(pem).unwrap()] };
        body.put_u8(0);
        body.put_u32(message.encoded_len() as u32);
        message.encode(&mut body).unwrap();
        trailers.insert("grpc-status", "0".parse().unwrap());
    }
    let body = Full::new(body.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    http::Response::builder().header("content-type", "application/grpc").body(body.boxed_unsync()).unwrap()
}

/// An identity that asks there.
fn asks(identity: &Arc<Identity>, address: SocketAddr) -> ControlPlane {
    let dialer = Dialer::new(ConnectOptions { timeout: Duration::from_secs(5), mark: None });
    let known = identity.secure(dialer.clone(), Show::Certificate);
    let stranger = identity.secure(dialer, Show::Nothing);
    ControlPlane::new(format!("https://{address}").parse().unwrap(), known, stranger)
}

fn question(bearer: Option<&str>) -> Question {
    Question { csr: request::Request::new().unwrap().csr, bearer: bearer.map(str::to_owned) }
}

async fn failure(control_plane: &ControlPlane) -> (&'static str, String) {
    let failure = control_plane.ask(question(Some("secret"))).await.expect_err("must not be believed");
    (failure.reason(), failure.to_string())
}

#[tokio::test]
async fn a_token_is_shown_alone_and_a_renewal_by_the_connections_certificate() {
    let ca = Arc::new(Authority::new("mesh"));
    let (address, seen) = serve(&ca, CONTROL_PLANE, None).await;
    let identity = Identity::new(enrolment(Proof::JoinToken(token(&ca))));
    let life = Life::new(Arc::clone(&identity), asks(&identity, address), SystemTime::now);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(life.run(async { drop(stopped.await) }));
    tokio::time::timeout(Duration::from_secs(20), identity.known()).await.expect("a certificate");
    asks(&identity, address).ask(question(None)).await.expect("signed");
    let bearer = Some(format!("Bearer {}", token(&ca).reveal()));
    assert_eq!(
        *seen.lock().unwrap(),
        [Seen { bearer, certificate: None }, Seen { bearer: None, certificate: Some(ORDERS.into()) }]
    );
    drop(stop);
    task.await.unwrap();
}

#[tokio::test]
async fn only_the_control_plane_is_believed() {
    let (ca, other) = (Arc::new(Authority::new("mesh")), Arc::new(Authority::new("other")));
    let ours = Identity::new(enrolment(Proof::JoinToken(token(&ca))));
    // A member of the mesh is not its control plane.
    let (member, seen) = serve(&ca, ORDERS, None).await;
    let (reason, text) = failure(&asks(&ours, member)).await;
    assert!(
        reason == "untrusted" && text.ends_with(&format!("it is {ORDERS}, not {CONTROL_PLANE}")),
        "{text}"
    );
    // Another mesh's control plane is not ours.
    let (foreign, foreign_seen) = serve(&other, CONTROL_PLANE, None).await;
    let (reason, text) = failure(&asks(&ours, foreign)).await;
    assert!(reason == "untrusted" && text.contains("join token names another root"), "{text}");
    // Who has a bundle does not care for pins.
    ours.trust(Bundle::parse(other.root_pem().as_bytes()).unwrap());
    asks(&ours, foreign).ask(question(Some("secret"))).await.expect("the bundle says so");
    let (honest, _) = serve(&ca, CONTROL_PLANE, None).await;
    let (reason, text) = failure(&asks(&ours, honest)).await;
    assert!(reason == "untrusted" && text.contains("UnknownIssuer"), "{text}");
    // Nobody is believed before anybody is named.
    let nobody = Identity::new(enrolment(Proof::ServiceAccount("/nowhere".into())));
    let (reason, text) = failure(&asks(&nobody, honest)).await;
    assert!(reason == "untrusted" && text.contains("nobody is trusted yet"), "{text}");
    assert!(seen.lock().unwrap().is_empty() && foreign_seen.lock().unwrap().len() == 1, "no token was shown");
}

#[tokio::test]
async fn a_refusal_does_not_repeat_the_token_and_a_closed_port_is_nobody() {
    let ca = Arc::new(Authority::new("mesh"));
    let identity = Identity::new(enrolment(Proof::JoinToken(token(&ca))));
    let (address, _) = serve(&ca, CONTROL_PLANE, Some("used:")).await;
    let (reason, text) = failure(&asks(&identity, address)).await;
    assert!(reason == "refused" && text.contains("used: Bearer …"), "{text}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (reason, text) = failure(&asks(&identity, closed)).await;
    assert!(reason == "unreachable" && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn a_certificate_that_the_server_does_not_take_is_a_refusal() {
    let (ca, other) = (Arc::new(Authority::new("mesh")), Arc::new(Authority::new("other")));
    let (address, _) = serve(&ca, CONTROL_PLANE, None).await;
    let identity = Identity::new(enrolment(Proof::JoinToken(token(&ca))));
    testing::renew(&identity, &other, ORDERS);
    identity.trust(Bundle::parse(ca.root_pem().as_bytes()).unwrap());
    let failure = asks(&identity, address).ask(question(None)).await.expect_err("refused");
    assert_eq!(failure.reason(), "refused", "{failure}");
}
