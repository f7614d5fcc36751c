use std::time::{Duration, SystemTime};

use rustls::crypto::aws_lc_rs;

use super::*;
use crate::tls::fixture::{Authority, Leaf};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn verify(authority: &Authority, key: &rustls::sign::CertifiedKey) -> Result<SpiffeId, Reason> {
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let verifier = Verifier::new(authority.roots(), "cluster.local", algorithms);
    let (leaf, intermediates) = key.cert.split_first().expect("a leaf");
    verifier
        .verify(leaf, intermediates, KeyUsage::client_auth(), UnixTime::now())
        .map_err(|refused| refused.0)
}

#[test]
fn a_certificate_of_the_mesh_says_whose_it_is() {
    let authority = Authority::new();
    let id = verify(&authority, &authority.sign(&Leaf::of(&[ORDERS])));
    assert_eq!(id.map(|id| id.to_string()).as_deref(), Ok(ORDERS));
}

#[test]
fn each_other_certificate_is_refused_for_its_own_reason() {
    let authority = Authority::new();
    let refused = |key| verify(&authority, &key).expect_err("refused");
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    assert_eq!(refused(Authority::new().sign(&Leaf::of(&[ORDERS]))), Reason::TlsUnknownIssuer);
    assert_eq!(refused(Leaf::of(&[ORDERS]).self_signed()), Reason::TlsUnknownIssuer);
    let over = Leaf { until: now - hour, ..Leaf::of(&[ORDERS]) };
    assert_eq!(refused(authority.sign(&over)), Reason::TlsCertificateExpired);
    let early = Leaf { from: now + hour, ..Leaf::of(&[ORDERS]) };
    assert_eq!(refused(authority.sign(&early)), Reason::TlsCertificateExpired);
    let foreign = Leaf::of(&["spiffe://elsewhere/ns/shop/sa/orders"]);
    assert_eq!(refused(authority.sign(&foreign)), Reason::TlsTrustDomain);
    assert_eq!(refused(Authority::new().sign(&foreign)), Reason::TlsTrustDomain);
    for uris in [&[][..], &["https://orders.shop"], &["spiffe://cluster.local/orders"], &[ORDERS, ORDERS]] {
        assert_eq!(refused(authority.sign(&Leaf::of(uris))), Reason::TlsIdentityMismatch, "{uris:?}");
    }
}

#[test]
fn a_server_must_be_whom_its_caller_means() {
    let authority = Authority::new();
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    let verifier = Verifier::new(authority.roots(), "cluster.local", algorithms);
    let key = authority.sign(&Leaf::of(&[ORDERS]));
    let asked = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(&key.cert[0], &[], &name, &[], UnixTime::now()).map(drop)
    };
    assert!(asked("orders.shop.sa.cluster.local").is_ok());
    for name in ["payments.shop.sa.cluster.local", "orders.shop", "orders.shop.sa.elsewhere"] {
        assert_eq!(asked(name), Err(CertificateError::ApplicationVerificationFailure.into()), "{name}");
    }
}

#[test]
fn a_certificate_is_current_between_its_dates() {
    let key = Authority::new().sign(&Leaf::of(&[ORDERS]));
    let day = Duration::from_secs(86_400);
    let at = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        is_current(&key.cert[0], UnixTime::since_unix_epoch(since))
    };
    assert!(at(SystemTime::now()));
    assert!(!at(SystemTime::now() + 2 * day));
    assert!(!at(SystemTime::now() - 2 * day));
}
