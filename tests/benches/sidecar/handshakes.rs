//! What a new connection of mutual TLS costs the callee: both certificates verified, nothing resumed, one request answered.
//!
//! The request is there because only its answer shows that the callee has accepted the caller's certificate.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme};

use crate::peer::Running;
use crate::pki::Pki;

/// Callers at once: enough that the callee's core never waits for one.
const CALLERS: usize = 8;

pub(crate) struct Handshakes {
    cpu_us: f64,
    per_second: f64,
}

impl Handshakes {
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu_us
    }
}

impl fmt::Display for Handshakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cpu_us_per_handshake={:.0} handshakes_per_cpu_second={:.0} handshakes_per_second={:.0}",
            self.cpu_us,
            1e6 / self.cpu_us,
            self.per_second
        )
    }
}

/// Shakes hands with the callee of a pair for `seconds`.
pub(crate) fn measure(running: &Running, pki: &Pki, seconds: u32) -> anyhow::Result<Handshakes> {
    let (port, config) = (running.callee.context("no pair")?, Arc::new(config(pki)?));
    let (before, begun) = (running.cpu_nanos()?, Instant::now());
    let until = begun + Duration::from_secs(seconds.into());
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let callers: Vec<_> = (0..CALLERS)
            .map(|_| {
                scope.spawn(|| {
                    to_load_core()?;
                    while Instant::now() < until {
                        shake(port, &config)?;
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        callers.into_iter().try_for_each(|caller| caller.join().expect("a caller does not panic"))
    })?;
    let (count, cpu) = (count.into_inner() as f64, (running.cpu_nanos()? - before) as f64);
    Ok(Handshakes { cpu_us: cpu / 1e3 / count, per_second: count / begun.elapsed().as_secs_f64() })
}

/// One connection, made and used.
pub(crate) fn once(running: &Running, pki: &Pki) -> anyhow::Result<()> {
    shake(running.callee.context("no pair")?, &Arc::new(config(pki)?))
}

fn shake(port: u16, config: &Arc<ClientConfig>) -> anyhow::Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let name = ServerName::try_from("server.bench.sa.cluster.local")?;
    let mut connection = ClientConnection::new(Arc::clone(config), name)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    connection.writer().write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    connection.complete_io(&mut socket)?;
    let mut answer = [0; 12];
    rustls::Stream::new(&mut connection, &mut socket).read_exact(&mut answer)?;
    anyhow::ensure!(answer.ends_with(b"200"), "answered {:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

fn to_load_core() -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(crate::peer::LOAD_CORE.parse()?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cores)?)
}

fn config(pki: &Pki) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_file_iter(&pki.client.chain)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&pki.client.key)?;
    let anybody = Arc::new(Anybody(provider.signature_verification_algorithms));
    let mut config = ClientConfig::builder_with_provider(provider as Arc<CryptoProvider>)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(anybody)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whom a caller talks to is not measured here.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
