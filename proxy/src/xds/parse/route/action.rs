//! What becomes of a route's requests: where they go, or what the proxy answers.

use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::{DataSource, RoutingPriority, data_source::Specifier};
use envoy_types::pb::envoy::config::route::v3::{
    self as proto,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
    route,
    route_action::{
        ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, InternalRedirectAction,
    },
    weighted_cluster::{ClusterWeight, cluster_weight},
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use http::{HeaderValue, StatusCode};

use super::filters::Headers;
use super::policies::{duration, hash, mirrors, rate_limits, retry, status};
use super::{BackendDraft, Inherited, Invalid, refuse};
use crate::route::mutation::{Group, Mutations};
use crate::route::pattern::Substitution;
use crate::route::policies::Direct;
use crate::route::redirect::{Redirect, RedirectPath};
use crate::route::rewrite::PathRewrite;
use crate::route::rule::{
    Action, BackendFilters, Filters, Forward, HostRewrite, MirrorDraft, TIMEOUT_DEFAULT,
};

/// An action, and what it says beside itself.
pub(super) struct Read {
    pub(super) action: Action,
    pub(super) backends: Vec<BackendDraft>,
    pub(super) mirrors: Vec<MirrorDraft>,
    /// Whether rate limits count callers apart.
    pub(super) by_caller: bool,
    host: Option<HostRewrite>,
    path: Option<PathRewrite>,
}

impl Read {
    fn answer(action: Action) -> Self {
        Self { action, backends: vec![], mirrors: vec![], by_caller: false, host: None, path: None }
    }

    /// What the route changes, with the headers that were found elsewhere.
    pub(super) fn filters(&self, request: Vec<Group>, response: Vec<Group>) -> Filters {
        Filters {
            request: Mutations::new(request),
            response: Mutations::new(response),
            host: self.host.clone(),
            path: self.path.clone(),
        }
    }
}

pub(super) fn read(route: &proto::Route, host: &Inherited, place: &str) -> Result<Read, Invalid> {
    match &route.action {
        Some(route::Action::Route(action)) => forward(action, host, &format!("{place}.route")),
        Some(route::Action::Redirect(action)) => {
            Ok(Read::answer(Action::Redirect(redirect(action, &format!("{place}.redirect"))?)))
        }
        Some(route::Action::DirectResponse(action)) => {
            let place = format!("{place}.direct_response");
            Ok(Read::answer(Action::Direct(direct(action, host.body_max, &place)?)))
        }
        Some(route::Action::FilterAction(_)) => {
            Err(Invalid::unsupported(format!("{place}.filter_action"), "a plugin"))
        }
        Some(route::Action::NonForwardingAction(_)) => {
            Err(Invalid::unsupported(format!("{place}.non_forwarding_action"), "an action without an answer"))
        }
        None => Err(Invalid::missing(format!("{place}.route"))),
    }
}

fn forward(action: &proto::RouteAction, host: &Inherited, place: &str) -> Result<Read, Invalid> {
    refuse_unknown(action, place)?;
    let own = mirrors(&action.request_mirror_policies, &format!("{place}.request_mirror_policies"))?;
    let timeout = match duration(action.timeout.as_ref(), &format!("{place}.timeout"))? {
        None => Some(TIMEOUT_DEFAULT),
        Some(timeout) => (!timeout.is_zero()).then_some(timeout),
    };
    let retry = match &action.retry_policy {
        Some(policy) => retry(policy, &format!("{place}.retry_policy"))?,
        None => host.retry.clone(),
    };
    Ok(Read {
        action: Action::Forward(Forward {
            timeout,
            retry,
            hash: hash(&action.hash_policy, &format!("{place}.hash_policy"))?,
            cluster_not_found: not_found(action, place)?,
        }),
        backends: backends(action, place)?,
        mirrors: if own.is_empty() { host.mirrors.clone() } else { own },
        by_caller: rate_limits(&action.rate_limits, &format!("{place}.rate_limits"))?,
        host: host_rewrite(action, place)?,
        path: path_rewrite(action, place)?,
    })
}

#[expect(deprecated, reason = "older control planes still write them")]
fn refuse_unknown(action: &proto::RouteAction, place: &str) -> Result<(), Invalid> {
    let handles_redirects =
        action.internal_redirect_action == InternalRedirectAction::HandleInternalRedirect as i32;
    let upgrades = action.upgrade_configs.iter();
    let special_upgrade = upgrades.clone().any(|upgrade| upgrade.connect_config.is_some())
        || upgrades.clone().any(|upgrade| upgrade.enabled.as_ref().is_some_and(|enabled| !enabled.value));
    refuse(
        place,
        &[
            (action.metadata_match.is_some(), "metadata_match", "choosing endpoints by metadata"),
            (action.path_rewrite_policy.is_some(), "path_rewrite_policy", "a plugin"),
            (!action.path_rewrite.is_empty(), "path_rewrite", "a computed path"),
            (action.idle_timeout.is_some(), "idle_timeout", "a time limit on silence"),
            (action.flush_timeout.is_some(), "flush_timeout", "a time limit on flushing"),
            (action.retry_policy_typed_config.is_some(), "retry_policy_typed_config", "a plugin"),
            (action.priority != RoutingPriority::Default as i32, "priority", "a priority"),
            (action.cors.is_some(), "cors", "CORS outside typed_per_filter_config"),
            (action.max_grpc_timeout.is_some(), "max_grpc_timeout", "a bound on grpc-timeout"),
            (action.grpc_timeout_offset.is_some(), "grpc_timeout_offset", "a correction of grpc-timeout"),
            (special_upgrade, "upgrade_configs", "refusing or terminating an upgrade"),
            (action.internal_redirect_policy.is_some(), "internal_redirect_policy", "following redirects"),
            (handles_redirects, "internal_redirect_action", "following redirects"),
            (action.hedge_policy.is_some(), "hedge_policy", "hedging"),
            (action.max_stream_duration.is_some(), "max_stream_duration", "a time limit on streams"),
        ],
    )
}

fn backends(action: &proto::RouteAction, place: &str) -> Result<Vec<BackendDraft>, Invalid> {
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            Ok(vec![BackendDraft { cluster: name.as_str().into(), weight: 1, filters: Arc::default() }])
        }
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            let place = format!("{place}.weighted_clusters");
            let random = split.random_value_specifier.is_some();
            refuse(&place, &[(random, "random_value_specifier", "a draw that is not random")])?;
            let clusters = split.clusters.iter().enumerate();
            clusters
                .map(|(position, cluster)| backend(cluster, &format!("{place}.clusters[{position}]")))
                .collect()
        }
        Some(ClusterSpecifier::Cluster(_)) | None => Err(Invalid::missing(format!("{place}.cluster"))),
        Some(_) => Err(Invalid::unsupported(place, "this way to name a cluster")),
    }
}

fn backend(cluster: &ClusterWeight, place: &str) -> Result<BackendDraft, Invalid> {
    refuse(
        place,
        &[
            (!cluster.cluster_header.is_empty(), "cluster_header", "a cluster named by a header"),
            (cluster.metadata_match.is_some(), "metadata_match", "choosing endpoints by metadata"),
            (
                !cluster.typed_per_filter_config.is_empty(),
                "typed_per_filter_config",
                "filters of one backend among several",
            ),
        ],
    )?;
    if cluster.name.is_empty() {
        return Err(Invalid::missing(format!("{place}.name")));
    }
    let headers = Headers::of_backend(cluster, place)?;
    let host = match &cluster.host_rewrite_specifier {
        Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => {
            Some(host_value(host, &format!("{place}.host_rewrite_literal"))?)
        }
        Some(_) | None => None,
    };
    let filters = BackendFilters {
        request: Mutations::new([headers.request]),
        response: Mutations::new([headers.response]),
        host,
    };
    Ok(BackendDraft {
        cluster: cluster.name.as_str().into(),
        // An unset weight is a share of nothing, as in Envoy.
        weight: cluster.weight.as_ref().map_or(0, |weight| weight.value),
        filters: Arc::new(filters),
    })
}

fn not_found(action: &proto::RouteAction, place: &str) -> Result<StatusCode, Invalid> {
    match ClusterNotFoundResponseCode::try_from(action.cluster_not_found_response_code) {
        Ok(ClusterNotFoundResponseCode::ServiceUnavailable) => Ok(StatusCode::SERVICE_UNAVAILABLE),
        Ok(ClusterNotFoundResponseCode::NotFound) => Ok(StatusCode::NOT_FOUND),
        Ok(ClusterNotFoundResponseCode::InternalServerError) => Ok(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => {
            Err(Invalid::unsupported(format!("{place}.cluster_not_found_response_code"), "this status"))
        }
    }
}

fn host_value(host: &str, place: &str) -> Result<HeaderValue, Invalid> {
    let authority = host.parse::<http::uri::Authority>();
    authority
        .ok()
        .and_then(|_| HeaderValue::from_str(host).ok())
        .ok_or_else(|| Invalid::value(place, host, "is not a host"))
}

fn host_rewrite(action: &proto::RouteAction, place: &str) -> Result<Option<HostRewrite>, Invalid> {
    match &action.host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => Ok(Some(HostRewrite {
            host: host_value(host, &format!("{place}.host_rewrite_literal"))?,
            append_forwarded_host: action.append_x_forwarded_host,
        })),
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) if auto.value => {
            Err(Invalid::unsupported(format!("{place}.auto_host_rewrite"), "the endpoint's name as host"))
        }
        Some(HostRewriteSpecifier::HostRewriteLiteral(_) | HostRewriteSpecifier::AutoHostRewrite(_))
        | None => Ok(None),
        Some(_) => Err(Invalid::unsupported(place, "a computed host")),
    }
}

fn path_rewrite(action: &proto::RouteAction, place: &str) -> Result<Option<PathRewrite>, Invalid> {
    match (&*action.prefix_rewrite, &action.regex_rewrite) {
        ("", None) => Ok(None),
        (prefix, None) => Ok(Some(PathRewrite::Prefix(prefix.into()))),
        ("", Some(rewrite)) => {
            Ok(Some(PathRewrite::Pattern(substitution(rewrite, &format!("{place}.regex_rewrite"))?)))
        }
        (prefix, Some(_)) => {
            Err(Invalid::value(format!("{place}.prefix_rewrite"), prefix, "contradicts regex_rewrite"))
        }
    }
}

fn substitution(rewrite: &RegexMatchAndSubstitute, place: &str) -> Result<Substitution, Invalid> {
    let Some(pattern) = &rewrite.pattern else { return Err(Invalid::missing(format!("{place}.pattern"))) };
    Substitution::new(&pattern.regex, &rewrite.substitution)
        .map_err(|source| Invalid::Pattern { field: place.into(), source })
}

fn redirect(action: &proto::RedirectAction, place: &str) -> Result<Redirect, Invalid> {
    let status = match RedirectResponseCode::try_from(action.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => return Err(Invalid::unsupported(format!("{place}.response_code"), "this status")),
    };
    let some = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    let port = match action.port_redirect {
        0 => None,
        port => Some(u16::try_from(port).map_err(|_| {
            Invalid::value(format!("{place}.port_redirect"), &port.to_string(), "is not a port")
        })?),
    };
    Ok(Redirect {
        status,
        scheme: match &action.scheme_rewrite_specifier {
            Some(SchemeRewriteSpecifier::HttpsRedirect(https)) => https.then(|| "https".into()),
            Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => some(scheme),
            None => None,
        },
        host: some(&action.host_redirect),
        port,
        path: match &action.path_rewrite_specifier {
            Some(PathRewriteSpecifier::PathRedirect(path)) => some(path).map(RedirectPath::Full),
            Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => some(prefix).map(RedirectPath::Prefix),
            Some(PathRewriteSpecifier::RegexRewrite(rewrite)) => {
                Some(RedirectPath::Pattern(substitution(rewrite, &format!("{place}.regex_rewrite"))?))
            }
            Some(PathRewriteSpecifier::PathRewrite(_)) => {
                return Err(Invalid::unsupported(format!("{place}.path_rewrite"), "a computed path"));
            }
            None => None,
        },
        strip_query: action.strip_query,
    })
}

fn direct(action: &proto::DirectResponseAction, body_max: usize, place: &str) -> Result<Direct, Invalid> {
    refuse(place, &[(action.body_format.is_some(), "body_format", "a computed body")])?;
    let body = action.body.as_ref().map(|body| inline(body, &format!("{place}.body"))).transpose()?;
    let body = body.unwrap_or_default();
    if body.len() > body_max {
        let length = format!("{} bytes", body.len());
        return Err(Invalid::value(format!("{place}.body"), &length, "is more than a body may have"));
    }
    Ok(Direct { status: status(action.status, &format!("{place}.status"))?, body })
}

fn inline(source: &DataSource, place: &str) -> Result<Bytes, Invalid> {
    match &source.specifier {
        Some(Specifier::InlineString(text)) => Ok(text.clone().into()),
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes.clone().into()),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            Err(Invalid::unsupported(place, "a body from elsewhere"))
        }
        None => Err(Invalid::missing(format!("{place}.inline_string"))),
    }
}
