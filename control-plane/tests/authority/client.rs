//! A control plane with an authority, and a sidecar's side of asking it for certificates.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser as _;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use weft_control_plane::app::App;
use weft_control_plane::config::Config as Settings;
use weft_wire::ca::{self, CertificateRequest, CertificateResponse};
use x509_parser::prelude::FromDer as _;

const FAR: Duration = Duration::from_secs(15);

/// What differs from test to test.
#[derive(Clone, Default)]
pub(crate) struct Config {
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) arguments: Vec<String>,
}

/// A running control plane.
pub(crate) struct Run {
    app: App,
    pub(crate) tls: SocketAddr,
    pub(crate) api: SocketAddr,
}

impl Run {
    pub(crate) async fn start(config: Config) -> Self {
        let mut arguments: Vec<String> = ["weft-control-plane", "--control-tls-listen", "127.0.0.1:0"]
            .into_iter()
            .chain(["--api-listen", "127.0.0.1:0", "--otlp-grpc-listen", "off", "--otlp-http-listen", "off"])
            .map(str::to_owned)
            .collect();
        if let Some(directory) = config.data_dir {
            arguments.extend(["--data-dir".to_owned(), directory.display().to_string()]);
        }
        arguments.extend(config.arguments);
        let app = App::start(Settings::parse_from(arguments)).await.unwrap();
        let bound = app.bound();
        Self { app, tls: bound.control_tls.unwrap(), api: bound.api.unwrap() }
    }

    pub(crate) async fn stop(self) {
        tokio::time::timeout(FAR, self.app.stop(std::future::pending())).await.expect("ends");
    }

    pub(crate) async fn token(&self, namespace: &str, name: &str) -> String {
        self.token_for(namespace, name, 900).await
    }

    pub(crate) async fn token_for(&self, namespace: &str, name: &str, ttl: u64) -> String {
        let wanted = format!(r#"{{"namespace":"{namespace}","name":"{name}","ttl_seconds":{ttl}}}"#);
        let answer = self.api_post("/api/tokens", &wanted).await;
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        let made: serde_json::Value = serde_json::from_str(body(&answer)).unwrap();
        made["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn revoke(&self, token: &str) {
        let id = token.split('.').nth(1).unwrap();
        let answer = self.http(&format!("DELETE /api/tokens/{id}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    }

    pub(crate) async fn api_get(&self, path: &str) -> String {
        self.http(&format!("GET {path}"), "").await
    }

    pub(crate) async fn api_post(&self, path: &str, json: &str) -> String {
        self.http(&format!("POST {path}"), json).await
    }

    /// `/api/ca`.
    pub(crate) async fn overview(&self) -> serde_json::Value {
        serde_json::from_str(body(&self.api_get("/api/ca").await)).unwrap()
    }

    async fn http(&self, what: &str, json: &str) -> String {
        let mut stream = TcpStream::connect(self.api).await.unwrap();
        let request = format!(
            "{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{json}",
            json.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// The value of a metric's line that begins so.
    pub(crate) async fn metric(&self, begins: &str) -> f64 {
        let metrics = self.api_get("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with(begins));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    pub(crate) async fn refused(&self, word: &str) -> f64 {
        self.metric(&format!("weft_ca_refused_total{{reason=\"{word}\"}}")).await
    }

    /// Asks for a certificate, on a connection of its own that is proved by `own`.
    pub(crate) async fn ask(&self, own: Option<&Identity>, request: Request) -> Result<Identity, Status> {
        let channel = self.connect(own).await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
        let message = CertificateRequest { csr: request.csr(), validity_duration: request.validity };
        let mut message = tonic::Request::new(message);
        if let Some(token) = &request.bearer {
            message.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        if let Some(behind) = request.behind {
            let at = SystemTime::now() - Duration::from_secs(behind);
            let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
            message.metadata_mut().insert(ca::SENT_AT, at.to_string().parse().unwrap());
        }
        let codec = ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = http::uri::PathAndQuery::from_static(ca::CREATE_CERTIFICATE);
        let response = grpc.unary(message, path, codec).await?.into_inner();
        let chain = response.cert_chain.iter().map(|pem| pem::parse(pem).unwrap().into_contents().into());
        Ok(Identity { chain: chain.collect(), key: request.key })
    }

    pub(crate) async fn connect(&self, own: Option<&Identity>) -> Result<Channel, tonic::transport::Error> {
        let config = Arc::new(client(own));
        let address = self.tls;
        let connector = tower::service_fn(move |_: http::Uri| {
            let connector = TlsConnector::from(Arc::clone(&config));
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("weft-control-plane.weft-system.sa.cluster.local").unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
            }
        });
        Endpoint::from_static("http://control").connect_with_connector(connector).await
    }
}

/// Looks until something is there.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(mut look: impl FnMut() -> F) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("in time")
}

pub(crate) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// Trusts whoever answers: what a server proves is tested elsewhere.
#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn client(own: Option<&Identity>) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty());
    let mut config = match own {
        Some(own) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.key.serialized_der().to_vec()));
            builder.with_client_auth_cert(own.chain.clone(), key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.dangerous().set_certificate_verifier(Arc::new(Anybody(provider)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// A key and its certificate.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Arc<KeyPair>,
}

impl Identity {
    fn leaf<T>(&self, read: impl FnOnce(&x509_parser::certificate::X509Certificate<'_>) -> T) -> T {
        read(&x509_parser::certificate::X509Certificate::from_der(&self.chain[0]).unwrap().1)
    }

    /// The one URI name.
    pub(crate) fn id(&self) -> String {
        self.leaf(|leaf| {
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            match names.value.general_names.as_slice() {
                [x509_parser::extensions::GeneralName::URI(uri)] => (*uri).to_owned(),
                other => panic!("{other:?}"),
            }
        })
    }

    pub(crate) fn serial(&self) -> String {
        self.leaf(|leaf| leaf.raw_serial_as_string())
    }

    /// How long ago its life began.
    pub(crate) fn age(&self) -> Duration {
        let begins = self.leaf(|leaf| leaf.validity().not_before.timestamp());
        let begins = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(begins).unwrap());
        SystemTime::now().duration_since(begins).unwrap()
    }

    pub(crate) fn is_only_for_mutual_tls(&self) -> bool {
        self.leaf(|leaf| {
            let usage = leaf.key_usage().unwrap().unwrap().value;
            let extended = leaf.extended_key_usage().unwrap().unwrap().value;
            let only =
                extended.client_auth && extended.server_auth && !extended.any && extended.other.is_empty();
            usage.flags == 1 && only && !leaf.is_ca()
        })
    }

    pub(crate) fn root_pin(&self) -> [u8; 32] {
        let root = self.chain.last().unwrap();
        let (_, root) = x509_parser::certificate::X509Certificate::from_der(root).unwrap();
        assert_eq!(root.subject(), root.issuer(), "the root comes last");
        Sha256::digest(root.public_key().raw).into()
    }
}

/// A request for a certificate.
#[derive(Clone)]
pub(crate) struct Request {
    key: Arc<KeyPair>,
    names: Vec<SanType>,
    raw: Option<String>,
    forged: bool,
    bearer: Option<String>,
    behind: Option<u64>,
    validity: i64,
}

impl Request {
    fn of(key: KeyPair) -> Self {
        let (names, raw, bearer) = (Vec::new(), None, None);
        Self { key: Arc::new(key), names, raw, forged: false, bearer, behind: None, validity: 0 }
    }

    pub(crate) fn new() -> Self {
        Self::of(KeyPair::generate().unwrap())
    }

    pub(crate) fn p384() -> Self {
        Self::of(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap())
    }

    pub(crate) fn ed25519() -> Self {
        Self::of(KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap())
    }

    /// Made by openssl, because nobody else makes keys that weak any more.
    pub(crate) fn rsa(bits: u32) -> Self {
        Self::openssl(&format!("rsa:{bits}"), &[])
    }

    pub(crate) fn p521() -> Self {
        Self::openssl("ec", &["-pkeyopt", "ec_paramgen_curve:P-521"])
    }

    fn openssl(kind: &str, options: &[&str]) -> Self {
        let mut command = std::process::Command::new("openssl");
        command.args(["req", "-new", "-noenc", "-subj", "/", "-keyout", "/dev/null", "-newkey", kind]);
        let made = command.args(options).output().expect("openssl: tests/setup.sh installs it");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self { raw: Some(String::from_utf8(made.stdout).unwrap()), ..Self::new() }
    }

    pub(crate) fn raw(text: &str) -> Self {
        Self { raw: Some(text.to_owned()), ..Self::new() }
    }

    pub(crate) fn wanting(mut self, id: &str) -> Self {
        self.names.push(SanType::URI(id.try_into().unwrap()));
        self
    }

    pub(crate) fn dns(mut self, name: &str) -> Self {
        self.names.push(SanType::DnsName(name.try_into().unwrap()));
        self
    }

    /// Signed by another key than the one in it.
    pub(crate) fn forged(mut self) -> Self {
        self.forged = true;
        self
    }

    pub(crate) fn bearer(mut self, token: &str) -> Self {
        self.bearer = Some(token.to_owned());
        self
    }

    pub(crate) fn behind(mut self, seconds: u64) -> Self {
        self.behind = Some(seconds);
        self
    }

    fn csr(&self) -> String {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.clone_from(&self.names);
        let csr = params.serialize_request(&*self.key).unwrap();
        if !self.forged {
            return csr.pem().unwrap();
        }
        let mut der = csr.der().to_vec();
        let (own, other) = (self.key.der_bytes(), KeyPair::generate().unwrap());
        let at = der.windows(own.len()).position(|window| window == own).unwrap();
        der[at..at + own.len()].copy_from_slice(other.der_bytes());
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
    }
}
