//! What happens to circuits while the demo runs, in a line each.
//!
//! In: `GET /api/circuits`, asked again and again. Out: sentences for what is new, oldest first. Invariant: every
//! transition is told once; what is remembered is bounded by what the server shows.

use std::collections::HashSet;

use jiff::Timestamp;
use serde::Deserialize;

use crate::circuits::State;

/// `GET /api/circuits`, as far as it is news.
#[derive(Debug, Deserialize)]
pub(super) struct Circuits {
    #[serde(default)]
    events: Vec<Event>,
}

#[derive(Debug, Deserialize)]
struct Event {
    id: String,
    at: Timestamp,
    service: String,
    #[serde(default)]
    endpoint: Option<Endpoint>,
    observer: Observer,
    to: State,
    #[serde(default)]
    cause_text: Option<String>,
    #[serde(default)]
    next_probe_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: String,
    #[serde(default)]
    pod: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Observer {
    workload: String,
}

/// What has been told.
#[derive(Debug)]
pub(super) struct News {
    since: Timestamp,
    told: HashSet<String>,
}

impl News {
    /// Times count from now.
    pub(super) fn new(now: Timestamp) -> Self {
        Self { since: now, told: HashSet::new() }
    }

    /// A sentence for each transition that was not told before.
    pub(super) fn fresh(&mut self, circuits: &Circuits) -> Vec<String> {
        // The server shows the newest first.
        let fresh = circuits.events.iter().rev().filter(|event| !self.told.contains(&event.id));
        let sentences = fresh.map(|event| self.sentence(event)).collect();
        self.told = circuits.events.iter().map(|event| event.id.clone()).collect();
        sentences
    }

    fn sentence(&self, event: &Event) -> String {
        let seconds = event.at.duration_since(self.since).as_secs().max(0);
        let what = match &event.endpoint {
            Some(endpoint) => endpoint.pod.as_deref().unwrap_or(&endpoint.address),
            None => &event.service,
        };
        let who = &event.observer.workload;
        let news = match event.to {
            State::Open => {
                let pause = event.next_probe_at.map(|until| until.duration_since(event.at).as_secs_f64());
                let pause = pause.map(|pause| format!(" for {pause:.0} s")).unwrap_or_default();
                let why = event.cause_text.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
                format!("{who} leaves {what} alone{pause}{why}")
            }
            State::HalfOpen => format!("{who} tries {what} with a few calls"),
            State::Closed => format!("{who} calls {what} again"),
        };
        format!("+{seconds} s  {news}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circuits(events: &[&str]) -> Circuits {
        let text = format!("{{\"events\": [{}]}}", events.join(","));
        serde_json::from_str(&text).expect("the API's JSON")
    }

    #[test]
    fn every_transition_is_told_once_and_in_order() {
        const OPENED: &str = r#"{"id": "a-1", "at": "2026-03-01T12:00:17.2Z", "service": "cart.shop:8080",
            "endpoint": {"address": "10.77.0.11:8080", "pod": "cart-3"}, "observer": {"workload": "web"},
            "from": "closed", "to": "open", "cause_text": "5 server errors in a row",
            "next_probe_at": "2026-03-01T12:00:27.2Z"}"#;
        const CLOSED: &str = r#"{"id": "a-2", "at": "2026-03-01T12:00:28Z", "service": "cart.shop:8080",
            "endpoint": {"address": "10.77.0.11:8080"}, "observer": {"workload": "web"}, "from": "open", "to": "closed"}"#;
        let mut news = News::new("2026-03-01T12:00:00Z".parse().expect("a time"));
        assert_eq!(
            news.fresh(&circuits(&[OPENED])),
            ["+17 s  web leaves cart-3 alone for 10 s: 5 server errors in a row"]
        );
        assert_eq!(news.fresh(&circuits(&[CLOSED, OPENED])), ["+28 s  web calls 10.77.0.11:8080 again"]);
        assert!(news.fresh(&circuits(&[CLOSED, OPENED])).is_empty());
    }
}
