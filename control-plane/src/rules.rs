//! How the configured rules do: requests, failures and latency by rule and backend.
//!
//! In: the histograms `weft.client.route.duration` of each report. Out: [`Figures`] per (service, rule, backend) in
//! a window, for `/api/routes`.
//! Invariants: no IO and no clock; samples in any order give the same figures; at most [`RULES_MAX`] series, and
//! what does not fit is counted.
//! Non-goals: who called, which is the graph's; and history. The figures are not journaled: after a restart they
//! fill again within the window, while the graph's counts, which people add up, survive.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::graph::window::Timeline;
use crate::graph::{Histogram, Timestamp, Verdict, Window};

/// Series at a time. One with traffic all the time takes about 60 kB, so this is 120 MB at worst; a mesh of two
/// hundred services with three rules each and a canary on some has a thousand.
pub const RULES_MAX: usize = 2_000;

/// A series without traffic for this long is forgotten: no window reaches further.
const IDLE_MAX: Duration = Duration::from_secs(3_600);

/// Names a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Series {
    /// The service that was asked for, `name.namespace:port`.
    pub service: Arc<str>,
    /// The rule: `HTTPRoute/<namespace>/<name>/<rule>`, or `default`.
    pub rule: Arc<str>,
    /// The cluster that it chose.
    pub backend: Arc<str>,
}

/// What was counted in a window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
    /// How long they took.
    pub durations: Histogram,
}

impl Figures {
    /// Adds everything in `other`.
    pub fn merge(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.failed = self.failed.saturating_add(other.failed);
        self.durations.merge(&other.durations);
    }

    /// Share of requests that did not fail.
    #[must_use]
    pub fn success_rate(&self) -> Option<f64> {
        (self.requests > 0).then(|| 1.0 - self.failed.min(self.requests) as f64 / self.requests as f64)
    }
}

#[derive(Debug)]
struct Entry {
    timeline: Timeline,
    last_seen: Timestamp,
}

/// Every series.
#[derive(Debug, Default)]
pub struct Rules {
    series: BTreeMap<Series, Entry>,
    dropped: u64,
    since: Option<Timestamp>,
}

impl Rules {
    /// Counts calls that ended around `at`.
    pub fn apply(&mut self, series: Series, at: Timestamp, failed: bool, durations: &Histogram) {
        if self.series.len() >= RULES_MAX && !self.series.contains_key(&series) {
            self.dropped += durations.count();
            return;
        }
        self.since = Some(self.since.map_or(at, |since| since.min(at)));
        let fresh = || Entry { timeline: Timeline::new(), last_seen: at };
        let entry = self.series.entry(series).or_insert_with(fresh);
        entry.last_seen = entry.last_seen.max(at);
        // One cell per slot is all that is used of it; its failures need no reason.
        let (verdict, reason) = if failed { (Verdict::Failure, Some(0)) } else { (Verdict::Success, None) };
        entry.timeline.write(at, true, |slot| slot.route_mut(0).0.add(verdict, durations, reason));
    }

    /// What was counted in `window` at `now`, by series. Series without traffic in it are left out.
    #[must_use]
    pub fn figures(&self, window: Window, now: Timestamp) -> BTreeMap<Series, Figures> {
        let sums = self.series.iter().map(|(series, entry)| {
            let slot = entry.timeline.sum(window, now);
            let cell = slot.requests();
            let figures =
                Figures { requests: cell.count(), failed: cell.failed(), durations: cell.durations };
            (series.clone(), figures)
        });
        sums.filter(|(_, figures)| figures.requests > 0).collect()
    }

    /// How much of the window was watched: less than its length just after the start.
    #[must_use]
    pub fn covered(&self, window: Window, now: Timestamp) -> Duration {
        // The interval before the first report counts as watched.
        const INTERVAL: Duration = Duration::from_secs(1);
        let seen = self.since.map_or(Duration::ZERO, |since| now.since(since)) + INTERVAL;
        window.span(now).covered().min(seen)
    }

    /// Forgets what no window can reach any more.
    pub fn expire(&mut self, now: Timestamp) {
        self.series.retain(|_, entry| {
            entry.timeline.expire(now);
            now.since(entry.last_seen) <= IDLE_MAX
        });
    }

    /// Number of series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.series.len()
    }

    /// Whether nothing was counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// Requests that were not counted because there was no room for their series.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// A handle on the one table of this program. The lock is held for arithmetic only.
#[derive(Debug, Clone, Default)]
pub struct SharedRules(Arc<Mutex<Rules>>);

impl SharedRules {
    /// Runs `work` on the table.
    pub fn with<R>(&self, work: impl FnOnce(&mut Rules) -> R) -> R {
        // A panic in `work` cannot leave a torn invariant behind that matters more than an available table.
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_795_219_200_500);

    fn series(rule: usize) -> Series {
        Series {
            service: "orders.shop:8080".into(),
            rule: format!("HTTPRoute/shop/orders/{rule}").into(),
            backend: "orders-v2.shop:8080".into(),
        }
    }

    fn calls(count: u32) -> Histogram {
        let mut durations = Histogram::default();
        durations.add(0, count);
        durations
    }

    #[test]
    fn a_rule_counts_in_its_window_and_is_forgotten_after_the_longest() {
        let mut rules = Rules::default();
        rules.apply(series(0), NOW, false, &calls(9));
        rules.apply(series(0), NOW.minus(Duration::from_secs(1)), true, &calls(1));
        rules.apply(series(0), NOW.minus(Duration::from_secs(90)), true, &calls(5));
        let minute = rules.figures(Window::Minute, NOW);
        let figures = &minute[&series(0)];
        assert_eq!((figures.requests, figures.failed, figures.success_rate()), (10, 1, Some(0.9)));
        assert_eq!(rules.figures(Window::FiveMinutes, NOW)[&series(0)].requests, 15);
        let later = NOW.plus(Duration::from_secs(600));
        assert!(rules.figures(Window::FiveMinutes, later).is_empty());
        rules.expire(later);
        assert_eq!(rules.len(), 1, "the hour still has it");
        rules.expire(NOW.plus(IDLE_MAX).plus(Duration::from_secs(1)));
        assert!(rules.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        let mut rules = Rules::default();
        for rule in 0..RULES_MAX + 2 {
            rules.apply(series(rule), NOW, false, &calls(3));
        }
        assert_eq!((rules.len(), rules.dropped()), (RULES_MAX, 6));
        rules.apply(series(0), NOW, false, &calls(1));
        assert_eq!(rules.dropped(), 6, "what is known goes on");
    }
}
