//! How an AccessPolicy fares, and what its author should know of the places where it counts.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use weft_wire::ServicePort;
use weft_wire::tls::Mode;
use weft_wire::xds::Protocol;

use super::super::World;
use super::super::status::{Condition, ConditionKind, ObjectStatus, Subject, accepted, attached};
use super::{AccessSpec, Action};

/// Places that one note names.
const PLACES_TOLD: usize = 3;

impl World {
    pub(in crate::world) fn access_status(&self, spec: &AccessSpec) -> ObjectStatus {
        let namespace = &spec.id.name.namespace;
        let mut services = BTreeSet::new();
        let outcomes = spec.targets.iter().map(|target| {
            let ports = self.target_ports(target);
            ports.map(|ports| services.extend(ports)).map_err(|rejection| (target.to_string(), rejection))
        });
        let outcomes: Vec<_> = outcomes.collect();
        let mut targets: Vec<String> = spec.targets.iter().map(ToString::to_string).collect();
        if targets.is_empty() {
            targets.push(format!("Namespace {namespace}"));
            let own = self.services.values().filter(|service| service.id.namespace() == &**namespace);
            services.extend(own.flat_map(|service| {
                let port = |number| ServicePort { service: service.id.clone(), port: number };
                service.ports.iter().map(move |one| port(one.number))
            }));
        }
        let note = self.notes(spec, &services).join("; ");
        let attached = attached(&outcomes, &note);
        let mut conditions = vec![accepted(outcomes, &note)];
        conditions.extend(self.overruled(spec, &services));
        ObjectStatus {
            subject: Subject::Policy(spec.id.clone()),
            generation: spec.generation,
            targets,
            attached,
            services,
            conditions,
        }
    }

    /// What may surprise its author.
    fn notes(&self, spec: &AccessSpec, services: &BTreeSet<ServicePort>) -> Vec<String> {
        let Some(access) = &spec.access else { return Vec::new() };
        let mut notes = Vec::new();
        let needs_identity =
            access.rules.iter().flat_map(|rule| &rule.from).any(super::Source::needs_identity);
        if needs_identity {
            let plain = |mode| self.places(services, move |world, address| world.mtls_at(address) == mode);
            notes.extend(told(plain(Mode::Permissive), |places| {
                format!("{places} take plain text too: such a caller has no identity and fits no rule that needs one")
            }));
            notes.extend(told(plain(Mode::Disabled), |places| {
                format!("{places} take no mutual TLS: no caller has an identity there, and no rule that needs one fits")
            }));
        }
        let looks = access.rules.iter().flat_map(|rule| &rule.to).any(super::Operation::is_http);
        if looks {
            let bytes =
                services.iter().filter(|port| self.is_opaque(port)).map(ToString::to_string).collect();
            notes.extend(told(bytes, |places| match access.action {
                Action::Allow => format!("{places} speak no HTTP: rules that look at it let nobody in there"),
                Action::Deny => {
                    format!("{places} speak no HTTP: rules that look at it count as if they did not")
                }
            }));
        }
        notes
    }

    fn is_opaque(&self, port: &ServicePort) -> bool {
        let known = self.services.get(&port.service).and_then(|service| service.port(port.port));
        known.is_some_and(|port| matches!(port.protocol, Some(Protocol::Tcp | Protocol::Tls)))
    }

    /// The service ports with an endpoint for which something is so.
    fn places(
        &self,
        services: &BTreeSet<ServicePort>,
        is_so: impl Fn(&Self, SocketAddr) -> bool,
    ) -> Vec<String> {
        let so = services.iter().filter(|port| self.endpoints_of(port).any(|address| is_so(self, address)));
        so.map(ToString::to_string).collect()
    }

    fn endpoints_of(&self, port: &ServicePort) -> impl Iterator<Item = SocketAddr> {
        let known = self.services.get(&port.service).and_then(|service| service.port(port.port));
        known.into_iter().flat_map(|port| port.endpoints.iter().map(|endpoint| endpoint.address))
    }

    /// Whether an equal or more specific policy decides about mutual TLS instead.
    fn overruled(&self, spec: &AccessSpec, services: &BTreeSet<ServicePort>) -> Option<Condition> {
        let mut lost = BTreeSet::new();
        for address in services.iter().flat_map(|port| self.endpoints_of(port)) {
            let Some(own) = spec.mtls.ports.get(&address.port()).copied().or(spec.mtls.mode) else {
                continue;
            };
            let Some((winner, mode)) = self.mtls_winner(address) else { continue };
            // The more specific one is meant to win.
            let equal = self.access.policy(winner).is_some_and(|other| {
                self.level_at(other, address) == self.level_at(spec, address)
                    && other.mtls.ports.contains_key(&address.port())
                        == spec.mtls.ports.contains_key(&address.port())
            });
            if *winner != spec.id && mode != own && equal {
                lost.insert(format!("mtls is set by {winner}"));
            }
        }
        (!lost.is_empty()).then(|| Condition {
            kind: ConditionKind::Conflicted,
            holds: true,
            reason: "Conflicted",
            message: lost.into_iter().collect::<Vec<_>>().join("; "),
        })
    }
}

fn told(places: Vec<String>, note: impl Fn(&str) -> String) -> Option<String> {
    let left_out = places.len().saturating_sub(PLACES_TOLD);
    let mut some = places.iter().take(PLACES_TOLD).cloned().collect::<Vec<_>>().join(", ");
    if left_out > 0 {
        some = format!("{some} and {left_out} more");
    }
    (!places.is_empty()).then(|| note(&some))
}
