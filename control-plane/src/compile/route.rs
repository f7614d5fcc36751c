//! Route tables: for now, everything goes to the cluster of the same name.

use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use std::time::Duration;

use super::proto::duration;
use super::{Resource, Target, direct, finish, provisional};
use crate::world::World;

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    let provisional = match Target::parse(name)? {
        Target::Service(port) => {
            let service = world.service(&port.service)?;
            provisional(service, service.port(port.port)?)
        }
        Target::Direct(address) => {
            direct(world, address)?;
            true
        }
        // The inbound table stands inside its listener.
        Target::App(_) => return None,
    };
    Some(finish(table(name, name), Vec::new(), |_, _, _| {}, provisional))
}

/// A table that sends every request to one cluster.
pub(super) fn table(name: &str, cluster: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        // Zero is "no limit"; left out, Envoy would cut every response at 15 seconds, and a mesh that nobody
        // configured must not.
        timeout: Some(duration(Duration::ZERO)),
        ..Default::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(route::Action::Route(action)),
        ..Default::default()
    };
    let host = VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        ..Default::default()
    };
    RouteConfiguration { name: name.to_owned(), virtual_hosts: vec![host], ..Default::default() }
}
