//! What is known of the webhook that brings sidecars into pods, and what it means.

use jiff::Timestamp;
use x509_parser::pem::Pem;

use super::super::facts::{Cluster, DryRun, Installed, Webhook};
use super::{Outcome, cluster, known};

/// The configuration of our webhook.
pub(in crate::check) const WEBHOOK: &str = "weft-injector";
/// A certificate that ends sooner should have been renewed.
const SOON: i64 = 24 * 3600;

fn ours(cluster: &Cluster) -> Result<&Webhook, Outcome> {
    let found = known(&cluster.webhooks)?.iter().find(|webhook| webhook.name == WEBHOOK);
    found.ok_or_else(|| {
        Outcome::fail(format!("there is no MutatingWebhookConfiguration {WEBHOOK}: new pods get no sidecar"))
    })
}

/// Whether it is registered.
pub(super) fn webhook(cluster: &Cluster) -> Result<Outcome, Outcome> {
    let webhook = ours(cluster)?;
    Ok(match webhook.served_by.is_empty() {
        true => Outcome::fail(format!("{WEBHOOK} names no webhook: new pods get no sidecar")),
        false => Outcome::passed(webhook.served_by.join(", ")),
    })
}

/// Whether the API server can check who serves it.
pub(super) fn bundle(cluster: &Cluster) -> Result<Outcome, Outcome> {
    Ok(until(ours(cluster)?, cluster::now(cluster)?))
}

fn until(webhook: &Webhook, now: Timestamp) -> Outcome {
    let mut first: Option<i64> = None;
    for bundle in &webhook.bundles {
        if bundle.is_empty() {
            return Outcome::fail("its caBundle is empty: the control plane has not written it yet");
        }
        let certificates: Result<Vec<i64>, ()> = Pem::iter_from_buffer(bundle)
            .map(|pem| Ok(pem.map_err(drop)?.parse_x509().map_err(drop)?.validity().not_after.timestamp()))
            .collect();
        // While one root follows another both are there: the later one counts.
        let Some(last) = certificates.ok().and_then(|ends| ends.into_iter().max()) else {
            return Outcome::fail("its caBundle cannot be read as certificates");
        };
        first = Some(first.map_or(last, |known| known.min(last)));
    }
    let Some(until) = first else { return Outcome::fail("it names no webhook") };
    let left = until.saturating_sub(now.as_second());
    let date = super::date(until);
    if left <= 0 {
        Outcome::fail(format!("the certificate in its caBundle ended on {date}"))
    } else if left < SOON {
        Outcome::warn(format!("the certificate in its caBundle ends on {date}, and should have been renewed"))
    } else {
        Outcome::passed(format!("until {date}"))
    }
}

/// Whether it does its work.
pub(super) fn injects(installed: &Installed) -> Result<Outcome, Outcome> {
    Ok(match known(&installed.dry_run)? {
        DryRun::Injected => Outcome::pass(),
        DryRun::Plain { namespace, warnings } => Outcome::fail(format!(
            "a pod in namespace {namespace} that asks for a sidecar would get none: the API server does not reach the injector, and \
             lets pods pass that it could not ask about"
        ))
        .about(warnings.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn webhook(bundle: &[u8]) -> Webhook {
        Webhook { name: WEBHOOK.into(), bundles: vec![bundle.into()], served_by: vec!["here".into()] }
    }

    #[test]
    fn a_bundle_must_hold_certificates() {
        let now = Timestamp::UNIX_EPOCH;
        for bad in [&b""[..], b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            assert!(matches!(until(&webhook(bad), now), Outcome::Fail { .. }), "{bad:?}");
        }
        assert!(matches!(until(&Webhook::default(), now), Outcome::Fail { .. }));
    }
}
