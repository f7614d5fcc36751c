//! What a sidecar lets in to its own app: limits protect the callee, so they stand at the callee.
//!
//! In: an address of the sidecar's own. Out: its table, `inbound/<ip>:<port>`, of which every entry leads to the app, and
//! the limit of concurrency. Where no limit tells routes apart there is one entry; else every match of every route that
//! leads here is one, in the order that callers try them.
//!
//! Surprise: what arrives has been rewritten by the caller's sidecar, so a rule is recognized by the path that it makes,
//! not by the one that it matched. Several services may stand at one address; the first by name that has a limit counts.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::route::v3::{Route, RouteAction, route, route_action};
use weft_wire::ServicePort;

use super::proto::PerFilter;
use super::route::{DEFAULT, Entry, everything, matching, plain, table as finished};
use super::{Resource, direct, filters};
use crate::world::policy::{Concurrency, RateKey, RateLimit};
use crate::world::{EffectiveRule, Match, PathEdit, PathMatch, World};

/// The adaptive limit of whoever stands at an address.
pub(super) fn concurrency(world: &World, address: SocketAddr) -> Option<&Concurrency> {
    let mut ports = world.by_endpoint(address);
    ports.find_map(|port| world.port_traffic(port)?.policy.settings.concurrency.as_ref())
}

pub(super) fn table(world: &World, name: &str, address: SocketAddr) -> Option<Resource> {
    direct(world, address)?;
    let ports: Vec<&ServicePort> = world.by_endpoint(address).collect();
    let own = ports.iter().find_map(|port| world.port_traffic(port)?.policy.settings.rate_limit.as_ref());
    let shared = own.filter(|limit| !by_route(limit));
    let rules = rules(world, &ports);
    let mut entries: Vec<Entry> = Vec::new();
    if rules.iter().any(|(rule, _)| rule.policy.settings.rate_limit.as_ref().is_some_and(by_route)) {
        entries.extend(rules.iter().map(|(rule, one)| entry(name, rule, one)));
    }
    // Also for callers that go by no route, or by one that is unknown here.
    let rest = everything(DEFAULT, name, plain());
    entries.push((rest, limits(own.filter(|limit| by_route(limit)))));
    Some(finished(name, limits(shared), entries, true))
}

fn by_route(limit: &RateLimit) -> bool {
    limit.by.contains(&RateKey::Route)
}

fn limits(limit: Option<&RateLimit>) -> PerFilter {
    PerFilter::default().with(filters::RATE_LIMIT, limit.map(filters::rate_limit).as_ref())
}

/// Every match of every rule that leads to one of these ports, as it arrives here: of the routes on the services
/// themselves, and of those on other services that have one of these as backend.
fn rules<'a>(world: &'a World, ports: &[&ServicePort]) -> Vec<(&'a EffectiveRule, Match)> {
    let parents = ports.iter().flat_map(|port| world.parents_of(&port.service));
    let mut services: Vec<_> = ports.iter().map(|port| &port.service).chain(parents).collect();
    services.sort_unstable();
    services.dedup();
    let tables =
        services.into_iter().filter_map(|service| world.traffic(service)).flat_map(|traffic| &traffic.ports);
    let entries = tables.flat_map(|port| {
        port.table.order.iter().filter_map(|(rule, one)| {
            let rule = port.table.rules.get(*rule)?;
            Some((rule, rule.rule.matches.get(*one)?))
        })
    });
    let leads_here = |rule: &EffectiveRule| {
        rule.backends.iter().any(|backend| backend.to.as_ref().is_ok_and(|to| ports.contains(&to)))
    };
    entries
        .filter(|(rule, _)| rule.rule.filters.redirect.is_none() && leads_here(rule))
        .map(|(rule, one)| (rule, arrived(rule, one)))
        .collect()
}

/// A match as what it matched looks after the rule's rewrite.
fn arrived(rule: &EffectiveRule, one: &Match) -> Match {
    let edit = rule.rule.filters.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    let path = match edit {
        None => one.path.clone(),
        Some(PathEdit::Full(full)) => PathMatch::Exact(full.clone()),
        Some(PathEdit::Prefix(prefix)) => match prefix.trim_end_matches('/') {
            "" => PathMatch::Prefix("/".into()),
            prefix => PathMatch::Prefix(prefix.into()),
        },
    };
    Match { path, ..one.clone() }
}

fn entry(name: &str, rule: &EffectiveRule, one: &Match) -> Entry {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(name.to_owned())),
        ..plain()
    };
    let route = Route {
        name: rule.name.to_string(),
        r#match: Some(matching::compile(one)),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let own = rule.policy.settings.rate_limit.as_ref().filter(|limit| by_route(limit));
    (route, limits(own))
}

#[cfg(test)]
mod tests;
