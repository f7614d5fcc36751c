//! What is done with a request that matched: forward, redirect, or answer.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source};
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, RedirectAction, RetryPolicy, RouteAction, WeightedCluster, redirect_action,
    retry_policy, route, route_action, weighted_cluster,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use retry_policy::{RetryHostPredicate, retry_host_predicate};
use route_action::hash_policy::{ConnectionProperties, Cookie, Header, PolicySpecifier};
use route_action::{ClusterSpecifier, HashPolicy, HostRewriteSpecifier, RequestMirrorPolicy};
use weighted_cluster::ClusterWeight;

use super::super::proto::{any, duration, runtime_fraction, uint32};
use super::edit::{self, PathChange};
use super::plain;
use crate::compile::defaults;
use crate::world::policy::{HashOn, Retry, RetryOn, Settings};
use crate::world::{
    EffectiveRule, PathEdit, PathMatch, Redirect, ResolvedBackend, ResolvedMirror, Rewrite, Unresolved,
};

pub(super) fn compile(rule: &EffectiveRule, matched: &PathMatch, port: u16) -> route::Action {
    let filters = &rule.rule.filters;
    if let Some(redirect) = &filters.redirect {
        return route::Action::Redirect(to_elsewhere(redirect, matched, port));
    }
    let Some(specifier) = backends(rule) else {
        // By the API, a share without a backend is answered with 500; here the share is everything.
        return route::Action::DirectResponse(DirectResponseAction {
            status: 500,
            body: Some(DataSource {
                specifier: Some(data_source::Specifier::InlineString("no valid backend".to_owned())),
                ..Default::default()
            }),
            ..Default::default()
        });
    };
    let hash = rule.backends.iter().find_map(|backend| backend.hash_on.as_ref());
    let mut action = with_policy(&rule.policy.settings, hash, rule.mirrors.iter());
    action.cluster_specifier = Some(specifier);
    if let Some(edit) = &filters.rewrite {
        rewrite(&mut action, edit, matched);
    }
    route::Action::Route(action)
}

/// An action without a cluster, as the policies in force have it. `hash` is what a backend chooses by, if the
/// policies do not say.
pub(super) fn with_policy<'a>(
    settings: &Settings,
    hash: Option<&HashOn>,
    mirrors: impl Iterator<Item = &'a ResolvedMirror>,
) -> RouteAction {
    let hash = settings.balancer.hash_on.as_ref().or(hash);
    // A rule that hashes and was not told what.
    let implied = settings.balancer.algorithm.is_some_and(|algorithm| algorithm.hashes());
    let hash = hash.or(implied.then_some(&HashOn::Source));
    RouteAction {
        timeout: Some(duration(timeout(settings))),
        retry_policy: retry(settings),
        hash_policy: hash.map(hash_policy).into_iter().collect(),
        request_mirror_policies: mirrors.map(mirror).collect(),
        ..plain()
    }
}

/// Where requests go; `None` if there is no valid share at all.
fn backends(rule: &EffectiveRule) -> Option<ClusterSpecifier> {
    let valid = |backend: &ResolvedBackend| backend.weight > 0 && backend.to.is_ok();
    if !rule.backends.iter().any(valid) {
        return None;
    }
    let declared = &rule.rule.backends;
    if let ([backend], [declared]) = (rule.backends.as_slice(), declared.as_slice())
        && declared.filters.request.is_empty()
        && declared.filters.response.is_empty()
    {
        return Some(ClusterSpecifier::Cluster(cluster(backend)));
    }
    let clusters = rule.backends.iter().zip(declared).map(|(backend, declared)| {
        let (request_headers_to_add, request_headers_to_remove) = edit::headers(&declared.filters.request);
        let (response_headers_to_add, response_headers_to_remove) = edit::headers(&declared.filters.response);
        ClusterWeight {
            name: cluster(backend),
            weight: Some(uint32(backend.weight)),
            request_headers_to_add,
            request_headers_to_remove,
            response_headers_to_add,
            response_headers_to_remove,
            ..Default::default()
        }
    });
    Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters: clusters.collect(),
        ..Default::default()
    }))
}

/// The cluster of a backend. For one that is not resolved: a name that no cluster can have, which is answered with
/// `cluster_not_found_response_code`. Its own name will not do, since a service that may not be referred to exists.
fn cluster(backend: &ResolvedBackend) -> String {
    match &backend.to {
        Ok(port) => port.to_string(),
        Err(Unresolved::BackendNotFound(port) | Unresolved::RefNotPermitted(port)) => {
            format!("{}{port}", defaults::UNRESOLVED)
        }
        Err(Unresolved::InvalidKind { what }) => format!("{}{what}", defaults::UNRESOLVED),
    }
}

fn rewrite(action: &mut RouteAction, edit: &Rewrite, matched: &PathMatch) {
    if let Some(host) = &edit.hostname {
        action.host_rewrite_specifier = Some(HostRewriteSpecifier::HostRewriteLiteral(host.to_string()));
    }
    match edit.path.as_ref().and_then(|path| edit::path(path, matched)) {
        Some(PathChange::Prefix(prefix)) => action.prefix_rewrite = prefix,
        Some(PathChange::Regex(regex)) => action.regex_rewrite = Some(regex),
        None => {}
    }
}

fn to_elsewhere(redirect: &Redirect, matched: &PathMatch, port: u16) -> RedirectAction {
    let path = redirect.path.as_ref().and_then(|path| match path {
        PathEdit::Full(full) => Some(PathRewriteSpecifier::PathRedirect(full.to_string())),
        PathEdit::Prefix(_) => edit::path(path, matched).map(|change| match change {
            PathChange::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            PathChange::Regex(regex) => PathRewriteSpecifier::RegexRewrite(regex),
        }),
    });
    let code = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    RedirectAction {
        host_redirect: redirect.hostname.as_deref().unwrap_or_default().to_owned(),
        port_redirect: redirect_port(redirect, port),
        response_code: code.into(),
        scheme_rewrite_specifier: redirect
            .scheme
            .as_ref()
            .map(|scheme| SchemeRewriteSpecifier::SchemeRedirect(scheme.to_string())),
        path_rewrite_specifier: path,
        ..Default::default()
    }
}

/// The port a caller is sent to; zero leaves the one it used. By the API: the one that is given, else the well-known
/// one of a scheme that is given, else the port of the service; and what the scheme implies is not written.
fn redirect_port(redirect: &Redirect, service: u16) -> u32 {
    let well_known = |scheme: &str| if scheme == "https" { 443 } else { 80 };
    let scheme = redirect.scheme.as_deref();
    let port = redirect.port.or(scheme.map(well_known)).unwrap_or(service);
    // With a new host Envoy writes no port of its own accord; with the old one it would keep the caller's.
    let implied = port == well_known(scheme.unwrap_or("http"));
    if implied && redirect.hostname.is_some() { 0 } else { port.into() }
}

/// The whole exchange's limit: where there is only one try, also that try's.
fn timeout(settings: &Settings) -> Duration {
    let whole = settings.timeouts.request.unwrap_or(Duration::ZERO);
    match one_try(settings) {
        Some(one) if !retries(settings) && (whole.is_zero() || one < whole) => one,
        _ => whole,
    }
}

fn one_try(settings: &Settings) -> Option<Duration> {
    let limit = settings.retry.per_try_timeout.or(settings.timeouts.backend_request);
    limit.filter(|limit| !limit.is_zero())
}

/// Whether anything asks for retries. A limit of one try alone does not.
fn retries(settings: &Settings) -> bool {
    let retry = &settings.retry;
    let asked = *retry != Retry { per_try_timeout: retry.per_try_timeout, ..Retry::default() };
    asked && retry.attempts != Some(0)
}

fn retry(settings: &Settings) -> Option<RetryPolicy> {
    if !retries(settings) {
        return None;
    }
    let retry = &settings.retry;
    let statuses: Vec<u32> = retry.statuses.iter().flatten().map(|status| u32::from(*status)).collect();
    let mut on: Vec<&str> = match &retry.on {
        Some(on) => on.iter().map(|one| one.word()).collect(),
        None => defaults::RETRY_ON.to_vec(),
    };
    // Statuses that are listed are meant.
    if !statuses.is_empty() && !on.contains(&RetryOn::RetriableStatusCodes.word()) {
        on.push(RetryOn::RetriableStatusCodes.word());
    }
    let base = retry.backoff.unwrap_or(defaults::BACKOFF);
    let max = retry.backoff_max.unwrap_or(base * defaults::BACKOFF_GROWTH).max(base);
    Some(RetryPolicy {
        retry_on: on.join(","),
        num_retries: Some(uint32(retry.attempts.unwrap_or(defaults::RETRY_ATTEMPTS))),
        per_try_timeout: one_try(settings).map(duration),
        retriable_status_codes: statuses,
        retry_back_off: Some(retry_policy::RetryBackOff {
            base_interval: Some(duration(base)),
            max_interval: Some(duration(max)),
        }),
        // An endpoint that has just failed is the worst place to ask again.
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(&PreviousHostsPredicate {}))),
        }],
        host_selection_retry_max_attempts: defaults::OTHER_ENDPOINT_ATTEMPTS,
        ..Default::default()
    })
}

fn hash_policy(on: &HashOn) -> HashPolicy {
    let specifier = match on {
        HashOn::Header(name) => {
            PolicySpecifier::Header(Header { header_name: name.to_string(), ..Default::default() })
        }
        HashOn::Cookie { name, ttl } => PolicySpecifier::Cookie(Cookie {
            name: name.to_string(),
            ttl: ttl.map(duration),
            // One cookie for the whole service, wherever it was first asked.
            path: if ttl.is_some() { "/".to_owned() } else { String::new() },
            ..Default::default()
        }),
        HashOn::Source => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
    };
    HashPolicy { policy_specifier: Some(specifier), ..Default::default() }
}

fn mirror(mirror: &ResolvedMirror) -> RequestMirrorPolicy {
    RequestMirrorPolicy {
        cluster: mirror.to.to_string(),
        runtime_fraction: Some(runtime_fraction(mirror.numerator, mirror.denominator)),
        ..Default::default()
    }
}
