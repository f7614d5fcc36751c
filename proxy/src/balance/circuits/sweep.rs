//! What time changes in circuits: the admin thread's part.
//!
//! In: `now`. Out: ejected endpoints that return, endpoints ejected for what their interval's numbers say, circuits that are
//! half open, what nobody uses forgotten; and when to come again. An interval's sweep is Envoy's `onIntervalTimer`:
//! first those whose time is over return and those that behaved have their back-off reduced, then success rates and
//! failure percentages are judged.
//!
//! Invariants: one thread sweeps; what it does to an endpoint it does by the same atomics as the workers. Surprise: an
//! endpoint's ejection ends at the first sweep after its time, as in Envoy, so it may last up to an interval longer.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::breaker::outlier::{Origin, Sample, Settings};
use super::super::breaker::{Position, circuit};
use super::cluster::ClusterState;
use super::endpoint::EndpointState;
use super::{Circuits, lock};

/// A sweep comes at least this often: it forgets what workers have let go of without a word.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// After a sweep at least this much time passes, however much changes: a thousand transitions are looked at together.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// A sweep over thousands of clusters takes its time; this many times as long is rested after it, so that sweeping never
/// takes more than a hundredth of a thread.
const REST: u32 = 100;

impl Circuits {
    /// Sweeps until `end`, whenever something is due.
    pub async fn tend(self: Arc<Self>, end: impl Future<Output = ()>) {
        let sweeping = async {
            loop {
                let now = Instant::now();
                let due = self.sweep(now);
                tokio::time::sleep(PAUSE_MIN.max(now.elapsed() * REST)).await;
                let pause = due.saturating_duration_since(Instant::now());
                // Cut short by what changed, also while the sweep was going on.
                drop(tokio::time::timeout(pause, self.shared.changed.notified()).await);
            }
        };
        tokio::select! {
            () = sweeping => {}
            () = end => {}
        }
    }

    /// Does what is due at `now`, and says when to come again unless something changes.
    pub fn sweep(&self, now: Instant) -> Instant {
        lock(&self.clusters).retain(|_, cluster| Arc::strong_count(cluster) > 1);
        let millis = self.shared.clock.millis(now);
        let due = self.all().iter().filter_map(|cluster| cluster.sweep(millis)).min();
        let pause = due.map_or(PAUSE_MAX, |due| Duration::from_millis(due.saturating_sub(millis)));
        now + pause.min(PAUSE_MAX)
    }
}

impl ClusterState {
    /// When something is due next, if anything is.
    fn sweep(&self, now: u64) -> Option<u64> {
        self.forget(now);
        let origin = self.core().origin();
        let breaking = &origin.as_ref()?.breaking;
        let circuit = self.sweep_circuit(breaking.circuit.as_ref(), now);
        let interval = match &breaking.outlier {
            Some(settings) => Some(self.sweep_interval(settings, now)),
            None => {
                // The first sweep without it, or somebody was ejected at the very last moment.
                if self.swept.interval.swap(0, Ordering::Relaxed) != 0 || self.ejected() > 0 {
                    self.in_order().iter().for_each(|endpoint| endpoint.acquit(now));
                }
                None
            }
        };
        circuit.into_iter().chain(interval).min()
    }

    fn sweep_circuit(&self, settings: Option<&circuit::Settings>, now: u64) -> Option<u64> {
        let core = self.core();
        match settings {
            Some(settings) => core.circuit.tick(core, settings, now),
            None if core.circuit.state().position != Position::Closed => core.circuit.remove(core, now),
            None => {}
        }
        core.circuit.state().due()
    }

    /// Ends an interval, if it is over; when the next one will be.
    fn sweep_interval(&self, settings: &Settings, now: u64) -> u64 {
        let length = settings.interval.as_millis() as u64;
        let begun = self.swept.interval.load(Ordering::Relaxed).checked_sub(1);
        let over = begun.is_some_and(|begun| now >= begun.saturating_add(length));
        if over {
            end_interval(settings, &self.in_order(), now);
        }
        match begun {
            Some(begun) if !over => begun.saturating_add(length),
            _ => {
                self.swept.interval.store(now + 1, Ordering::Relaxed);
                now.saturating_add(length)
            }
        }
    }
}

fn end_interval(settings: &Settings, endpoints: &[Arc<EndpointState>], now: u64) {
    for endpoint in endpoints {
        let state = endpoint.state();
        if state.may_return(now) {
            endpoint.uneject(now);
        } else if !state.ejected {
            endpoint.calm(now);
        }
    }
    for origin in [Origin::External, Origin::Local] {
        // Taken from everybody, so that all begin a new interval.
        let sample = |endpoint: &Arc<EndpointState>| {
            let sample = endpoint.take_sample(origin);
            (!endpoint.state().ejected).then_some(sample)
        };
        let samples: Vec<Option<Sample>> = endpoints.iter().map(sample).collect();
        for (position, cause) in settings.outliers(origin, &samples) {
            endpoints[position].eject(cause, settings, now);
        }
    }
}
