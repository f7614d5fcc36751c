use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

use super::*;
use crate::identity::Slot;
use crate::tls::Mesh;
use crate::tls::fixture::{Authority, mesh};
use crate::worker::tests::{worker, worker_of};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const SOON: Duration = Duration::from_secs(10);

/// A sidecar that serves one connection, the client's end of it, and the app.
struct Scene {
    client: TcpStream,
    app: TcpListener,
}

async fn scene(mesh: Arc<Mesh>, mode: Mode) -> Scene {
    let (listener, app) =
        (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (client, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (stream, peer) = accepted.unwrap();
    let worker = worker_of(mesh);
    let permit = worker.inbound_permits.acquire().unwrap();
    let address = app.local_addr().unwrap();
    let arrival = Arrival { worker, listener: None, unheard: None, app: address, client: peer, mode };
    tokio::task::spawn_local(arrival.proceed(permit, stream.into()));
    Scene { client: client.unwrap(), app }
}

impl Scene {
    /// What the sidecar says until it ends the connection; `None` when it breaks it.
    async fn told(self, say: &[u8]) -> Option<String> {
        self.told_within(say, SOON).await
    }

    async fn told_within(mut self, say: &[u8], time: Duration) -> Option<String> {
        self.client.write_all(say).await.unwrap();
        let mut text = Vec::new();
        let ended = tokio::time::timeout(time, self.client.read_to_end(&mut text)).await.expect("ended");
        // Nobody has come to the app: the next to come is this one.
        let (own, accepted) =
            tokio::join!(TcpStream::connect(self.app.local_addr().unwrap()), self.app.accept());
        assert_eq!(own.unwrap().local_addr().unwrap(), accepted.unwrap().1, "no connection to the app");
        ended.is_ok().then(|| String::from_utf8_lossy(&text).into_owned())
    }
}

fn member() -> Arc<Mesh> {
    mesh(Authority::new().material(ORDERS))
}

/// The first bytes of a client that calls by TLS and this name.
fn hello(name: &str) -> Vec<u8> {
    let config =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn a_strict_port_tells_a_plain_http_client_what_it_needs() {
    LocalSet::new()
        .run_until(async {
            let scene = scene(member(), Mode::Strict).await;
            let told = scene.told(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            assert!(told.starts_with("HTTP/1.1 403 "), "{told}");
            assert!(told.contains("x-weft-reason: tls_required; by=server_proxy\r\n"), "{told}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_strict_port_does_not_wait_for_ever_for_somebody_to_say_who_it_is() {
    LocalSet::new()
        .run_until(async {
            let scene = scene(member(), Mode::Strict).await;
            assert_eq!(scene.told_within(b"", 2 * HANDSHAKE_TIME_MAX).await.as_deref(), Some(""));
        })
        .await;
}

#[tokio::test]
async fn a_strict_port_breaks_off_other_bytes() {
    LocalSet::new()
        .run_until(async {
            assert_eq!(scene(member(), Mode::Strict).await.told(b"\0\x01 no protocol").await, None);
        })
        .await;
}

#[tokio::test]
async fn a_strict_port_takes_every_tls_for_the_meshs() {
    LocalSet::new()
        .run_until(async {
            let scene = scene(member(), Mode::Strict).await;
            let mut hello = hello("api.example.com");
            // And then nothing that could be a certificate of the mesh.
            hello.extend([0x15, 3, 3, 0, 2, 2, 0]);
            scene.told(&hello).await;
        })
        .await;
}

#[tokio::test]
async fn tls_of_the_app_passes_a_permissive_port() {
    LocalSet::new()
        .run_until(async {
            let Scene { mut client, app } = scene(member(), Mode::Permissive).await;
            let hello = hello("api.example.com");
            client.write_all(&hello).await.unwrap();
            let mut came = vec![0; hello.len()];
            app.accept().await.unwrap().0.read_exact(&mut came).await.unwrap();
            assert!(came == hello);
        })
        .await;
}

#[tokio::test]
async fn a_sidecar_without_an_identity_cannot_answer_the_mesh() {
    LocalSet::new()
        .run_until(async {
            let nobody = Mesh::new(Slot::default());
            let scene = scene(nobody, Mode::Permissive).await;
            assert_eq!(scene.told(&hello("orders.shop.sa.cluster.local")).await, None);
        })
        .await;
}

#[tokio::test]
async fn the_app_gets_what_was_inside_of_mutual_tls() {
    LocalSet::new()
        .run_until(async {
            let authority = Authority::new();
            for mode in [Mode::Permissive, Mode::Strict] {
                let Scene { client, app } = scene(mesh(authority.material(ORDERS)), mode).await;
                let web = mesh(authority.material(WEB)).credentials().unwrap();
                let id = ORDERS.parse().unwrap();
                let secured = tls::connect::connect(&web, client, &id, Some(Alpn::Opaque), SOON).await;
                let mut stream = secured.unwrap().stream;
                stream.write_all(b"inside").await.unwrap();
                let mut came = [0; 6];
                let (mut served, _) = app.accept().await.unwrap();
                served.read_exact(&mut came).await.unwrap();
                assert_eq!(&came, b"inside");
                served.write_all(b"answer").await.unwrap();
                drop(served);
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert_eq!(answer, "answer");
            }
        })
        .await;
}

/// What a connection costs while nobody knows yet what it speaks: a client that connects ahead of time may wait
/// here for hours. What comes after is a task of its own.
#[tokio::test]
async fn a_connection_that_says_nothing_is_small() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (stream, peer) = accepted.unwrap();
    let worker = worker(&[]);
    let permit = worker.inbound_permits.acquire().unwrap();
    let accepted = Accepted { stream: stream.into(), client: peer, local: address, original: None, permit };
    let inbound = size_of_val(&serve(Rc::clone(&worker), accepted));
    // With the task's own header it is in the allocator's class of 2,560 bytes; the next one is 3,072.
    assert!(inbound <= 2304, "{inbound} bytes");
    drop(client);
}
