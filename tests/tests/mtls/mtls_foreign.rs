//! Who is no member of the mesh gets nothing: openssl and curl with every wrong certificate, in front of a strict port; and
//! an endpoint that is not who it must be, in front of a caller.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use http::StatusCode;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::process::Command;
use weft_control_plane::ca::authority::Offer;
use weft_tests::backend::Troupe;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

/// What a caller of `orders` asks for by SNI.
const SERVER_NAME: &str = "orders.shop.sa.cluster.local";
const MEMBER: &str = "spiffe://cluster.local/ns/shop/sa/web";
const STRANGER: &str = "spiffe://elsewhere.example/ns/shop/sa/web";
/// What the app answers, and nobody else.
const ANSWER: &str = "orders, at your service";

/// The sidecar's inbound listener as a service of its own: what is on loopback is known only by what it serves.
const DOOR: &str = "--register=door.shop:8080/http";

const STRICT: &str = "{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {name: strict, namespace: shop}, spec: {mtls: {mode: strict}}}\n";

/// An app that counts what reaches it.
struct App {
    address: SocketAddr,
    reached: Arc<Reached>,
}

#[derive(Default)]
struct Reached {
    connections: AtomicUsize,
    bytes: AtomicUsize,
}

impl App {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let app = Self { address: listener.local_addr()?, reached: Arc::default() };
        let reached = Arc::clone(&app.reached);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                reached.connections.fetch_add(1, Ordering::SeqCst);
                let reached = Arc::clone(&reached);
                tokio::spawn(async move {
                    let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
                    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                        reached.bytes.fetch_add(count, Ordering::SeqCst);
                        request.extend_from_slice(&buffer[..count]);
                        if request.ends_with(b"\r\n\r\n") {
                            request.clear();
                            let length = ANSWER.len();
                            let answer =
                                format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{ANSWER}");
                            if stream.write_all(answer.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Ok(app)
    }

    /// Connections and bytes.
    fn reached(&self) -> (usize, usize) {
        let Reached { connections, bytes } = &*self.reached;
        (connections.load(Ordering::SeqCst), bytes.load(Ordering::SeqCst))
    }
}

/// An authority whose key the test has: it signs whatever it likes.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// What goes along with a leaf.
    chain: String,
    root: String,
}

impl Signer {
    /// Also writes what an operator brings, if there is a `directory` for it.
    fn make(domain: &str, directory: Option<&Path>) -> anyhow::Result<Self> {
        let mut serial = [0; 16];
        let mut random = || {
            fastrand::fill(&mut serial);
            serial
        };
        let offer = Offer::make(domain, SystemTime::now(), &mut random)?;
        let (chain, root) = (offer.issuer.certificate.to_pem(), offer.roots[0].certificate.to_pem());
        let key = offer.issuer.key.to_pem();
        if let Some(directory) = directory {
            std::fs::create_dir(directory)?;
            let files = [("tls.crt", &chain), ("tls.key", &key), ("ca.crt", &root)];
            for (name, text) in files {
                std::fs::write(directory.join(name), text)?;
            }
        }
        let key = KeyPair::from_pem(&key)?;
        let issuer = Issuer::from_ca_cert_der(&offer.issuer.certificate.der, key)?;
        Ok(Self { issuer, chain, root })
    }

    /// A certificate with its key and chain, for openssl and curl.
    fn sign(&self, leaf: &Leaf) -> anyhow::Result<String> {
        let key = KeyPair::generate()?;
        let certificate = leaf.params()?.signed_by(&key, &self.issuer)?.pem();
        Ok([certificate, self.chain.clone(), key.serialize_pem()].concat())
    }
}

/// What a certificate says.
struct Leaf {
    names: Vec<SanType>,
    /// Ends so long ago.
    over: Option<Duration>,
    purpose: ExtendedKeyUsagePurpose,
}

impl Leaf {
    fn of(uris: &[&str]) -> anyhow::Result<Self> {
        let names = uris.iter().map(|&uri| Ok(SanType::URI(uri.try_into()?)));
        let names = names.collect::<Result<_, rcgen::Error>>()?;
        Ok(Self { names, over: None, purpose: ExtendedKeyUsagePurpose::ClientAuth })
    }

    fn params(&self) -> anyhow::Result<CertificateParams> {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (now - hour).into();
        params.not_after = self.over.map_or(now + hour, |over| now - over).into();
        params.subject_alt_names.clone_from(&self.names);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![self.purpose.clone()];
        Ok(params)
    }

    fn self_signed(&self) -> anyhow::Result<String> {
        let key = KeyPair::generate()?;
        Ok([self.params()?.self_signed(&key)?.pem(), key.serialize_pem()].concat())
    }
}

/// Every wrong certificate: what is wrong, PEM, the reason, and the alert that its owner hears (RFC 8446 §6.2).
fn refused(mesh: &Signer) -> anyhow::Result<Vec<(&'static str, String, &'static str, u8)>> {
    let (foreign, elsewhere) =
        (Signer::make("cluster.local", None)?, Signer::make("elsewhere.example", None)?);
    let member = Leaf::of(&[MEMBER])?;
    let stranger = Leaf::of(&[STRANGER])?;
    let over = Leaf { over: Some(Duration::from_secs(60)), ..Leaf::of(&[MEMBER])? };
    let server = Leaf { purpose: ExtendedKeyUsagePurpose::ServerAuth, ..Leaf::of(&[MEMBER])? };
    let host = Leaf { names: vec![SanType::DnsName(SERVER_NAME.try_into()?)], ..Leaf::of(&[])? };
    let two = Leaf::of(&[MEMBER, "spiffe://cluster.local/ns/shop/sa/admin"])?;
    Ok(vec![
        ("another mesh", elsewhere.sign(&stranger)?, "tls_trust_domain", 46),
        ("another trust domain, signed here", mesh.sign(&stranger)?, "tls_trust_domain", 46),
        ("a root that nobody knows", foreign.sign(&member)?, "tls_unknown_issuer", 48),
        ("self-signed", member.self_signed()?, "tls_unknown_issuer", 48),
        ("expired", mesh.sign(&over)?, "tls_certificate_expired", 45),
        ("no name", mesh.sign(&Leaf::of(&[])?)?, "tls_identity_mismatch", 49),
        ("a host's name", mesh.sign(&host)?, "tls_identity_mismatch", 49),
        ("no SPIFFE name", mesh.sign(&Leaf::of(&["https://web.shop"])?)?, "tls_identity_mismatch", 49),
        ("two names", mesh.sign(&two)?, "tls_identity_mismatch", 49),
        ("not for clients", mesh.sign(&server)?, "tls_identity_mismatch", 49),
    ])
}

/// What a program of others says.
#[derive(Debug)]
struct Said {
    well: bool,
    out: String,
    err: String,
}

/// Foreign clients of the sidecar at `to`.
struct Clients {
    to: SocketAddr,
    /// The root by which they know the sidecar.
    root: PathBuf,
    directory: PathBuf,
}

impl Clients {
    fn own(&self, pem: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join("own.pem");
        std::fs::write(&path, pem)?;
        Ok(path)
    }

    /// A request over TLS, with the certificate in `own`.
    async fn curl(&self, own: Option<&Path>) -> anyhow::Result<Said> {
        let mut command = Command::new("curl");
        // The name in the sidecar's certificate is no host's.
        command.args(["-sS", "--max-time", "10", "--tlsv1.3", "--http1.1", "--insecure"]);
        command.args(["--resolve", &format!("{SERVER_NAME}:{}:{}", self.to.port(), self.to.ip())]);
        if let Some(own) = own {
            command.arg("--cert").arg(own);
        }
        command.arg(format!("https://{SERVER_NAME}:{}/orders/42", self.to.port()));
        run(command, "").await
    }

    /// As curl, but it believes only the mesh's root, and says which alert it heard. Without a request it only listens.
    async fn openssl(&self, own: Option<&Path>, more: &[&str], request: &str) -> anyhow::Result<Said> {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &self.to.to_string(), "-servername", SERVER_NAME]);
        command.arg("-CAfile").arg(&self.root);
        command.args(["-verify_return_error", "-alpn", "http/1.1", "-quiet"]);
        if let Some(own) = own {
            command.arg("-cert").arg(own).arg("-key").arg(own).arg("-cert_chain").arg(own);
        }
        run(
            {
                command.args(more);
                command
            },
            request,
        )
        .await
    }
}

/// Runs a program until it ends by itself; its input stays open.
async fn run(mut command: Command, input: &str) -> anyhow::Result<Said> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("tests/setup.sh installs curl and openssl")?;
    let mut stdin = child.stdin.take().context("piped")?;
    stdin.write_all(input.as_bytes()).await?;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output.with_context(|| format!("{command:?} does not end"))??;
    drop(stdin);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { well: output.status.success(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// How handshakes of one direction ended at a sidecar.
async fn handshakes(sidecar: &Sidecar, direction: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let page = client::once(sidecar.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
    let begins = format!("weft_tls_handshakes_total{{direction=\"{direction}\",result=\"");
    let text = String::from_utf8_lossy(&page.body);
    let ended = text.lines().filter_map(|line| line.strip_prefix(&begins)?.split_once("\"} "));
    ended.map(|(result, count)| Ok((result.to_owned(), count.parse()?))).collect()
}

/// Waits until what `begun` counted has become so many more, by result, and nothing else.
async fn counted(
    sidecar: &Sidecar,
    begun: &BTreeMap<String, u64>,
    more: &[(&str, u64)],
) -> anyhow::Result<()> {
    let mut wanted = begun.clone();
    for &(result, more) in more {
        *wanted.entry(result.to_owned()).or_default() += more;
    }
    poll::until(&format!("{more:?} are counted"), PATIENCE, async || {
        let now = handshakes(sidecar, "inbound").await?;
        ensure!(now == wanted, "{now:?}, and it was {begun:?}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_gives_no_byte_of_a_stranger_to_the_app_and_tells_each_why() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let brought = directory.path().join("ca");
    let mesh = Signer::make("cluster.local", Some(&brought))?;
    let plane = Plane::start_mutual(STRICT, &[&format!("--ca-dir={}", brought.display())]).await?;
    let app = App::start().await?;
    let forward = format!("--inbound-forward={}", app.address);
    let flags = [forward.as_str(), DOOR, "--pod-ips=127.0.0.1"];
    let sidecar = Sidecar::join(directory.path(), &plane, "orders", &flags).await?;
    let to = sidecar.address("/inbound")?;
    let root = directory.path().join("root.pem");
    std::fs::write(&root, &mesh.root)?;
    let clients = Clients { to, root, directory: directory.path().to_owned() };
    poll::until("the port is strict", PATIENCE, async || {
        let answer = client::once(to, &Ask::get("/", "orders")).await?;
        ensure!(answer.header("x-weft-reason") == Some("tls_required; by=server_proxy"), "{answer:?}");
        anyhow::Ok(())
    })
    .await?;

    // A member is answered, so that all others are refused for what is wrong with them and nothing else.
    let good = clients.own(&mesh.sign(&Leaf::of(&[MEMBER])?)?)?;
    let begun = handshakes(&sidecar, "inbound").await?;
    let curl = clients.curl(Some(&good)).await?;
    ensure!(curl.well && curl.out == ANSWER, "{curl:?}");
    let request = "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    let openssl = clients.openssl(Some(&good), &[], request).await?;
    ensure!(openssl.out.ends_with(ANSWER), "{openssl:?}");
    counted(&sidecar, &begun, &[("full", 2)]).await?;
    let before = app.reached();
    ensure!(before.0 > 0 && before.1 > 0, "the app counts: {before:?}");

    for (what, own, reason, alert) in refused(&mesh)? {
        let own = clients.own(&own)?;
        let begun = handshakes(&sidecar, "inbound").await?;
        let curl = clients.curl(Some(&own)).await?;
        ensure!(!curl.well && curl.out.is_empty(), "{what}: {curl:?}");
        let openssl = clients.openssl(Some(&own), &[], "").await?;
        ensure!(openssl.err.contains(&format!("SSL alert number {alert}\n")), "{what}: {openssl:?}");
        counted(&sidecar, &begun, &[(reason, 2)]).await.context(what)?;
    }

    let begun = handshakes(&sidecar, "inbound").await?;
    let curl = clients.curl(None).await?;
    ensure!(!curl.well && curl.out.is_empty(), "no certificate: {curl:?}");
    let openssl = clients.openssl(None, &[], "").await?;
    ensure!(openssl.err.contains("SSL alert number 116\n"), "no certificate: {openssl:?}");
    counted(&sidecar, &begun, &[("tls_certificate_missing", 2)]).await?;

    let good = clients.own(&mesh.sign(&Leaf::of(&[MEMBER])?)?)?;
    let begun = handshakes(&sidecar, "inbound").await?;
    let openssl = clients.openssl(Some(&good), &["-tls1_2"], "").await?;
    ensure!(openssl.err.contains("SSL alert number 70\n"), "TLS 1.2: {openssl:?}");
    counted(&sidecar, &begun, &[("tls_handshake_failed", 1)]).await?;

    let begun = handshakes(&sidecar, "inbound").await?;
    let mut plain = Command::new("curl");
    plain.args(["-sS", "--max-time", "10", "-i", &format!("http://{to}/orders/42")]);
    let plain = run(plain, "").await?;
    let wanted = ["HTTP/1.1 403 ", "x-weft-reason: tls_required; by=server_proxy"];
    ensure!(wanted.iter().all(|text| plain.out.contains(text)), "{plain:?}");
    counted(&sidecar, &begun, &[("tls_required", 1)]).await?;

    assert_eq!(app.reached(), before, "connections and bytes at the app: not one of a stranger");
    sidecar.stop().await?;
    plane.stop().await;
    Ok(())
}

/// `orders`, whose pod is at `port` of loopback.
fn orders(port: u16) -> String {
    format!(
        "\
{{apiVersion: v1, kind: Service, metadata: {{name: orders, namespace: shop}}, spec: {{clusterIP: 10.96.0.1, ports: [{{name: web, port: 8080, appProtocol: http}}]}}}}
---
{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: orders, namespace: shop, labels: {{kubernetes.io/service-name: orders}}}}, addressType: IPv4, ports: [{{name: web, port: {port}}}], endpoints: [{{addresses: [127.0.0.1]}}]}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: orders-1, namespace: shop, labels: {{app.kubernetes.io/name: orders}}}}, spec: {{serviceAccountName: orders}}, status: {{podIP: 127.0.0.1}}}}
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_sends_nothing_to_an_endpoint_that_is_somebody_else() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let plane = Plane::start_mutual("", &[]).await?;
    let app = Troupe::start(2)?;
    let [own, other] = [0, 1].map(|at| format!("--inbound-forward={}", app.backends[at].address));
    let flags = [own.as_str(), DOOR, "--pod-ips=127.0.0.1"];
    let callee = Sidecar::join(directory.path(), &plane, "orders", &flags).await?;
    // A member of the mesh, but not who is meant.
    let flags = [other.as_str(), "--pod-ips=127.0.0.2"];
    let impostor = Sidecar::join(directory.path(), &plane, "payments", &flags).await?;
    plane.apply(&orders(callee.address("/inbound")?.port()))?;
    let flags = ["--outbound-forward=127.0.0.1:0=orders.shop:8080", "--pod-ips=127.0.0.9"];
    let caller = Sidecar::join(directory.path(), &plane, "web", &flags).await?;
    let door = caller.address("/forwards/0")?;
    let call = async || client::once(door, &Ask::get("/", "orders").header("x-key", "called")).await;
    poll::until("orders is called by mutual TLS", PATIENCE, async || {
        let answer = call().await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        ensure!(handshakes(&caller, "outbound").await?.get("full").is_some_and(|&count| count > 0), "plain");
        anyhow::Ok(())
    })
    .await?;

    // Whoever answers at orders' address from now on is payments.
    plane.apply(&orders(impostor.address("/inbound")?.port()))?;
    let refused = poll::until("the endpoint moves", PATIENCE, async || {
        let answer = call().await?;
        ensure!(answer.status != StatusCode::OK, "still served");
        anyhow::Ok(answer)
    })
    .await?;
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    assert_eq!(refused.header("x-weft-reason"), Some("tls_identity_mismatch; by=client_proxy"));
    let ended = handshakes(&caller, "outbound").await?;
    ensure!(ended.get("tls_identity_mismatch").is_some_and(|&count| count > 0), "{ended:?}");
    let arrived = app.arrivals("called");
    ensure!(arrived.iter().all(|arrival| arrival.backend == "b0"), "somebody else was told: {arrived:?}");

    // And back: the caller bears no grudge against the address's rightful owner.
    plane.apply(&orders(callee.address("/inbound")?.port()))?;
    poll::until("orders is called again", PATIENCE, async || {
        let answer = call().await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        anyhow::Ok(())
    })
    .await?;
    for sidecar in [caller, impostor, callee] {
        sidecar.stop().await?;
    }
    plane.stop().await;
    Ok(())
}
