//! Listener → what the destination is, where its routes are and where its opaque connections go.

mod access;
mod http_filters;

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket};
use envoy_types::pb::envoy::config::listener::v3::{FilterChain, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager,
    http_connection_manager::{PathWithEscapedSlashesAction, RouteSpecifier},
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use envoy_types::pb::google::protobuf::Any;
use prost::Name;
use weft_wire::tls::Mode;
use weft_wire::xds::ListenerName;

use super::super::model::{Guard, ListenerSpec};
use super::{Invalid, Labels, TableDraft, decode, route, same_name};
use crate::policy::authorize::Access;
use crate::route::policies::Gradient;
use http_filters::Said;
use weft_wire::spelling::Spelling;

/// A listener that names its route table and cluster.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) struct ListenerDraft {
    pub(in super::super) spec: ListenerSpec,
    /// `None`: the port does not speak HTTP.
    pub(in super::super) routes: Option<RouteSource>,
    /// `None`: the port speaks nothing but HTTP.
    pub(in super::super) opaque: Option<Arc<str>>,
    /// The concurrency limit that finds itself.
    pub(in super::super) gradient: Option<Gradient>,
    /// Who may call.
    pub(in super::super) guard: Guard,
}

/// Where a listener's routes stand.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum RouteSource {
    /// In a route table of this name.
    Named(Arc<str>),
    /// In the listener.
    Inline(TableDraft),
}

/// Reads a Listener.
pub(in super::super) fn listener(name: &str, any: &Any) -> Result<ListenerDraft, Invalid> {
    let listener: Listener = decode(any, "resource")?;
    same_name("name", &listener.name, name)?;
    let listener_name = name.parse().map_err(|_| Invalid::value("name", name, "is not a destination"))?;
    let labels = Labels::of(listener.metadata.as_ref(), "listener");
    let spec = ListenerSpec {
        name: listener_name,
        service: labels.service_port()?,
        protocol: labels.protocol()?,
        workload: labels.workload()?,
        mode: mode(&listener)?,
    };
    let guard = Guard { strict: spec.mode == Mode::Strict, ..Guard::default() };
    let mut draft = ListenerDraft { spec, routes: None, opaque: None, gradient: None, guard };
    for (position, chain) in listener.filter_chains.iter().enumerate() {
        read_chain(&mut draft, chain, &format!("filter_chains[{position}]"))?;
    }
    if let Some(chain) = &listener.default_filter_chain {
        read_chain(&mut draft, chain, "default_filter_chain")?;
    }
    if draft.routes.is_none() && draft.opaque.is_none() {
        return Err(Invalid::missing("filter_chains: a filter that ends the chain"));
    }
    // What a port was not declared to speak may come all the same.
    if draft.opaque.is_none() && draft.guard.http.denies_any() {
        draft.guard.bytes = Access::nobody();
    }
    if draft.routes.is_none() {
        draft.guard.http = draft.guard.bytes.clone();
    }
    Ok(draft)
}

/// Which chains there are says whom the port takes: those who come by mutual TLS, others, or both.
fn mode(listener: &Listener) -> Result<Mode, Invalid> {
    let (mut mutual, mut plain) = (false, false);
    let chains = listener.filter_chains.iter().enumerate();
    let chains = chains.map(|(position, chain)| (format!("filter_chains[{position}]"), chain));
    let default =
        listener.default_filter_chain.iter().map(|chain| ("default_filter_chain".to_owned(), chain));
    for (place, chain) in chains.chain(default) {
        match &chain.transport_socket {
            None => plain = true,
            Some(socket) => {
                requires_certificate(socket, &format!("{place}.transport_socket"))?;
                mutual = true;
            }
        }
    }
    Ok(match (mutual, plain) {
        (true, false) => Mode::Strict,
        (true, true) => Mode::Permissive,
        (false, _) => Mode::Disabled,
    })
}

/// With which certificate the sidecar answers, and whom it trusts, it knows by itself.
fn requires_certificate(socket: &TransportSocket, place: &str) -> Result<(), Invalid> {
    let place = format!("{place}.typed_config");
    match &socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(config)) if is::<DownstreamTlsContext>(config) => {
            let context: DownstreamTlsContext = decode(config, &place)?;
            if context.require_client_certificate.is_some_and(|required| required.value) {
                Ok(())
            } else {
                let field = format!("{place}.require_client_certificate");
                Err(Invalid::unsupported(field, "TLS with clients that show no certificate"))
            }
        }
        _ => Err(Invalid::unsupported(place, format!("transport socket {:?}", socket.name))),
    }
}

fn read_chain(draft: &mut ListenerDraft, chain: &FilterChain, place: &str) -> Result<(), Invalid> {
    let mut before = Vec::new();
    for (position, filter) in chain.filters.iter().enumerate() {
        let place = format!("{place}.filters[{position}]");
        let Some(filter::ConfigType::TypedConfig(config)) = &filter.config_type else {
            return Err(Invalid::missing(format!("{place}.typed_config")));
        };
        if is::<HttpConnectionManager>(config) {
            let manager = decode(config, &place)?;
            let (routes, http) = http_routes(&manager, &place)?;
            let spelling = spelling(&manager, &draft.spec, &place)?;
            let known = draft.routes.as_ref().map(|_| draft.guard.spelling);
            agree(&mut known.clone(), spelling, &place)?;
            draft.guard.spelling = spelling;
            agree_on_guard(draft.routes.is_some(), &mut draft.guard.http, http.access, &place)?;
            agree(&mut draft.routes, routes, &place)?;
            draft.gradient = draft.gradient.or(http.gradient);
        } else if is::<TcpProxy>(config) {
            let proxy = decode(config, &place)?;
            agree_on_guard(
                draft.opaque.is_some(),
                &mut draft.guard.bytes,
                std::mem::take(&mut before),
                &place,
            )?;
            agree(&mut draft.opaque, tcp_cluster(&proxy, &place)?, &place)?;
        } else if is::<NetworkRbac>(config) {
            before.push(access::network(&decode(config, &place)?, &format!("{place}.typed_config"))?);
        } else {
            return Err(Invalid::unsupported(place, format!("network filter {:?}", filter.name)));
        }
    }
    match before.as_slice() {
        [] => Ok(()),
        // Requests have filters of their own.
        _ => {
            Err(Invalid::unsupported(format!("{place}.filters"), "judging connections before their requests"))
        }
    }
}

fn is<M: Name>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::full_name().as_str())
}

/// Chains may repeat each other but not contradict each other: the proxy keeps one answer per kind of traffic.
fn agree<T: PartialEq>(known: &mut Option<T>, new: T, place: &str) -> Result<(), Invalid> {
    match known {
        Some(known) if *known != new => {
            Err(Invalid::unsupported(place, "a filter chain that differs from another of its kind"))
        }
        Some(_) => Ok(()),
        None => {
            *known = Some(new);
            Ok(())
        }
    }
}

/// Every chain must let in and keep out the same callers.
fn agree_on_guard(
    known: bool,
    guard: &mut Access,
    filters: Vec<access::Filter>,
    place: &str,
) -> Result<(), Invalid> {
    let new = Access { filters: filters.into() };
    if known && *guard != new {
        return Err(Invalid::unsupported(place, "a filter chain that differs from another of its kind"));
    }
    *guard = new;
    Ok(())
}

/// What is done to paths before they are judged.
fn spelling(
    manager: &HttpConnectionManager,
    listener: &ListenerSpec,
    place: &str,
) -> Result<Spelling, Invalid> {
    let escaped = &format!("{place}.path_with_escaped_slashes_action");
    let refuse_escaped_slashes =
        match PathWithEscapedSlashesAction::try_from(manager.path_with_escaped_slashes_action) {
            Ok(
                PathWithEscapedSlashesAction::ImplementationSpecificDefault
                | PathWithEscapedSlashesAction::KeepUnchanged,
            ) => false,
            Ok(PathWithEscapedSlashesAction::RejectRequest) => true,
            _ => return Err(Invalid::unsupported(escaped, "unescaping slashes")),
        };
    let spelling = Spelling {
        normalize: manager.normalize_path.is_some_and(|normalize| normalize.value),
        merge_slashes: manager.merge_slashes,
        refuse_escaped_slashes,
    };
    if !spelling.is_none() && !matches!(listener.name, ListenerName::Inbound(_)) {
        return Err(Invalid::unsupported(
            format!("{place}.normalize_path"),
            "changing paths on their way out",
        ));
    }
    Ok(spelling)
}

/// What guards the listener as a whole.
#[derive(Default)]
struct HttpGuards {
    gradient: Option<Gradient>,
    access: Vec<access::Filter>,
}

/// Where the routes are, and what guards the listener as a whole.
fn http_routes(manager: &HttpConnectionManager, place: &str) -> Result<(RouteSource, HttpGuards), Invalid> {
    let mut guards = HttpGuards::default();
    for (position, filter) in manager.http_filters.iter().enumerate() {
        let place = format!("{place}.http_filters[{position}]");
        match http_filters::read(filter, &place)? {
            Some(Said::Gradient(gradient)) => guards.gradient = guards.gradient.or(Some(gradient)),
            Some(Said::Access(filter)) => guards.access.push(filter),
            None => {}
        }
    }
    Ok((route_source(manager, place)?, guards))
}

fn route_source(manager: &HttpConnectionManager, place: &str) -> Result<RouteSource, Invalid> {
    match &manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) if rds.route_config_name.is_empty() => {
            Err(Invalid::missing(format!("{place}.rds.route_config_name")))
        }
        Some(RouteSpecifier::Rds(rds)) => Ok(RouteSource::Named(rds.route_config_name.as_str().into())),
        Some(RouteSpecifier::RouteConfig(config)) => Ok(RouteSource::Inline(route::table(config)?)),
        Some(RouteSpecifier::ScopedRoutes(_)) => Err(Invalid::unsupported(place, "scoped_routes")),
        None => Err(Invalid::missing(format!("{place}.rds"))),
    }
}

fn tcp_cluster(proxy: &TcpProxy, place: &str) -> Result<Arc<str>, Invalid> {
    match &proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Ok(name.as_str().into()),
        Some(ClusterSpecifier::WeightedClusters(_)) => {
            Err(Invalid::unsupported(format!("{place}.weighted_clusters"), "a split of TCP connections"))
        }
        Some(ClusterSpecifier::Cluster(_)) | None => Err(Invalid::missing(format!("{place}.cluster"))),
    }
}
