//! RouteConfiguration → a table that names its clusters.
//!
//! In: the message. Out: a [`TableDraft`], which becomes a table once its clusters are known. What virtual hosts and the
//! table itself say for all their routes is settled here, so that a route carries all that concerns it.

mod action;
mod filters;
mod matches;
mod policies;

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::{self as proto, virtual_host::TlsRequirementType};
use envoy_types::pb::google::protobuf::Any;
use weft_wire::xds::REPLAY_BYTES;

use super::super::model::{Cluster, ClusterSpec};
use super::{Invalid, decode, same_name};
use crate::policy::mirror::Mirror;
use crate::policy::retry::RetryPolicy;
use crate::route::matcher::{InvalidTable, RouteTable, VirtualHost};
use crate::route::mutation::Group;
use crate::route::rule::{Backend, BackendFilters, MirrorDraft, Route, Rule};
use filters::{FilterConfigs, Headers};

pub(super) use matches::{read_header as header, string};
pub(super) use policies::{duration, fault, rate_limit};

/// A route table whose clusters are names.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct TableDraft {
    hosts: Vec<HostDraft>,
}

#[derive(Debug, Clone, PartialEq)]
struct HostDraft {
    name: Box<str>,
    domains: Vec<Box<str>>,
    routes: Vec<RouteDraft>,
}

#[derive(Debug, Clone, PartialEq)]
struct RouteDraft {
    rule: Arc<Rule>,
    backends: Vec<BackendDraft>,
    mirrors: Vec<MirrorDraft>,
}

#[derive(Debug, Clone, PartialEq)]
struct BackendDraft {
    cluster: Arc<str>,
    weight: u32,
    filters: Arc<BackendFilters>,
}

impl TableDraft {
    /// Every cluster that the table names, with repetitions.
    pub(in super::super) fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let routes = self.hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| {
            let mirrors = route.mirrors.iter().map(|mirror| &mirror.cluster);
            route.backends.iter().map(|backend| &backend.cluster).chain(mirrors)
        })
    }

    /// The table with its clusters put in.
    pub(in super::super) fn compile(
        &self,
        mut cluster: impl FnMut(&str) -> Arc<Cluster>,
    ) -> Result<RouteTable, InvalidTable> {
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for host in &self.hosts {
            let routes = host.routes.iter().map(|route| route.compile(&mut cluster));
            let routes = routes.collect::<Result<_, _>>()?;
            hosts.push(VirtualHost { name: host.name.clone(), domains: host.domains.clone(), routes });
        }
        RouteTable::new(hosts)
    }
}

impl RouteDraft {
    fn compile(&self, cluster: &mut impl FnMut(&str) -> Arc<Cluster>) -> Result<Arc<Route>, InvalidTable> {
        let backend = |draft: &BackendDraft| Backend {
            cluster: cluster(&draft.cluster),
            weight: draft.weight,
            filters: Arc::clone(&draft.filters),
        };
        let backends = self.backends.iter().map(backend).collect();
        let mirror = |draft: &MirrorDraft| Mirror {
            cluster: cluster(&draft.cluster),
            share: draft.share,
            plain_host: draft.plain_host,
        };
        let mirrors = self.mirrors.iter().map(mirror).collect();
        Route::of(Arc::clone(&self.rule), backends, mirrors)
    }
}

/// Reads a RouteConfiguration.
pub(in super::super) fn routes(name: &str, any: &Any) -> Result<TableDraft, Invalid> {
    let config: proto::RouteConfiguration = decode(any, "resource")?;
    same_name("name", &config.name, name)?;
    table(&config)
}

/// Reads the table and makes sure that it compiles, whatever its clusters will be.
pub(super) fn table(config: &proto::RouteConfiguration) -> Result<TableDraft, Invalid> {
    refuse(
        "",
        &[
            (config.vhds.is_some(), "vhds", "on-demand virtual hosts"),
            (!config.internal_only_headers.is_empty(), "internal_only_headers", "telling callers apart"),
            (!config.cluster_specifier_plugins.is_empty(), "cluster_specifier_plugins", "a plugin"),
            (!config.vhost_header.is_empty(), "vhost_header", "virtual hosts by header"),
            (!config.route_specifiers.is_empty(), "route_specifiers", "a plugin"),
            (
                config.ignore_path_parameters_in_path_matching,
                "ignore_path_parameters_in_path_matching",
                "a path without its parameters",
            ),
        ],
    )?;
    let inherited = Inherited {
        headers: Headers::of_table(config)?,
        table_first: config.most_specific_header_mutations_wins,
        filters: filters::read(&config.typed_per_filter_config, "typed_per_filter_config")?,
        mirrors: policies::mirrors(&config.request_mirror_policies, "request_mirror_policies")?,
        retry: None,
        body_max: config
            .max_direct_response_body_size_bytes
            .as_ref()
            .map_or(BODY_MAX, |max| max.value as usize),
    };
    let hosts = config.virtual_hosts.iter().enumerate();
    let hosts =
        hosts.map(|(position, host)| virtual_host(host, &inherited, &format!("virtual_hosts[{position}]")));
    let draft = TableDraft { hosts: hosts.collect::<Result<_, _>>()? };
    let nobody = Cluster::new(ClusterSpec::new(""), vec![]);
    draft.compile(|_| Arc::clone(&nobody)).map_err(|source| Invalid::Table { source })?;
    Ok(draft)
}

/// Largest body of a direct response where the table names no other; Envoy's default.
const BODY_MAX: usize = 4096;

/// What a table, and then a virtual host, says for all its routes.
#[derive(Clone)]
struct Inherited {
    headers: Vec<Headers>,
    /// Whether the most specific headers come last.
    table_first: bool,
    filters: FilterConfigs,
    mirrors: Vec<MirrorDraft>,
    retry: Option<RetryPolicy>,
    body_max: usize,
}

impl Inherited {
    /// Groups from the most to the least specific, unless the table wants it the other way round.
    fn ordered(&self, own: Headers) -> (Vec<Group>, Vec<Group>) {
        let mut all = vec![own];
        all.extend(self.headers.iter().cloned());
        if self.table_first {
            all.reverse();
        }
        all.into_iter().map(|headers| (headers.request, headers.response)).unzip()
    }
}

fn virtual_host(host: &proto::VirtualHost, table: &Inherited, place: &str) -> Result<HostDraft, Invalid> {
    if host.domains.is_empty() {
        return Err(Invalid::missing(format!("{place}.domains")));
    }
    let inherited = inherit(host, table, place)?;
    let routes = host.routes.iter().enumerate();
    let routes =
        routes.map(|(position, route)| read_route(route, &inherited, &format!("{place}.routes[{position}]")));
    Ok(HostDraft {
        name: host.name.as_str().into(),
        domains: host.domains.iter().map(|domain| domain.as_str().into()).collect(),
        routes: routes.collect::<Result<_, _>>()?,
    })
}

/// What the routes of a virtual host have in common.
fn inherit(host: &proto::VirtualHost, table: &Inherited, place: &str) -> Result<Inherited, Invalid> {
    refuse_unknown(host, place)?;
    let mut inherited = table.clone();
    inherited.headers.insert(0, Headers::of_host(host, place)?);
    inherited.filters =
        filters::read(&host.typed_per_filter_config, &format!("{place}.typed_per_filter_config"))?
            .or(&table.filters, place)?;
    let mirrors =
        policies::mirrors(&host.request_mirror_policies, &format!("{place}.request_mirror_policies"))?;
    if !mirrors.is_empty() {
        inherited.mirrors = mirrors;
    }
    if let Some(retry) = &host.retry_policy {
        inherited.retry = policies::retry(retry, &format!("{place}.retry_policy"))?;
    }
    Ok(inherited)
}

#[expect(deprecated, reason = "older control planes still write them")]
fn refuse_unknown(host: &proto::VirtualHost, place: &str) -> Result<(), Invalid> {
    let attempts = host.include_request_attempt_count || host.include_attempt_count_in_response;
    refuse(
        place,
        &[
            (host.matcher.is_some(), "matcher", "a generic matcher"),
            (host.require_tls != TlsRequirementType::None as i32, "require_tls", "a redirect to TLS"),
            (!host.rate_limits.is_empty(), "rate_limits", "a rate limit of a virtual host"),
            (host.cors.is_some(), "cors", "CORS outside typed_per_filter_config"),
            (attempts, "include_request_attempt_count", "a header with the attempt"),
            (host.include_is_timeout_retry_header, "include_is_timeout_retry_header", "a header on retries"),
            (host.retry_policy_typed_config.is_some(), "retry_policy_typed_config", "a plugin"),
            (host.hedge_policy.is_some(), "hedge_policy", "hedging"),
            (!host.route_specifiers.is_empty(), "route_specifiers", "a plugin"),
        ],
    )?;
    replay_bound(host.per_request_buffer_limit_bytes.as_ref().map(|limit| u64::from(limit.value)), place)?;
    replay_bound(host.request_body_buffer_limit.as_ref().map(|limit| limit.value), place)
}

#[expect(deprecated, reason = "older control planes still write them")]
fn read_route(route: &proto::Route, host: &Inherited, place: &str) -> Result<RouteDraft, Invalid> {
    let conditions = route.r#match.as_ref().ok_or_else(|| Invalid::missing(format!("{place}.match")))?;
    let matches = matches::read(conditions, &format!("{place}.match"))?;
    refuse(place, &[(!route.route_specifiers.is_empty(), "route_specifiers", "a plugin")])?;
    replay_bound(route.per_request_buffer_limit_bytes.as_ref().map(|limit| u64::from(limit.value)), place)?;
    replay_bound(route.request_body_buffer_limit.as_ref().map(|limit| limit.value), place)?;
    let (request, response) = host.ordered(Headers::of_route(route, place)?);
    let configs = filters::read(&route.typed_per_filter_config, &format!("{place}.typed_per_filter_config"))?;
    let configs = configs.or(&host.filters, place)?;
    let read = action::read(route, host, place)?;
    let callers = read.by_caller;
    let filters = read.filters(request, response);
    let rate_limit = configs.rate_limit(callers, place)?;
    let rule = Rule {
        name: route.name.as_str().into(),
        matches,
        action: read.action,
        filters,
        fault: configs.fault(),
        rate_limit,
        cors: configs.cors(),
    };
    Ok(RouteDraft { rule: Arc::new(rule), backends: read.backends, mirrors: read.mirrors })
}

/// Refuses the first field that is set and cannot be honoured.
fn refuse(place: &str, fields: &[(bool, &str, &str)]) -> Result<(), Invalid> {
    match fields.iter().find(|(set, _, _)| *set) {
        None => Ok(()),
        Some((_, field, what)) if place.is_empty() => Err(Invalid::unsupported(*field, *what)),
        Some((_, field, what)) => Err(Invalid::unsupported(format!("{place}.{field}"), *what)),
    }
}

/// Where the configuration names a bound it must be this one, so that both sides give up at the same body.
fn replay_bound(bound: Option<u64>, place: &str) -> Result<(), Invalid> {
    match bound {
        None | Some(REPLAY_BYTES) => Ok(()),
        Some(_) => Err(Invalid::unsupported(
            format!("{place}.request_body_buffer_limit"),
            format!("keeping another number of bytes than {REPLAY_BYTES} for a retry"),
        )),
    }
}

#[cfg(test)]
mod tests;
