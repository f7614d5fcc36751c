//! Who may call what, in words: the policies with what their rules said, and what would become of one call.
//!
//! In: the world, and the counts of decisions by rule. Out: values for the API. Invariant: a decision is made by
//! `world::access`, from which sidecars' filters are compiled too; here it is only explained. Surprise: an identity counts
//! only where a connection can prove one, so the answer also depends on the port's mode of TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_wire::access::{NO_RULE, verdict};
use weft_wire::spelling::Spelling;
use weft_wire::tls::Mode;
use weft_wire::xds::Protocol;
use weft_wire::{ServiceId, ServicePort, SpiffeId, WorkloadId};

use crate::graph::Window;
use crate::rules::{Figures, Series};
use crate::world::access::{AccessView, Action, Ask, Audit, Cause, Judgement, Posture, Speaks, rule_name};
use crate::world::{PolicyId, World};

/// Endpoints in one answer: those of a service are mostly alike.
const ENDPOINTS_MAX: usize = 50;

/// What is asked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Who calls: `namespace/workload`, a service account, a SPIFFE ID, or `-` for somebody without an identity.
    pub from: String,
    /// Who is called: `name.namespace:port`, or an endpoint's address.
    pub to: String,
    /// The method; `GET` if absent.
    pub method: Option<String>,
    /// The path; `/` if absent.
    pub path: Option<String>,
    /// Header fields, `name: value`, one on each line.
    pub headers: Option<String>,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unclear {
    /// What is asked about is not there.
    NotFound(String),
    /// What is asked about cannot be read.
    Malformed(String),
}

/// What would become of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// The caller's identity; `null` is none.
    pub from: Option<String>,
    /// Who is called.
    pub to: String,
    /// What the port speaks: `http` or `bytes`.
    pub speaks: &'static str,
    /// Whether it would go through at all of them.
    pub allowed: bool,
    /// What each endpoint would do.
    pub endpoints: Vec<At>,
    /// How many more there are.
    pub endpoints_left_out: usize,
}

/// What one endpoint would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct At {
    /// Where it is.
    pub address: SocketAddr,
    /// What runs there.
    pub workload: Option<String>,
    /// The port's mode of mutual TLS.
    pub mtls: &'static str,
    /// Whether the call goes through.
    pub allowed: bool,
    /// The rule that decides, as telemetry calls it; `null`: none does.
    pub rule: Option<String>,
    /// Why, in a sentence.
    pub why: String,
    /// What policies that are only audited would do.
    pub audits: Vec<AuditView>,
}

/// What a policy that is only audited would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditView {
    /// `would_allow` or `would_deny`.
    pub verdict: &'static str,
    /// The rule; `null`: none lets the call in.
    pub rule: Option<String>,
    /// Why, in a sentence.
    pub why: String,
}

/// Finds out what would become of a call.
///
/// # Errors
/// When it is not clear who calls or who is called.
pub fn check(world: &World, question: &Question) -> Result<Checked, Unclear> {
    let caller = caller(world, &question.from)?;
    let (to, protocol, addresses) = callees(world, &question.to)?;
    let opaque = matches!(protocol, Some(Protocol::Tcp | Protocol::Tls));
    let headers = headers(question.headers.as_deref().unwrap_or_default())?;
    let method = question.method.as_deref().unwrap_or("GET");
    let path = question.path.as_deref().unwrap_or("/").split(['?', '#']).next().unwrap_or("/");
    if !path.starts_with('/') {
        return Err(Unclear::Malformed(format!("path {path:?} does not begin with a slash")));
    }
    let shown = addresses.iter().take(ENDPOINTS_MAX);
    let endpoints: Vec<At> = shown
        .map(|address| {
            let speaks =
                if opaque { Speaks::Bytes } else { Speaks::Http { method, path, headers: &headers } };
            at(world, *address, caller.as_ref(), speaks)
        })
        .collect();
    Ok(Checked {
        from: caller.map(|caller| caller.to_string()),
        to,
        speaks: if opaque { "bytes" } else { "http" },
        allowed: endpoints.iter().all(|at| at.allowed),
        endpoints_left_out: addresses.len().saturating_sub(ENDPOINTS_MAX),
        endpoints,
    })
}

fn caller(world: &World, text: &str) -> Result<Option<SpiffeId>, Unclear> {
    if matches!(text, "-" | "unauthenticated") {
        return Ok(None);
    }
    if text.starts_with("spiffe://") {
        let id = text.parse();
        return id.map(Some).map_err(|error: weft_wire::InvalidName| Unclear::Malformed(error.to_string()));
    }
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let workload = WorkloadId::new(namespace, name).map_err(|error| Unclear::Malformed(error.to_string()))?;
    // What no workload is called may be a service account all the same.
    let known = world.identity_of_workload(&workload);
    let account = || SpiffeId::new(world.trust_domain(), namespace, name);
    known.map_or_else(account, Ok).map(Some).map_err(|error| Unclear::Malformed(error.to_string()))
}

type Callees = (String, Option<Protocol>, Vec<SocketAddr>);

fn callees(world: &World, text: &str) -> Result<Callees, Unclear> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        let port = world.by_endpoint(address).next();
        let known = port.and_then(|port| world.service(&port.service)?.port(port.port));
        return Ok((text.to_owned(), known.and_then(|port| port.protocol), vec![address]));
    }
    let (host, number) = match text.rsplit_once(':') {
        Some((host, number)) => {
            let number = number.parse::<u16>();
            (host, Some(number.map_err(|_| Unclear::Malformed(format!("{text:?} has no port in numbers")))?))
        }
        None => (text, None),
    };
    let id = match host.split_once('/') {
        Some((namespace, name)) => ServiceId::new(namespace, name),
        None => host.parse(),
    };
    let id = id.map_err(|error| Unclear::Malformed(error.to_string()))?;
    let service = world.service(&id).ok_or_else(|| Unclear::NotFound(format!("there is no service {id}")))?;
    let port = match (number, service.ports.as_slice()) {
        (Some(number), _) => service.port(number),
        (None, [only]) => Some(only),
        (None, _) => {
            let ports: Vec<String> = service.ports.iter().map(|port| port.number.to_string()).collect();
            return Err(Unclear::Malformed(format!("which port of {id}? It has {}", ports.join(", "))));
        }
    };
    let port = port.ok_or_else(|| Unclear::NotFound(format!("service {id} has no such port")))?;
    if port.endpoints.is_empty() {
        return Err(Unclear::NotFound(format!("nobody serves {id}:{}, so nobody decides", port.number)));
    }
    let to = ServicePort { service: id, port: port.number }.to_string();
    Ok((to, port.protocol, port.endpoints.iter().map(|endpoint| endpoint.address).collect()))
}

fn headers(text: &str) -> Result<Vec<(String, String)>, Unclear> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let read = lines.map(|line| {
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| Unclear::Malformed(format!("{line:?} is not `name: value`")))?;
        Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    });
    read.collect()
}

fn at(world: &World, address: SocketAddr, caller: Option<&SpiffeId>, speaks: Speaks<'_>) -> At {
    let view = world.access_at(address);
    let mode = world.mtls_at(address);
    let provable = world.trust().is_some() && mode != Mode::Disabled;
    let peer = world.by_endpoint(address).find_map(|port| {
        let port = world.service(&port.service)?.port(port.port)?;
        port.endpoints.iter().find(|endpoint| endpoint.address == address)?.peer.clone()
    });
    let peer = peer.or_else(|| world.peer_at(address.ip()));
    let refused = |why: &str| At {
        address,
        workload: peer.as_ref().map(|peer| peer.workload.to_string()),
        mtls: mode.word(),
        allowed: false,
        rule: None,
        why: why.to_owned(),
        audits: Vec::new(),
    };
    if mode == Mode::Strict && caller.is_none() {
        return refused("the port takes mutual TLS only, and the caller has no certificate");
    }
    let spelled = match speaks {
        Speaks::Http { path, .. } if view.looks_at_paths() => match Spelling::SAFE.of(path) {
            Ok(spelled) => Some(spelled),
            Err(_) => {
                return refused(
                    "policies look at paths here, and this one has an escaped slash: it could be read in two ways",
                );
            }
        },
        Speaks::Http { .. } | Speaks::Bytes => None,
    };
    let speaks = match (speaks, &spelled) {
        (Speaks::Http { method, headers, .. }, Some(path)) => Speaks::Http { method, path, headers },
        (speaks, _) => speaks,
    };
    let seen = caller.filter(|_| provable);
    let Judgement { allowed, cause, audits } = view.judge(&Ask { caller: seen, speaks });
    let mut why = explain(&view, &cause);
    if let (Some(caller), None) = (caller, seen) {
        let because = if mode == Mode::Disabled {
            "the port takes no mutual TLS"
        } else {
            "nobody issues certificates"
        };
        why = format!("{why}; {caller} counts as nobody there, because {because}");
    }
    At {
        allowed,
        rule: match &cause {
            Cause::Rule(id, index) => Some(rule_name(id, *index)),
            Cause::NoneAllows(_) | Cause::Posture(_) => None,
        },
        audits: audits.iter().map(audit).collect(),
        ..refused(&why)
    }
}

fn explain(view: &AccessView<'_>, cause: &Cause) -> String {
    match cause {
        Cause::Rule(id, index) => {
            let denies = view.policies.iter().any(|(known, it)| *known == id && it.action == Action::Deny);
            format!("rule {index} of {id} {}", if denies { "denies it" } else { "allows it" })
        }
        Cause::NoneAllows(ids) => {
            format!("no rule allows it, and there is {}, which allows others", list(ids))
        }
        Cause::Posture(Posture::Allow) => "no policy says otherwise".to_owned(),
        Cause::Posture(Posture::Deny) => {
            "no policy allows it, and its namespace is closed (weft.dev/default-access: deny)".to_owned()
        }
    }
}

fn audit(audit: &Audit) -> AuditView {
    let (verdict, rule, why) = match audit {
        Audit::WouldDeny(id, index) => {
            (verdict::WOULD_DENY, Some(rule_name(id, *index)), format!("rule {index} of {id} would deny it"))
        }
        Audit::WouldLack(ids) => {
            (verdict::WOULD_DENY, None, format!("no rule would allow it if {} were in force", list(ids)))
        }
        Audit::WouldAllow(id, index) => (
            verdict::WOULD_ALLOW,
            Some(rule_name(id, *index)),
            format!("rule {index} of {id} would allow it"),
        ),
    };
    AuditView { verdict, rule, why }
}

fn list(ids: &[PolicyId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Every policy, and what its rules said.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overview {
    /// The window.
    pub window: &'static str,
    /// How much of it was watched, seconds.
    pub covered_seconds: f64,
    /// The policies, in order.
    pub policies: Vec<PolicyView>,
    /// Calls that no rule let in, by service.
    pub unmatched: Vec<Said>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyView {
    /// `namespace/name`.
    pub name: String,
    /// `Allow` or `Deny`; `null`: it speaks of mutual TLS only.
    pub action: Option<&'static str>,
    /// Whether it is only audited.
    pub audit: bool,
    /// What it is for.
    pub targets: Vec<String>,
    /// What its rules said, by rule and service; only of those that said something.
    pub said: Vec<Said>,
}

/// What was said to calls of one service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Said {
    /// The rule: `AccessPolicy/<namespace>/<name>/<rule>`; `null`: none.
    pub rule: Option<String>,
    /// The service, `name.namespace:port`.
    pub service: String,
    /// How many were let in, each second.
    pub allowed_per_second: f64,
    /// How many were kept out.
    pub denied_per_second: f64,
    /// How many would have been let in.
    pub would_allow_per_second: f64,
    /// How many would have been kept out.
    pub would_deny_per_second: f64,
}

/// The policies and what their rules said.
#[must_use]
pub fn overview(
    world: &World,
    figures: &BTreeMap<Series, Figures>,
    covered: Duration,
    window: Window,
) -> Overview {
    let mut said = collect(figures, covered);
    let unmatched = said.remove(NO_RULE).unwrap_or_default().into_values().collect();
    let policies = world.access_policies().into_iter().map(|spec| {
        let prefix = rule_name(&spec.id, 0);
        let prefix = prefix.trim_end_matches('0');
        let own = said.iter().filter(|(rule, _)| rule.starts_with(prefix));
        PolicyView {
            name: spec.id.name.to_string(),
            action: spec.access.as_ref().map(|access| match access.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            }),
            audit: spec.access.as_ref().is_some_and(|access| access.audit),
            targets: if spec.targets.is_empty() {
                vec![format!("Namespace {}", spec.id.name.namespace)]
            } else {
                spec.targets.iter().map(ToString::to_string).collect()
            },
            said: own.flat_map(|(_, services)| services.values().cloned()).collect(),
        }
    });
    Overview {
        window: window.word(),
        covered_seconds: covered.as_secs_f64(),
        policies: policies.collect(),
        unmatched,
    }
}

fn collect(
    figures: &BTreeMap<Series, Figures>,
    covered: Duration,
) -> BTreeMap<String, BTreeMap<String, Said>> {
    let seconds = covered.as_secs_f64().max(1.0);
    let mut said: BTreeMap<String, BTreeMap<String, Said>> = BTreeMap::new();
    for (Series { service, rule, backend }, figures) in figures {
        let services = said.entry(rule.to_string()).or_default();
        let one = services.entry(service.to_string()).or_insert_with(|| Said {
            rule: (**rule != *NO_RULE).then(|| rule.to_string()),
            service: service.to_string(),
            allowed_per_second: 0.0,
            denied_per_second: 0.0,
            would_allow_per_second: 0.0,
            would_deny_per_second: 0.0,
        });
        let rate = figures.requests as f64 / seconds;
        match &**backend {
            verdict::ALLOWED => one.allowed_per_second += rate,
            verdict::DENIED => one.denied_per_second += rate,
            verdict::WOULD_ALLOW => one.would_allow_per_second += rate,
            _ => one.would_deny_per_second += rate,
        }
    }
    said
}

#[cfg(test)]
mod tests;
