//! What rules of access said to calls.

use std::sync::Arc;

use weft_wire::access::verdict;
use weft_wire::{ServiceId, ServicePort, attribute};

use super::point::{Point, Reading};
use super::{Attributes, Decoder};

/// Calls to which a rule said the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `AccessPolicy/<namespace>/<name>/<rule>`, or that there was none.
    pub rule: Arc<str>,
    /// One of the words in `wire::access::verdict`.
    pub verdict: Arc<str>,
    /// The service that was called, as `name.namespace:port`; an address where none is known.
    pub service: Arc<str>,
    /// How many there were.
    pub count: u64,
    /// When the interval ended, in Unix nanoseconds of the sender's clock.
    pub end: u64,
}

impl Decoder {
    pub(super) fn decision(&mut self, point: &Point<'_>, attributes: &Attributes<'_>) -> Option<Decision> {
        let Reading::Number(Some(count)) = point.value else { return None };
        let rule = attributes.text(attribute::ACCESS_RULE)?;
        let said = attributes.text(attribute::ACCESS_VERDICT)?;
        let words = [verdict::ALLOWED, verdict::DENIED, verdict::WOULD_ALLOW, verdict::WOULD_DENY];
        if count == 0 || !super::is_plain(rule) || !words.contains(&said) {
            return None;
        }
        let port = u16::try_from(attributes.port).ok()?;
        let service = match attributes.text(attribute::PEER_SERVICE) {
            Some(service) => ServicePort { service: service.parse::<ServiceId>().ok()?, port }.to_string(),
            None => format!(
                "{}:{port}",
                attributes.text(attribute::SERVER_ADDRESS).filter(|a| super::is_plain(a))?
            ),
        };
        Some(Decision {
            rule: self.intern(rule),
            verdict: self.intern(said),
            service: self.intern(&service),
            count,
            end: point.end,
        })
    }
}
