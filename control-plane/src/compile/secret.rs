//! Secrets: the trust bundle, which is public in spite of its kind's name. No private key ever passes here.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, secret,
};
use weft_wire::tls::TRUST_BUNDLE;

use super::proto::Fields;
use super::{Resource, finish};
use crate::world::World;

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    let roots = &world.trust().filter(|_| name == TRUST_BUNDLE)?.roots;
    let trusted_ca = DataSource {
        specifier: Some(data_source::Specifier::InlineBytes(roots.as_bytes().to_vec())),
        ..Default::default()
    };
    let context = CertificateValidationContext { trusted_ca: Some(trusted_ca), ..Default::default() };
    let secret =
        Secret { name: TRUST_BUNDLE.to_owned(), r#type: Some(secret::Type::ValidationContext(context)) };
    Some(finish(secret, Vec::<Fields>::new(), |_, _, _| {}, false))
}
