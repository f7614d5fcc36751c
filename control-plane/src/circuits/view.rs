//! The table as the API shows it. The serde types of this module *are* the API; its shape is fixed by a golden
//! test and described in `api/openapi.json`.
//!
//! Invariant: circuits that need a look come first, then by id, so equal states give equal text.

use serde::Serialize;

use super::table::{Circuit as Entry, Seen, Told};
use super::{Circuits, Id, Kind, Observer as Who, Sighting, State, cause};
use crate::graph::Timestamp;

/// Circuits in one answer: some hundred kilobytes. Those that are not closed come first.
const CIRCUITS_SHOWN: usize = 2_000;
/// Observers shown per circuit; the worst first.
const OBSERVERS_SHOWN: usize = 20;
/// Transitions shown: what fits on a few screens.
const EVENTS_SHOWN: usize = 200;
/// Counts of a closed circuit that was not spoken of for this long are over: three reports.
const COUNTS_FRESH: std::time::Duration = std::time::Duration::from_secs(3);

/// Every circuit, and what happened last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Document {
    /// Grows whenever anything in it changes; only equality and order have a meaning.
    pub version: u64,
    /// When it was made.
    pub at: Timestamp,
    /// Number of circuits, also those beyond what is shown.
    pub circuits_total: usize,
    /// Circuits, those that are not closed first.
    pub circuits: Vec<Circuit>,
    /// Transitions, newest first.
    pub events: Vec<Event>,
}

/// One circuit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Circuit {
    /// `endpoint|orders.shop:8080|10.0.0.7:8080`.
    pub id: String,
    /// What it guards.
    pub kind: Kind,
    /// The cluster it belongs to.
    pub service: String,
    /// The address it guards; `null` for the circuit of a whole service.
    pub endpoint: Option<Endpoint>,
    /// The worst of its observers' states.
    pub state: State,
    /// Why, a word; `null` when it never opened.
    pub cause: Option<String>,
    /// Why, in words.
    pub cause_text: Option<String>,
    /// Since when it is in its state.
    pub since: Option<Timestamp>,
    /// When the first observer lets something through again.
    pub next_probe_at: Option<Timestamp>,
    /// Calls in the observers' windows.
    pub calls: u64,
    /// Failed calls in the observers' windows.
    pub errors: u64,
    /// Slow calls in the observers' windows.
    pub slow: u64,
    /// `errors` of `calls`; 0 without calls.
    pub error_ratio: f64,
    /// Number of observers for which it is open.
    pub open_on: usize,
    /// Number of observers.
    pub observers_total: usize,
    /// The observers, worst first.
    pub observers: Vec<Observer>,
}

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// The address and port.
    pub address: String,
    /// The workload there.
    pub workload: Option<String>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its pod.
    pub pod: Option<String>,
}

/// A circuit in the eyes of one proxy instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Observer {
    /// Who looks.
    #[serde(flatten)]
    pub proxy: Proxy,
    /// The state it sees.
    pub state: State,
    /// Why.
    pub cause: Option<String>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// When it lets something through again.
    pub next_probe_at: Option<Timestamp>,
    /// Calls in its window.
    pub calls: u64,
    /// Failed calls in its window.
    pub errors: u64,
    /// Slow calls in its window.
    pub slow: u64,
}

/// A proxy instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// One start of one sidecar.
    pub instance: String,
    /// What it stands in front of.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its pod.
    pub pod: Option<String>,
}

/// A circuit that changed its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Unique.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// The circuit's id.
    pub circuit: String,
    /// The cluster it belongs to.
    pub service: String,
    /// The address it guards.
    pub endpoint: Option<Endpoint>,
    /// Whose circuit it is.
    pub observer: Proxy,
    /// The state before.
    pub from: State,
    /// The state after.
    pub to: State,
    /// Why, a word.
    pub cause: Option<String>,
    /// Why, in words.
    pub cause_text: Option<String>,
    /// When it lets something through again.
    pub next_probe_at: Option<Timestamp>,
    /// Calls in its window.
    pub calls: u64,
    /// Failed calls in its window.
    pub errors: u64,
}

impl Circuits {
    /// Everything, as of `now`. Its version is 0: whoever publishes it numbers it.
    #[must_use]
    pub fn document(&self, now: Timestamp) -> Document {
        let mut order: Vec<(State, &Id, &Entry)> =
            self.circuits().filter_map(|(id, entry)| Some((entry.worst()?, id, entry))).collect();
        // Ids are in order already, and the sort is stable.
        order.sort_by_key(|(state, ..)| std::cmp::Reverse(*state));
        let circuits_total = order.len();
        let shown = order.into_iter().take(CIRCUITS_SHOWN);
        Document {
            version: 0,
            at: now,
            circuits_total,
            circuits: shown.map(|(state, id, entry)| circuit(state, id, entry, now)).collect(),
            events: self.told().take(EVENTS_SHOWN).map(event).collect(),
        }
    }
}

impl Document {
    /// Everything equal but the version and the clock.
    #[must_use]
    pub fn same_content(&self, other: &Self) -> bool {
        self.circuits_total == other.circuits_total
            && self.circuits == other.circuits
            && self.events == other.events
    }
}

fn circuit(state: State, id: &Id, entry: &Entry, now: Timestamp) -> Circuit {
    let mut seen: Vec<&Seen> = entry.seen.values().collect();
    seen.sort_by_key(|seen| std::cmp::Reverse(seen.sighting.state));
    let in_state = || seen.iter().map(|seen| &seen.sighting).filter(|sighting| sighting.state == state);
    // Not closed since the first observer saw it so; closed since the last one did.
    let told = match state {
        State::Closed => in_state().max_by_key(|sighting| sighting.since),
        State::HalfOpen | State::Open => {
            in_state().min_by_key(|sighting| (sighting.since.is_none(), sighting.since))
        }
    };
    let counts = seen.iter().map(|seen| counts(&seen.sighting, now));
    let (calls, errors, slow) = counts.fold((0u64, 0u64, 0u64), |sum, next| {
        (sum.0.saturating_add(next.0), sum.1.saturating_add(next.1), sum.2.saturating_add(next.2))
    });
    Circuit {
        id: id.to_string(),
        kind: id.kind,
        service: id.cluster.to_string(),
        endpoint: seen.first().and_then(|seen| endpoint(&seen.sighting)),
        state,
        cause: told.and_then(|sighting| sighting.cause.as_deref()).map(ToOwned::to_owned),
        cause_text: told.and_then(cause::text),
        since: told.and_then(|sighting| sighting.since),
        next_probe_at: in_state().filter_map(|sighting| sighting.next_probe).min(),
        calls,
        errors,
        slow,
        error_ratio: ratio(errors, calls),
        open_on: seen.iter().filter(|seen| seen.sighting.state == State::Open).count(),
        observers_total: seen.len(),
        observers: seen.iter().take(OBSERVERS_SHOWN).map(|seen| observer(seen, now)).collect(),
    }
}

fn observer(seen: &Seen, now: Timestamp) -> Observer {
    let sighting = &seen.sighting;
    let (calls, errors, slow) = counts(sighting, now);
    Observer {
        proxy: proxy(&seen.observer),
        state: sighting.state,
        cause: sighting.cause.as_deref().map(ToOwned::to_owned),
        since: sighting.since,
        next_probe_at: sighting.next_probe,
        calls,
        errors,
        slow,
    }
}

/// Calls, errors and slow calls. A circuit that nobody speaks of has no traffic.
fn counts(sighting: &Sighting, now: Timestamp) -> (u64, u64, u64) {
    if now.since(sighting.at) > COUNTS_FRESH {
        return (0, 0, 0);
    }
    (sighting.calls, sighting.errors, sighting.slow)
}

fn ratio(errors: u64, calls: u64) -> f64 {
    if calls == 0 { 0.0 } else { (errors as f64 / calls as f64 * 1e4).round() / 1e4 }
}

fn endpoint(sighting: &Sighting) -> Option<Endpoint> {
    let address = sighting.id.endpoint?;
    let callee = &sighting.callee;
    Some(Endpoint {
        address: address.to_string(),
        workload: callee.workload.as_ref().map(|workload| workload.name().to_owned()),
        namespace: callee.workload.as_ref().map(|workload| workload.namespace().to_owned()),
        version: callee.version.as_deref().map(ToOwned::to_owned),
        pod: callee.pod.as_deref().map(ToOwned::to_owned),
    })
}

fn proxy(observer: &Who) -> Proxy {
    Proxy {
        instance: observer.instance.to_string(),
        workload: observer.workload.name().to_owned(),
        namespace: observer.workload.namespace().to_owned(),
        pod: observer.pod.as_deref().map(ToOwned::to_owned),
    }
}

fn event(told: &Told) -> Event {
    let Told { observer, transition } = told;
    let sighting = &transition.sighting;
    Event {
        id: format!("{}-{}", observer.instance, transition.sequence),
        at: sighting.at,
        circuit: sighting.id.to_string(),
        service: sighting.id.cluster.to_string(),
        endpoint: endpoint(sighting),
        observer: proxy(observer),
        from: transition.from,
        to: sighting.state,
        cause: sighting.cause.as_deref().map(ToOwned::to_owned),
        cause_text: cause::text(sighting),
        next_probe_at: sighting.next_probe,
        calls: sighting.calls,
        errors: sighting.errors,
    }
}
