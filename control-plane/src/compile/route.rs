//! Route tables: what callers of a service port go by.
//!
//! Where no route is attached there is one rule, named `default`, to the cluster of the table's own name. Where some
//! are, every match of every rule becomes one entry, in the order that `world::traffic` found, all bearing the rule's
//! name; what matches none of them is answered with 404.

mod action;
mod edit;
pub(super) mod matching;

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use envoy_types::pb::google::protobuf::UInt64Value;
use weft_wire::xds::REPLAY_BYTES;

use super::proto::{PerFilter, duration};
use super::{Resource, Target, direct, filters, finish, inbound, provisional};
use crate::world::{EffectiveRule, PortTraffic, World};

/// The name of the entry that stands where no route is attached.
pub(super) const DEFAULT: &str = "default";

/// A route and what it says to the filters in front of the router.
pub(super) type Entry = (Route, PerFilter);

pub(super) fn compile(world: &World, name: &str, namespace: &str) -> Option<Resource> {
    match Target::parse(name)? {
        Target::Service(port) => {
            let service = world.service(&port.service)?;
            let provisional = provisional(service, service.port(port.port)?);
            let traffic = world.port_traffic(&port);
            let entries = match traffic.map(|traffic| traffic.table_for(namespace)) {
                Some(table) if table.attached => {
                    let entry =
                        |(rule, one): &(usize, usize)| entry(table.rules.get(*rule)?, *one, port.port);
                    table.order.iter().filter_map(entry).collect()
                }
                Some(_) | None => vec![fallback(name, traffic)],
            };
            Some(table(name, PerFilter::default(), entries, provisional))
        }
        Target::Direct(address) => {
            direct(world, address)?;
            Some(table(name, PerFilter::default(), vec![fallback(name, None)], true))
        }
        Target::App(address) => inbound::table(world, name, address),
    }
}

/// A table with one virtual host, which says `filters` to all its entries.
pub(super) fn table(name: &str, filters: PerFilter, entries: Vec<Entry>, provisional: bool) -> Resource {
    let (routes, said): (Vec<Route>, Vec<PerFilter>) = entries.into_iter().unzip();
    let host = VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes,
        request_body_buffer_limit: Some(UInt64Value { value: REPLAY_BYTES }),
        ..Default::default()
    };
    let table = RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host], ..Default::default() };
    let put = |table: &mut RouteConfiguration, at: usize, said: PerFilter| {
        let Some(host) = table.virtual_hosts.first_mut() else { return };
        // The first is the host's own, the others are its routes'.
        match at.checked_sub(1) {
            None => host.typed_per_filter_config = said.into_map(),
            Some(at) => {
                if let Some(route) = host.routes.get_mut(at) {
                    route.typed_per_filter_config = said.into_map();
                }
            }
        }
    };
    finish(table, [filters].into_iter().chain(said).collect(), put, provisional)
}

/// One match of one rule.
fn entry(rule: &EffectiveRule, one: usize, port: u16) -> Option<Entry> {
    let matching = rule.rule.matches.get(one)?;
    let edits = &rule.rule.filters;
    let (request_headers_to_add, request_headers_to_remove) = edit::headers(&edits.request);
    let (response_headers_to_add, response_headers_to_remove) = edit::headers(&edits.response);
    let said = PerFilter::default()
        .with(filters::CORS, edits.cors.as_ref().map(filters::cors).as_ref())
        .with(filters::FAULT, rule.policy.settings.fault.as_ref().map(filters::fault).as_ref());
    let route = Route {
        name: rule.name.to_string(),
        r#match: Some(matching::compile(matching)),
        action: Some(action::compile(rule, &matching.path, port)),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        ..Default::default()
    };
    Some((route, said))
}

/// Everything to the cluster of this name.
fn fallback(cluster: &str, traffic: Option<&PortTraffic>) -> Entry {
    let settings = traffic.map(|traffic| &traffic.policy.settings);
    let action = match traffic {
        Some(traffic) => action::with_policy(&traffic.policy.settings, None, traffic.mirror.iter()),
        None => plain(),
    };
    let fault = settings.and_then(|settings| settings.fault.as_ref());
    let said = PerFilter::default().with(filters::FAULT, fault.map(filters::fault).as_ref());
    (everything(DEFAULT, cluster, action), said)
}

/// A route that matches every request.
pub(super) fn everything(name: &str, cluster: &str, action: RouteAction) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..action
    };
    Route {
        name: name.to_owned(),
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    }
}

/// An action that nobody configured, still without its cluster.
pub(super) fn plain() -> RouteAction {
    RouteAction {
        // Zero is "no limit"; left out, Envoy would cut every response at 15 seconds, and a mesh that nobody
        // configured must not.
        timeout: Some(duration(Duration::ZERO)),
        cluster_not_found_response_code: route_action::ClusterNotFoundResponseCode::InternalServerError
            .into(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests;
