//! A `Secret` with a validation context → the roots of the mesh.
//!
//! In: the `Any`. Out: a [`Bundle`]. Whatever else a validation context may ask for (names, hashes, revocation lists) would
//! have to be enforced, and is not; it is refused by name.

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use envoy_types::pb::google::protobuf::Any;

use super::{Invalid, decode, same_name};
use crate::identity::Bundle;

/// Reads the trust bundle.
pub(in crate::xds) fn trust_bundle(name: &str, any: &Any) -> Result<Bundle, Invalid> {
    const ROOTS: &str = "validation_context.trusted_ca";
    let secret: Secret = decode(any, "secret")?;
    same_name("name", &secret.name, name)?;
    let context = match secret.r#type {
        Some(Type::ValidationContext(context)) => context,
        Some(_) => return Err(Invalid::unsupported("type", "a secret other than a validation context")),
        None => return Err(Invalid::missing("validation_context")),
    };
    let asks_for_more = [
        ("crl", context.crl.is_some()),
        ("match_typed_subject_alt_names", !context.match_typed_subject_alt_names.is_empty()),
        ("verify_certificate_spki", !context.verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !context.verify_certificate_hash.is_empty()),
        ("custom_validator_config", context.custom_validator_config.is_some()),
    ];
    if let Some((field, _)) = asks_for_more.into_iter().find(|(_, asked)| *asked) {
        return Err(Invalid::unsupported(
            format!("validation_context.{field}"),
            "a check of the mesh's bundle",
        ));
    }
    let source = context.trusted_ca.and_then(|source| source.specifier);
    let pem = match source {
        Some(Specifier::InlineBytes(bytes)) => bytes,
        Some(Specifier::InlineString(text)) => text.into_bytes(),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            return Err(Invalid::unsupported(ROOTS, "anything but inline roots"));
        }
        None => return Err(Invalid::missing(ROOTS)),
    };
    Bundle::parse(&pem).map_err(|source| Invalid::Bundle { field: ROOTS, source })
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::DataSource;
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
        CertificateValidationContext, TlsCertificate,
    };
    use prost::{Message as _, Name as _};
    use weft_wire::tls::TRUST_BUNDLE;

    use super::super::explain;
    use super::*;
    use crate::identity::testing::Authority;

    fn secret(r#type: Option<Type>) -> Any {
        let secret = Secret { name: TRUST_BUNDLE.into(), r#type };
        Any { type_url: Secret::type_url(), value: secret.encode_to_vec() }
    }

    fn roots(specifier: Option<Specifier>) -> Option<Type> {
        let trusted_ca = Some(DataSource { specifier, ..Default::default() });
        Some(Type::ValidationContext(CertificateValidationContext { trusted_ca, ..Default::default() }))
    }

    #[test]
    fn roots_come_inline() {
        let pem = Authority::new("a").root_pem();
        for specifier in [Specifier::InlineString(pem.clone()), Specifier::InlineBytes(pem.into_bytes())] {
            let bundle = trust_bundle(TRUST_BUNDLE, &secret(roots(Some(specifier)))).expect("roots");
            assert_eq!(bundle.len(), 1);
        }
    }

    #[test]
    fn what_is_no_bundle_is_refused_by_field() {
        let pem = Authority::new("a").root_pem();
        let mut more = CertificateValidationContext {
            trusted_ca: Some(DataSource {
                specifier: Some(Specifier::InlineString(pem)),
                ..Default::default()
            }),
            ..Default::default()
        };
        more.verify_certificate_hash.push("00".into());
        for (r#type, says) in [
            (None, "validation_context is missing"),
            (Some(Type::TlsCertificate(TlsCertificate::default())), "type"),
            (roots(None), "validation_context.trusted_ca is missing"),
            (roots(Some(Specifier::InlineString(String::new()))), "trusted_ca: it holds no certificate"),
            (roots(Some(Specifier::InlineBytes(b"not PEM".to_vec()))), "trusted_ca: it holds no certificate"),
            (roots(Some(Specifier::Filename("/etc/passwd".into()))), "trusted_ca"),
            (Some(Type::ValidationContext(more)), "verify_certificate_hash"),
        ] {
            let error = trust_bundle(TRUST_BUNDLE, &secret(r#type)).expect_err("refused");
            assert!(explain(&error).contains(says), "{}", explain(&error));
        }
        assert!(trust_bundle("other", &secret(None)).is_err());
    }
}
