//! A bound on requests in progress that finds itself: as many as the app can take before its latency rises.
//!
//! In: requests that begin and end, and the time. Out: whether another one may begin. The rule is that of Envoy's gradient
//! controller: now and then only a few requests are let in, and their latency is that of an idle app; from then on the
//! bound is multiplied again and again by the ratio of that latency to the present one, plus some room for a queue.
//!
//! Pure: time and randomness are arguments, and nothing happens but when a request begins or ends. Invariants: the bound
//! stays between its limits; what began before a measurement does not belong to it; at most [`SAMPLES_MAX`] latencies
//! are held. Surprise: one bound for each worker, where Envoy has one for all: workers share nothing, and the kernel
//! gives each the same share of connections. Non-goal: fairness among callers.

use std::time::{Duration, Instant};

use crate::route::policies::{Gradient, MinRtt};

/// Latencies kept between two updates, 4 bytes each. Beyond it a latency replaces a random one, which leaves a fair
/// sample.
pub const SAMPLES_MAX: usize = 4096;

/// Updates in a row at the lowest bound after which the idle latency is measured anew: it may have been wrong. Envoy's.
const STUCK_MAX: u32 = 5;

/// By how much one update may change the bound. Envoy's.
const RATIO: std::ops::RangeInclusive<f64> = 0.5..=2.0;

/// The bound and what it is made from.
#[derive(Debug)]
pub struct Adaptive {
    settings: Gradient,
    limit: u32,
    in_progress: u32,
    /// Microseconds.
    samples: Vec<u32>,
    /// Latencies seen since the last update, those beyond the sample included.
    seen: u64,
    /// The latency of an idle app.
    idle: Option<Duration>,
    phase: Phase,
    stuck: u32,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Measuring the idle latency; then the bound is as before.
    Idle { since: Instant, before: u32 },
    /// Following the latency.
    Loaded { update_at: Instant, measure_at: Option<Instant> },
}

/// A request in progress.
#[derive(Debug, Clone, Copy)]
#[must_use = "a request that began must end"]
pub struct Begun(Instant);

impl Adaptive {
    /// Begins with a measurement, or with the idle latency that is known.
    #[must_use]
    pub fn new(settings: Gradient, now: Instant) -> Self {
        let limit = settings.limit_min.max(1);
        let (idle, phase) = match settings.min_rtt {
            MinRtt::Fixed(idle) => {
                (Some(idle), Phase::Loaded { update_at: now + settings.update_interval, measure_at: None })
            }
            MinRtt::Measured { .. } => (None, Phase::Idle { since: now, before: limit }),
        };
        Self { settings, limit, in_progress: 0, samples: Vec::new(), seen: 0, idle, phase, stuck: 0 }
    }

    /// What it was made of.
    #[must_use]
    pub fn settings(&self) -> &Gradient {
        &self.settings
    }

    /// How many may be in progress.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Leave for a request; `None` is `overloaded`.
    pub fn begin(&mut self, now: Instant) -> Option<Begun> {
        self.advance(now);
        (self.in_progress < self.limit).then(|| {
            self.in_progress += 1;
            Begun(now)
        })
    }

    /// A request was answered. `draw` is uniform in 0..1.
    pub fn end(&mut self, begun: Begun, now: Instant, draw: f64) {
        self.abandon(begun);
        if let Phase::Idle { since, .. } = self.phase
            && begun.0 < since
        {
            return;
        }
        self.sample(now.saturating_duration_since(begun.0), draw);
        if let (Phase::Idle { before, .. }, MinRtt::Measured { requests, interval, jitter_per_mille }) =
            (self.phase, self.settings.min_rtt)
            && self.seen >= u64::from(requests)
        {
            self.idle = self.take_percentile();
            self.limit = before;
            let jitter = interval.mul_f64(draw * f64::from(jitter_per_mille) / 1000.0);
            self.phase = Phase::Loaded {
                update_at: now + self.settings.update_interval,
                measure_at: Some(now + interval + jitter),
            };
        }
        self.advance(now);
    }

    /// A request ended without an answer: its latency says nothing.
    pub fn abandon(&mut self, _: Begun) {
        self.in_progress = self.in_progress.saturating_sub(1);
    }

    /// What is due by now.
    fn advance(&mut self, now: Instant) {
        let Phase::Loaded { update_at, measure_at } = self.phase else { return };
        if measure_at.is_some_and(|at| now >= at) {
            return self.measure(now);
        }
        if now < update_at {
            return;
        }
        self.phase = Phase::Loaded { update_at: now + self.settings.update_interval, measure_at };
        // An interval without an answer says nothing.
        let Some(latency) = self.take_percentile() else { return };
        let before = self.limit;
        self.limit = self.next(latency);
        let lowest = self.settings.limit_min.max(1);
        self.stuck = if before == lowest && self.limit == lowest { self.stuck + 1 } else { 0 };
        if self.stuck >= STUCK_MAX && measure_at.is_some() {
            self.measure(now);
        }
    }

    fn measure(&mut self, now: Instant) {
        self.phase = Phase::Idle { since: now, before: self.limit };
        self.limit = self.settings.limit_min.max(1);
        self.samples.clear();
        self.seen = 0;
        self.stuck = 0;
    }

    /// The bound that follows from the present latency.
    fn next(&self, latency: Duration) -> u32 {
        let Some(idle) = self.idle else { return self.limit };
        let allowed = idle.as_secs_f64() * (1.0 + f64::from(self.settings.buffer_per_mille) / 1000.0);
        // A latency of nothing is as good as it gets.
        let ratio = if latency.is_zero() { *RATIO.end() } else { allowed / latency.as_secs_f64() };
        let limit = f64::from(self.limit) * ratio.clamp(*RATIO.start(), *RATIO.end());
        // Room for a queue: without it the bound could never grow again.
        let limit = limit + limit.sqrt();
        let lowest = self.settings.limit_min.max(1);
        (limit as u32).clamp(lowest, self.settings.limit_max.max(lowest))
    }

    fn sample(&mut self, latency: Duration, draw: f64) {
        let micros = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.seen += 1;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(micros);
            return;
        }
        // Reservoir sampling: every latency of the interval is as likely to be kept.
        let place = (draw.clamp(0.0, 1.0) * self.seen as f64) as usize;
        if let Some(kept) = self.samples.get_mut(place) {
            *kept = micros;
        }
    }

    /// The latency that stands for the sample, which begins anew.
    fn take_percentile(&mut self) -> Option<Duration> {
        let last = self.samples.len().checked_sub(1)?;
        let rank = last * usize::from(self.settings.percentile_per_mille.min(1000)) / 1000;
        let (_, micros, _) = self.samples.select_nth_unstable(rank);
        let latency = Duration::from_micros(u64::from(*micros));
        self.samples.clear();
        self.seen = 0;
        Some(latency)
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn settings(min_rtt: MinRtt) -> Gradient {
        Gradient {
            percentile_per_mille: 500,
            limit_max: 1000,
            update_interval: MS(100),
            min_rtt,
            limit_min: 3,
            buffer_per_mille: 250,
            status: StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn measured() -> Gradient {
        settings(MinRtt::Measured { interval: MS(60_000), requests: 10, jitter_per_mille: 0 })
    }

    /// Serves for a while as many at a time as are let in, each taking what `latency` says of their number; returns the
    /// time after.
    fn serve(
        adaptive: &mut Adaptive,
        mut now: Instant,
        rounds: u32,
        latency: impl Fn(u32) -> Duration,
    ) -> Instant {
        for _ in 0..rounds {
            let begun: Vec<_> = std::iter::from_fn(|| adaptive.begin(now)).collect();
            now += latency(begun.len() as u32);
            for one in begun {
                adaptive.end(one, now, 0.5);
            }
        }
        now
    }

    #[test]
    fn few_are_let_in_until_the_idle_latency_is_known() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new(measured(), now);
        let begun: Vec<_> = std::iter::from_fn(|| adaptive.begin(now)).collect();
        assert_eq!(begun.len(), 3);
        for one in begun {
            adaptive.end(one, now + MS(10), 0.5);
        }
        serve(&mut adaptive, now + MS(10), 3, |_| MS(10));
        assert_eq!(adaptive.idle, Some(MS(10)));
    }

    #[test]
    fn the_bound_grows_while_latency_stays_and_falls_when_it_rises() {
        let mut adaptive = Adaptive::new(measured(), Instant::now());
        let now = serve(&mut adaptive, Instant::now(), 500, |_| MS(10));
        assert_eq!(adaptive.limit(), 1000, "nothing holds it back");
        serve(&mut adaptive, now, 9, |_| MS(100));
        assert!(adaptive.limit() < 20, "{}", adaptive.limit());
    }

    #[test]
    fn who_stays_at_the_lowest_bound_is_measured_anew() {
        let mut adaptive = Adaptive::new(measured(), Instant::now());
        let now = serve(&mut adaptive, Instant::now(), 50, |_| MS(10));
        serve(&mut adaptive, now, 40, |_| MS(100));
        assert_eq!(adaptive.idle, Some(MS(100)), "it is just slower now");
        assert!(adaptive.limit() > 3);
    }

    #[test]
    fn it_settles_at_what_the_app_can_take() {
        // Fifty at a time take 10 ms; more wait for their turn.
        let app = |count: u32| MS(10) * count.max(50) / 50;
        let mut adaptive = Adaptive::new(measured(), Instant::now());
        serve(&mut adaptive, Instant::now(), 1000, app);
        assert!((50..=90).contains(&adaptive.limit()), "{}", adaptive.limit());
    }

    #[test]
    fn what_began_before_a_measurement_does_not_belong_to_it() {
        let begin = Instant::now();
        let mut adaptive = Adaptive::new(measured(), begin);
        let now = serve(&mut adaptive, begin, 100, |_| MS(10));
        let old = adaptive.begin(now).expect("room");
        let later = now + MS(60_000);
        assert!(adaptive.begin(later).is_some(), "the second is of the new measurement");
        assert_eq!(adaptive.limit(), 3);
        adaptive.end(old, later + MS(1), 0.5);
        assert_eq!(adaptive.seen, 0);
    }

    #[test]
    fn a_known_idle_latency_is_not_measured() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new(settings(MinRtt::Fixed(MS(5))), now);
        serve(&mut adaptive, now, 200, |_| MS(5));
        assert!(adaptive.limit() > 100);
    }

    #[test]
    fn who_leaves_gives_back_its_place_and_says_nothing() {
        let now = Instant::now();
        let mut adaptive = Adaptive::new(measured(), now);
        for _ in 0..100 {
            let begun = adaptive.begin(now).expect("room");
            adaptive.abandon(begun);
        }
        assert_eq!((adaptive.in_progress, adaptive.seen), (0, 0));
    }

    proptest! {
        #[test]
        fn the_bound_stays_in_its_bounds(steps in proptest::collection::vec((0_u64..500, 0.0..1.0_f64), 1..400)) {
            let mut now = Instant::now();
            let mut adaptive = Adaptive::new(measured(), now);
            let mut begun = Vec::new();
            for (step, draw) in steps {
                now += MS(step);
                if draw < 0.6 {
                    begun.extend(adaptive.begin(now));
                } else if let Some(one) = begun.pop() {
                    adaptive.end(one, now, draw);
                }
                prop_assert!((3..=1000).contains(&adaptive.limit()));
                prop_assert_eq!(adaptive.in_progress as usize, begun.len());
                prop_assert!(adaptive.samples.len() <= SAMPLES_MAX);
            }
        }
    }
}
