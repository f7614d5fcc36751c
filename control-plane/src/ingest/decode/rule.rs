//! How long calls took by the configured rule that routed them.

use std::sync::Arc;

use weft_wire::{ServiceId, ServicePort, attribute};

use super::point::{Point, Reading};
use super::{Attributes, Decoder};
use crate::graph::Histogram;

/// Calls that one rule sent to one backend.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `HTTPRoute/<namespace>/<name>/<rule>`, or `default`.
    pub name: Arc<str>,
    /// The cluster that was chosen.
    pub backend: Arc<str>,
    /// The service that was asked for, as `name.namespace:port`.
    pub service: Arc<str>,
    /// Whether they failed.
    pub failed: bool,
    /// How long they took.
    pub durations: Histogram,
    /// When the interval ended, in Unix nanoseconds of the sender's clock.
    pub end: u64,
}

impl Decoder {
    pub(super) fn rule(&mut self, point: &Point<'_>, attributes: &Attributes<'_>) -> Option<Rule> {
        let Reading::Durations(Some(durations)) = &point.value else { return None };
        let name = attributes.text(attribute::ROUTE_NAME)?;
        let backend = attributes.text(attribute::ROUTE_BACKEND)?;
        if durations.count() == 0 || !super::is_plain(name) || !super::is_plain(backend) {
            return None;
        }
        let service: ServiceId = attributes.text(attribute::PEER_SERVICE)?.parse().ok()?;
        let port = u16::try_from(attributes.port).ok()?;
        let service = ServicePort { service, port }.to_string();
        Some(Rule {
            name: self.intern(name),
            backend: self.intern(backend),
            service: self.intern(&service),
            failed: attributes.text(attribute::ERROR_TYPE).is_some(),
            durations: durations.clone(),
            end: point.end,
        })
    }
}
