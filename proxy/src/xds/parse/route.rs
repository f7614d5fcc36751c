//! RouteConfiguration → a table that names its clusters.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::{
    self as proto, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route::Action, route_action::ClusterSpecifier,
    route_match::PathSpecifier,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::Any;
use http::{HeaderName, Method};

use super::super::model::{Cluster, ClusterSpec};
use super::{Invalid, decode, same_name};
use crate::route::matcher::{
    Backend, HeaderMatch, InvalidTable, Matches, PathMatch, QueryMatch, Route, RouteTable, ValueMatch,
    VirtualHost,
};

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
    name: Box<str>,
    matches: Matches,
    backends: Vec<(Arc<str>, u32)>,
}

impl TableDraft {
    /// Every cluster that the table names, with repetitions.
    pub(in super::super) fn clusters(&self) -> impl Iterator<Item = &Arc<str>> {
        let routes = self.hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| route.backends.iter().map(|(name, _)| name))
    }

    /// The table with its clusters put in.
    pub(in super::super) fn compile(
        &self,
        mut cluster: impl FnMut(&str) -> Arc<Cluster>,
    ) -> Result<RouteTable, InvalidTable> {
        let mut hosts = Vec::with_capacity(self.hosts.len());
        for host in &self.hosts {
            let mut routes = Vec::with_capacity(host.routes.len());
            for route in &host.routes {
                let backend =
                    |(name, weight): &(Arc<str>, u32)| Backend { cluster: cluster(name), weight: *weight };
                let backends = route.backends.iter().map(backend).collect();
                routes.push(Route::split(&route.name, route.matches.clone(), backends)?);
            }
            hosts.push(VirtualHost { name: host.name.clone(), domains: host.domains.clone(), routes });
        }
        RouteTable::new(hosts)
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
    if config.vhds.is_some() {
        return Err(Invalid::unsupported("vhds", "on-demand virtual hosts"));
    }
    let hosts = config.virtual_hosts.iter().enumerate();
    let hosts = hosts.map(|(position, host)| virtual_host(host, &format!("virtual_hosts[{position}]")));
    let draft = TableDraft { hosts: hosts.collect::<Result<_, _>>()? };
    let nobody = Cluster::new(ClusterSpec::new(""), vec![]);
    draft.compile(|_| Arc::clone(&nobody)).map_err(|source| Invalid::Table { source })?;
    Ok(draft)
}

fn virtual_host(host: &proto::VirtualHost, place: &str) -> Result<HostDraft, Invalid> {
    if host.domains.is_empty() {
        return Err(Invalid::missing(format!("{place}.domains")));
    }
    if host.matcher.is_some() {
        return Err(Invalid::unsupported(format!("{place}.matcher"), "a generic matcher"));
    }
    let routes = host.routes.iter().enumerate();
    let routes = routes.map(|(position, route)| read_route(route, &format!("{place}.routes[{position}]")));
    Ok(HostDraft {
        name: host.name.as_str().into(),
        domains: host.domains.iter().map(|domain| domain.as_str().into()).collect(),
        routes: routes.collect::<Result<_, _>>()?,
    })
}

fn read_route(route: &proto::Route, place: &str) -> Result<RouteDraft, Invalid> {
    let conditions = route.r#match.as_ref().ok_or_else(|| Invalid::missing(format!("{place}.match")))?;
    let matches = read_matches(conditions, &format!("{place}.match"))?;
    let action = match &route.action {
        Some(Action::Route(action)) => action,
        Some(Action::Redirect(_)) => {
            return Err(Invalid::unsupported(format!("{place}.redirect"), "a redirect"));
        }
        Some(Action::DirectResponse(_)) => {
            return Err(Invalid::unsupported(format!("{place}.direct_response"), "a direct response"));
        }
        Some(_) => return Err(Invalid::unsupported(place, "this action")),
        None => return Err(Invalid::missing(format!("{place}.route"))),
    };
    Ok(RouteDraft { name: route.name.as_str().into(), matches, backends: backends(action, place)? })
}

fn backends(action: &proto::RouteAction, place: &str) -> Result<Vec<(Arc<str>, u32)>, Invalid> {
    let rewrites = !action.prefix_rewrite.is_empty()
        || action.regex_rewrite.is_some()
        || action.path_rewrite_policy.is_some()
        || action.host_rewrite_specifier.is_some();
    if rewrites {
        return Err(Invalid::unsupported(format!("{place}.route"), "rewriting a path or host"));
    }
    match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => Ok(vec![(name.as_str().into(), 1)]),
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            let one = |cluster: &proto::weighted_cluster::ClusterWeight| {
                if cluster.name.is_empty() {
                    return Err(Invalid::missing(format!("{place}.route.weighted_clusters.name")));
                }
                // An unset weight is a share of nothing, as in Envoy.
                Ok((cluster.name.as_str().into(), cluster.weight.as_ref().map_or(0, |weight| weight.value)))
            };
            split.clusters.iter().map(one).collect()
        }
        Some(ClusterSpecifier::Cluster(_)) | None => Err(Invalid::missing(format!("{place}.route.cluster"))),
        Some(_) => Err(Invalid::unsupported(format!("{place}.route"), "this way to name a cluster")),
    }
}

fn read_matches(conditions: &proto::RouteMatch, place: &str) -> Result<Matches, Invalid> {
    let unsupported = [
        (conditions.runtime_fraction.is_some(), "runtime_fraction"),
        (!conditions.cookies.is_empty(), "cookies"),
        (conditions.grpc.is_some(), "grpc"),
        (conditions.tls_context.is_some(), "tls_context"),
        (!conditions.dynamic_metadata.is_empty(), "dynamic_metadata"),
        (!conditions.filter_state.is_empty(), "filter_state"),
        (
            conditions.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value),
            "case_sensitive: false",
        ),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(present, _)| *present) {
        return Err(Invalid::unsupported(place, *what));
    }
    let path = match &conditions.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.as_str().into()),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path.as_str().into()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => PathMatch::Segments(prefix.as_str().into()),
        Some(_) => return Err(Invalid::unsupported(place, "this kind of path match")),
        None => return Err(Invalid::missing(format!("{place}.prefix"))),
    };
    let mut matches = Matches { path, method: None, headers: [].into(), query: [].into() };
    let mut headers = vec![];
    for (position, header) in conditions.headers.iter().enumerate() {
        let place = format!("{place}.headers[{position}]");
        match read_header(header, &place)? {
            HeaderCondition::Method(method) if matches.method.is_none() => matches.method = Some(method),
            HeaderCondition::Method(_) => return Err(Invalid::value(place, ":method", "is matched twice")),
            HeaderCondition::Header(header) => headers.push(header),
        }
    }
    matches.headers = headers.into();
    let query = conditions.query_parameters.iter().enumerate();
    let query =
        query.map(|(position, query)| read_query(query, &format!("{place}.query_parameters[{position}]")));
    matches.query = query.collect::<Result<_, _>>()?;
    Ok(matches)
}

enum HeaderCondition {
    Method(Method),
    Header(HeaderMatch),
}

fn read_header(header: &proto::HeaderMatcher, place: &str) -> Result<HeaderCondition, Invalid> {
    if header.treat_missing_header_as_empty {
        return Err(Invalid::unsupported(place, "treat_missing_header_as_empty"));
    }
    let (value, mut invert) = match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => (read_string(matcher, place)?, false),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => (ValueMatch::Present, !present),
        None => (ValueMatch::Present, false),
        Some(_) => {
            return Err(Invalid::unsupported(
                place,
                "a header match that is neither string_match nor present_match",
            ));
        }
    };
    invert ^= header.invert_match;
    if header.name == ":method" {
        let (ValueMatch::Exact(method), false) = (&value, invert) else {
            return Err(Invalid::unsupported(place, "a match on :method that is not exact"));
        };
        let method = Method::from_bytes(method.as_bytes());
        return method
            .map(HeaderCondition::Method)
            .map_err(|_| Invalid::value(place, &header.name, "has no method"));
    }
    let name: HeaderName = header
        .name
        .parse()
        .map_err(|_| Invalid::value(format!("{place}.name"), &header.name, "is not a header"))?;
    Ok(HeaderCondition::Header(HeaderMatch { name, value, invert }))
}

fn read_query(query: &proto::QueryParameterMatcher, place: &str) -> Result<QueryMatch, Invalid> {
    if query.name.is_empty() {
        return Err(Invalid::missing(format!("{place}.name")));
    }
    let value = match &query.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => read_string(matcher, place)?,
        Some(QueryParameterMatchSpecifier::PresentMatch(true)) | None => ValueMatch::Present,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err(Invalid::unsupported(place, "present_match: false"));
        }
    };
    Ok(QueryMatch { name: query.name.as_str().into(), value })
}

fn read_string(matcher: &StringMatcher, place: &str) -> Result<ValueMatch, Invalid> {
    if matcher.ignore_case {
        return Err(Invalid::unsupported(place, "ignore_case"));
    }
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(text)) => Ok(ValueMatch::Exact(text.as_str().into())),
        Some(MatchPattern::Prefix(text)) => Ok(ValueMatch::Prefix(text.as_str().into())),
        Some(MatchPattern::Suffix(text)) => Ok(ValueMatch::Suffix(text.as_str().into())),
        Some(MatchPattern::Contains(text)) => Ok(ValueMatch::Contains(text.as_str().into())),
        Some(_) => Err(Invalid::unsupported(place, "this kind of string match")),
        None => Err(Invalid::missing(format!("{place}.string_match"))),
    }
}
