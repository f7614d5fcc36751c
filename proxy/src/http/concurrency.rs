//! The bounds on concurrency that find themselves, one for each of the app's ports that asks for one.
//!
//! In: a port and its settings; requests that begin and end. Out: leave to go on. The rule itself is pure
//! ([`crate::policy::adaptive`]); here is its clock, its dice, and the guard that rides along with a request. Invariant:
//! settings that stay the same keep what was learned, whatever else about the port changes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use http::StatusCode;

use crate::policy::adaptive::{Adaptive, Begun};
use crate::route::policies::Gradient;

/// Ports with a bound, at most. An app has a handful; those that nobody is connected to make room.
const PORTS_MAX: usize = 64;

/// All bounds of one worker.
#[derive(Debug, Default)]
pub struct Ports(RefCell<HashMap<SocketAddr, Rc<Port>>>);

/// The bound of one port.
#[derive(Debug)]
pub struct Port(RefCell<Adaptive>);

impl Ports {
    /// The bound of `app` with these settings.
    #[must_use]
    pub fn of(&self, app: SocketAddr, settings: &Gradient, now: Instant) -> Rc<Port> {
        let mut ports = self.0.borrow_mut();
        if let Some(known) = ports.get(&app)
            && known.is(settings)
        {
            return Rc::clone(known);
        }
        let new = Rc::new(Port(RefCell::new(Adaptive::new(*settings, now))));
        if ports.len() >= PORTS_MAX {
            ports.retain(|_, port| Rc::strong_count(port) > 1);
        }
        if ports.len() < PORTS_MAX {
            ports.insert(app, Rc::clone(&new));
        }
        new
    }
}

impl Port {
    /// Whether it is the bound that these settings ask for.
    #[must_use]
    pub fn is(&self, settings: &Gradient) -> bool {
        self.0.borrow().settings() == settings
    }

    /// Leave for a request; `None` is `overloaded`.
    pub fn begin(self: &Rc<Self>, now: Instant) -> Option<InProgress> {
        let begun = self.0.borrow_mut().begin(now)?;
        Some(InProgress { port: Rc::clone(self), begun: Some(begun) })
    }

    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.0.borrow().settings().status
    }
}

/// A request that the app is working on.
#[derive(Debug)]
#[must_use = "the request counts as in progress for as long as this lives"]
pub struct InProgress {
    port: Rc<Port>,
    begun: Option<Begun>,
}

impl InProgress {
    /// The app has answered all of it. Dropped without, its latency says nothing.
    pub fn end(mut self, now: Instant) {
        if let Some(begun) = self.begun.take() {
            self.port.0.borrow_mut().end(begun, now, fastrand::f64());
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.port.0.borrow_mut().abandon(begun);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::policies::MinRtt;

    #[test]
    fn the_same_settings_keep_what_was_learned() {
        let settings = Gradient {
            percentile_per_mille: 500,
            limit_max: 10,
            update_interval: Duration::from_millis(100),
            min_rtt: MinRtt::Fixed(Duration::from_millis(5)),
            limit_min: 1,
            buffer_per_mille: 250,
            status: StatusCode::SERVICE_UNAVAILABLE,
        };
        let (ports, now) = (Ports::default(), Instant::now());
        let app = SocketAddr::from(([10, 0, 0, 7], 80));
        let port = ports.of(app, &settings, now);
        let one = port.begin(now).expect("room");
        assert!(ports.of(app, &settings, now).begin(now).is_none(), "one for all connections");
        drop(one);
        assert!(port.begin(now).is_some());
        let other = Gradient { limit_min: 2, ..settings };
        assert!(!Rc::ptr_eq(&port, &ports.of(app, &other, now)));
    }
}
