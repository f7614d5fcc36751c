//! The identity for people: what the admin's `/identity` and `weft identity` show.
//!
//! In: what the sidecar has. Out: JSON without anything secret. Times are Unix seconds; a root's `key` is what a join token
//! pins of it.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::bundle::{hex, key_hash};
use super::{Complaint, Identity};
use crate::config::Proof;

impl Identity {
    /// What there is to know, now.
    #[must_use]
    pub fn describe(&self, now: SystemTime) -> Value {
        let state = self.state();
        let certificate = state.leaf.as_ref().map(|leaf| {
            let mut shown = leaf.chain().first().map_or(Value::Null, dates_and_names);
            shown["id"] = leaf.id.to_string().into();
            shown["expired"] = (!leaf.is_valid(now)).into();
            shown["intermediates"] = leaf.chain().iter().skip(1).map(dates_and_names).collect();
            shown
        });
        let roots = |bundle: Option<&super::Bundle>| {
            let certificates = bundle.map_or_else(Vec::new, |bundle| bundle.certificates().to_vec());
            certificates.iter().map(dates_and_names).collect::<Vec<_>>()
        };
        let source = match (&state.mesh, &state.file, &state.first) {
            (Some(_), _, _) => Some("control plane"),
            (None, Some(_), _) => Some("file"),
            (None, None, Some(_)) => Some("first"),
            (None, None, None) => None,
        };
        let failure = state
            .last_failure
            .as_ref()
            .map(|Complaint { reason, text, at }| json!({ "reason": reason, "text": text, "at": unix(*at) }));
        json!({
            "trust_domain": self.enrolment.trust_domain,
            "renewed_by": if self.enrolment.proof == Proof::Directory { "somebody else" } else { "this sidecar" },
            "certificate": certificate,
            "renew_at": state.renew_at.map(unix),
            "roots": roots(state.peers()),
            "roots_from": source,
            "last_failure": failure,
        })
    }
}

fn dates_and_names(der: &CertificateDer<'static>) -> Value {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Value::Null };
    json!({
        "subject": parsed.subject().to_string(),
        "issuer": parsed.issuer().to_string(),
        "serial": parsed.raw_serial_as_string(),
        "not_before": parsed.validity().not_before.timestamp(),
        "not_after": parsed.validity().not_after.timestamp(),
        "key": key_hash(der).map(|hash| hex(&hash)),
    })
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
