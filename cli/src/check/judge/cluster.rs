//! What the API server's answers mean.

use std::time::Duration;

use jiff::Timestamp;
use weft_control_plane::cluster::version::{NATIVE_SIDECARS, OLDEST};

use super::super::catalog::Check;
use super::super::facts::{Cluster, Installed, Lease, Replica};
use super::{Outcome, injector, known, unanswered};
use crate::kubernetes::{CONTROL_PLANE, NAMESPACE, Trouble};

/// Meshes that inject, by how the configurations of their webhooks begin.
const OTHERS: [(&str, &str); 5] = [
    ("istio-sidecar-injector", "Istio"),
    ("istio-revision-tag", "Istio"),
    ("linkerd-proxy-injector", "Linkerd"),
    ("kuma-", "Kuma"),
    ("consul-connect-injector", "Consul"),
];
/// Kinds of the Gateway API that we follow.
const GATEWAY: [&str; 2] = ["HTTPRoute", "GRPCRoute"];
/// A pod that began anew as often, and lately, has a reason.
const RESTARTS: i32 = 3;
/// Lately.
const RECENT: Duration = Duration::from_secs(3600);

pub(super) fn judge(check: Check, cluster: &Cluster) -> Outcome {
    let judged = match check {
        Check::ApiServer => Ok(api_server(cluster)),
        Check::Version => version(cluster),
        Check::OtherMeshes => other_meshes(cluster),
        Check::Rights => rights(cluster),
        Check::NotInstalled => Ok(not_installed(cluster)),
        Check::GatewayApi => gateway(cluster),
        Check::Namespace => namespace(cluster),
        Check::Webhook => injector::webhook(cluster),
        Check::CaBundle => injector::bundle(cluster),
        check => match &cluster.installed {
            Some(installed) => of_installation(check, installed, cluster),
            None => Ok(Outcome::skip("the installation is not looked at")),
        },
    };
    judged.unwrap_or_else(|outcome| outcome)
}

fn of_installation(check: Check, installed: &Installed, cluster: &Cluster) -> Result<Outcome, Outcome> {
    match check {
        Check::Crds => crds(installed),
        Check::Rbac => rbac(installed),
        Check::Deployment => deployment(installed),
        Check::Pods => pods(installed),
        Check::Restarts => restarts(known(&installed.pods)?, now(cluster)?),
        Check::Lease => lease(&installed.lease, now(cluster)?),
        Check::Leader => leader(installed),
        Check::CaSecret => secret(installed),
        Check::Injects => injector::injects(installed),
        other => unreachable!("{other} is judged elsewhere"),
    }
}

/// What time it is at the API server.
pub(super) fn now(cluster: &Cluster) -> Result<Timestamp, Outcome> {
    let told = known(&cluster.version)?.now;
    told.ok_or_else(|| Outcome::skip("the API server does not say what time it is"))
}

fn api_server(cluster: &Cluster) -> Outcome {
    match &cluster.version {
        Ok(_) => Outcome::passed(cluster.server.clone()),
        Err(Trouble::Forbidden(why)) => {
            Outcome::fail(format!("{} does not let you in: {why}", cluster.server))
        }
        Err(trouble) => Outcome::fail(format!("{}: {trouble}", cluster.server)),
    }
}

fn version(cluster: &Cluster) -> Result<Outcome, Outcome> {
    let version = known(&cluster.version)?;
    let number = (version.major, version.minor);
    Ok(if number < OLDEST {
        Outcome::fail(format!("it is {}, and 1.{} is needed", version.text, OLDEST.1))
    } else if number < NATIVE_SIDECARS {
        Outcome::note(format!(
            "it is {}: sidecars are ordinary containers, which start beside the app; from 1.{} on they start before it",
            version.text, NATIVE_SIDECARS.1
        ))
    } else {
        Outcome::passed(version.text.clone())
    })
}

fn other_meshes(cluster: &Cluster) -> Result<Outcome, Outcome> {
    let webhooks = known(&cluster.webhooks)?;
    let namespaces = known(&cluster.namespaces)?;
    let torn: Vec<String> = namespaces
        .iter()
        .filter(|namespace| namespace.inject.as_deref() == Some("enabled") && !namespace.others.is_empty())
        .map(|namespace| format!("namespace {}: {} too", namespace.name, namespace.others.join(", ")))
        .collect();
    if !torn.is_empty() {
        return Ok(Outcome::fail("pods would get two sidecars that take each other's traffic").about(torn));
    }
    let present: Vec<String> = webhooks
        .iter()
        .filter_map(|webhook| {
            let (_, mesh) = OTHERS.iter().find(|(begin, _)| webhook.name.starts_with(begin))?;
            Some(format!("{mesh} (webhook {})", webhook.name))
        })
        .collect();
    Ok(Outcome::unless_empty(present, || {
        Outcome::note("another mesh is installed; no namespace asks for both, and none should")
    }))
}

fn rights(cluster: &Cluster) -> Result<Outcome, Outcome> {
    let Some(missing) = &cluster.missing_rights else { return Ok(Outcome::skip("not asked")) };
    let missing = known(missing)?.clone();
    Ok(Outcome::unless_empty(missing, || Outcome::fail("you may not")))
}

fn not_installed(cluster: &Cluster) -> Outcome {
    let Some(installed) = &cluster.installed else { return Outcome::skip("not asked") };
    let mut there = Vec::new();
    if let Ok(crds) = &installed.crds {
        there.extend(crds.iter().map(|crd| format!("kind {}", crd.name)));
    }
    if let Ok(deployment) = &installed.deployment {
        let image = deployment.image.as_deref().map(|image| format!(" ({image})")).unwrap_or_default();
        there.push(format!("Deployment {NAMESPACE}/{CONTROL_PLANE}{image}"));
    }
    if let Ok(webhooks) = &cluster.webhooks {
        let ours = webhooks.iter().filter(|webhook| webhook.name == injector::WEBHOOK);
        there.extend(ours.map(|webhook| format!("webhook {}", webhook.name)));
    }
    Outcome::unless_empty(there, || {
        Outcome::warn(
            "some of it is there already: bring it up to date with `weft upgrade | kubectl apply -f -`",
        )
    })
}

fn gateway(cluster: &Cluster) -> Result<Outcome, Outcome> {
    let served = match &cluster.gateway {
        Ok(served) => served,
        Err(Trouble::Missing) => &Vec::new(),
        Err(trouble) => return Err(unanswered(trouble)),
    };
    let is_served = |kind: &str| served.iter().any(|known| known.starts_with(kind));
    let missing: Vec<&str> = GATEWAY.into_iter().filter(|kind| !is_served(kind)).collect();
    Ok(match missing.is_empty() {
        true => Outcome::passed(served.join(", ")),
        false => Outcome::note(format!(
            "not served: {}. Weft works without, and follows them as soon as they are there",
            missing.join(", ")
        )),
    })
}

fn namespace(cluster: &Cluster) -> Result<Outcome, Outcome> {
    let found = known(&cluster.namespaces)?.iter().any(|namespace| namespace.name == NAMESPACE);
    Ok(match found {
        true => Outcome::passed(NAMESPACE),
        false => Outcome::fail(format!(
            "there is no namespace {NAMESPACE}: install Weft with `weft install | kubectl apply -f -`"
        )),
    })
}

fn crds(installed: &Installed) -> Result<Outcome, Outcome> {
    /// Kinds that this program knows.
    const KINDS: [&str; 3] =
        ["accesspolicies.weft.dev", "circuitbreakers.weft.dev", "trafficpolicies.weft.dev"];
    const VERSION: &str = "v1alpha1";
    let there = known(&installed.crds)?;
    let mut wrong = Vec::new();
    for kind in KINDS {
        match there.iter().find(|crd| crd.name == kind) {
            None => wrong.push(format!("{kind} is missing")),
            Some(crd) if !crd.established => wrong.push(format!("{kind} is not established yet")),
            Some(crd) if !crd.served.iter().any(|version| version == VERSION) => {
                wrong.push(format!("{kind} is served as {}, not as {VERSION}", crd.served.join(", ")));
            }
            Some(_) => {}
        }
    }
    if !wrong.is_empty() {
        return Ok(Outcome::fail("the mesh cannot follow its policies").about(wrong));
    }
    let other = there.iter().filter(|crd| crd.ours == Some(false)).map(|crd| crd.name.clone()).collect();
    Ok(Outcome::unless_empty(other, || {
        Outcome::warn("their schemas are of another version: apply those of this one with `weft install`")
    }))
}

fn rbac(installed: &Installed) -> Result<Outcome, Outcome> {
    let missing = known(&installed.missing_rights)?.clone();
    Ok(Outcome::unless_empty(missing, || {
        Outcome::fail(format!("ServiceAccount {NAMESPACE}/{CONTROL_PLANE} may not"))
    }))
}

fn deployment(installed: &Installed) -> Result<Outcome, Outcome> {
    Ok(match &installed.deployment {
        Ok(deployment) => Outcome::Pass { remark: deployment.image.clone() },
        Err(Trouble::Missing) => {
            Outcome::fail(format!("there is no Deployment {CONTROL_PLANE} in {NAMESPACE}"))
        }
        Err(trouble) => unanswered(trouble),
    })
}

fn pods(installed: &Installed) -> Result<Outcome, Outcome> {
    let pods = known(&installed.pods)?;
    let wanted = known(&installed.deployment)?.replicas;
    let ready = pods.iter().filter(|pod| pod.ready).count();
    let enough = wanted > 0 && i32::try_from(ready).is_ok_and(|ready| ready >= wanted);
    let words = |pod: &Replica| match &pod.why {
        Some(why) => format!("{}: {why}", pod.name),
        None => pod.name.clone(),
    };
    let waiting = || pods.iter().filter(|pod| !pod.ready).map(words).collect();
    let count = format!("{ready} of {wanted} are ready");
    Ok(match (enough, ready) {
        (true, _) => Outcome::passed(count),
        (false, 0) => Outcome::fail(count).about(waiting()),
        (false, _) => Outcome::warn(count).about(waiting()),
    })
}

fn restarts(pods: &[Replica], now: Timestamp) -> Result<Outcome, Outcome> {
    let recent = |pod: &&Replica| {
        let since = pod.restarted.map(|at| now.as_second().saturating_sub(at.as_second()));
        pod.restarts >= RESTARTS
            && since.is_some_and(|seconds| u64::try_from(seconds).is_ok_and(|s| s < RECENT.as_secs()))
    };
    let restless =
        pods.iter().filter(recent).map(|pod| format!("{}: {} times", pod.name, pod.restarts)).collect();
    Ok(Outcome::unless_empty(restless, || Outcome::warn("the last time within an hour")))
}

fn lease(lease: &Result<Lease, Trouble>, now: Timestamp) -> Result<Outcome, Outcome> {
    let lease = match lease {
        Ok(lease) => lease,
        Err(Trouble::Missing) => {
            return Ok(Outcome::fail(format!("there is no Lease {CONTROL_PLANE} in {NAMESPACE}")));
        }
        Err(trouble) => return Err(unanswered(trouble)),
    };
    let Some(holder) = lease.holder.as_deref().filter(|holder| !holder.is_empty()) else {
        return Ok(Outcome::fail("nobody holds the Lease: nobody writes status and trust bundles"));
    };
    let Some(renewed) = lease.renewed else {
        return Ok(Outcome::fail(format!("{holder} holds the Lease and never renewed it")));
    };
    let age = now.as_second().saturating_sub(renewed.as_second());
    // Twice, because the clock that wrote it and the one it is compared with are not the same.
    Ok(if age > lease.seconds.saturating_mul(2) {
        Outcome::fail(format!("{holder} holds the Lease of {} s and renewed it {age} s ago", lease.seconds))
    } else {
        Outcome::passed(holder)
    })
}

fn leader(installed: &Installed) -> Result<Outcome, Outcome> {
    let pods = known(&installed.pods)?;
    let holder = known(&installed.lease)?.holder.as_deref().unwrap_or_default();
    let marked: Vec<&str> = pods.iter().filter(|pod| pod.leads).map(|pod| pod.name.as_str()).collect();
    Ok(match marked[..] {
        [] => Outcome::fail(format!(
            "no pod is labelled weft.dev/leader=true: Service {CONTROL_PLANE} leads nowhere"
        )),
        // A run of the program is named after its pod and something that no other run has.
        [one] if holder.starts_with(one) => Outcome::passed(one),
        [one] => Outcome::fail(format!("{one} is labelled, and {holder} holds the Lease")),
        _ => Outcome::fail("several pods are labelled weft.dev/leader=true")
            .about(marked.into_iter().map(str::to_owned).collect()),
    })
}

fn secret(installed: &Installed) -> Result<Outcome, Outcome> {
    match &installed.secret {
        Ok(()) => Ok(Outcome::pass()),
        Err(Trouble::Missing) => Ok(Outcome::fail(format!(
            "there is no Secret weft-ca in {NAMESPACE}: a restart would make a root that no sidecar trusts"
        ))),
        Err(trouble) => Err(unanswered(trouble)),
    }
}
