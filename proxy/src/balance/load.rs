//! How busy an endpoint is: peak EWMA. Pure.
//!
//! In: starts and ends of requests with their times. Out: a load.
//! An endpoint's load is its response time, remembered by a decaying average that jumps to every new peak,
//! times the requests it is working on.
//!
//! Invariant: no clock, no generator and no io in here; time goes forward or stands still, never back.
//! Surprise: an endpoint that has never answered costs [`UNKNOWN`] per request in flight at first, so a newcomer does not
//! get everything at once; and less with time, so that it is tried soon whatever its siblings cost.

use std::time::{Duration, Instant};

/// How fast the memory of a peak fades. Ten seconds is what Finagle and linkerd use: long against a garbage
/// collection pause, short against a deployment.
const DECAY: Duration = Duration::from_secs(10);

/// Assumed response time of an endpoint that has not answered yet. Above a good in-cluster response, so that a
/// newcomer has to earn its share.
const UNKNOWN: Duration = Duration::from_millis(30);

/// One endpoint's load as one worker sees it.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Seconds.
    average: f64,
    /// When the average was right: the latest answer, or the beginning.
    since: Instant,
    /// Whether there was any answer; until then the average is a guess.
    known: bool,
    in_flight: u32,
    /// At least 1.
    weight: u32,
}

impl Load {
    /// Nothing known yet. A weight of zero counts as 1.
    #[must_use]
    pub fn new(weight: u32, now: Instant) -> Self {
        let average = UNKNOWN.as_secs_f64();
        Self { average, since: now, known: false, in_flight: 0, weight: weight.max(1) }
    }

    /// Changes the weight and keeps what was learned.
    pub fn set_weight(&mut self, weight: u32) {
        self.weight = weight.max(1);
    }

    /// Its share relative to its siblings.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Requests being worked on.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// A request was given to the endpoint.
    pub fn start(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// A request given to the endpoint has ended, however it ended.
    pub fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The endpoint took `elapsed` to answer (or to fail).
    pub fn observe(&mut self, now: Instant, elapsed: Duration) {
        let sample = elapsed.as_secs_f64();
        let kept = self.decayed(now);
        self.average = if sample > kept || !self.known {
            sample
        } else {
            let weight = self.fading(now);
            self.average.mul_add(weight, sample * (1.0 - weight))
        };
        self.known = true;
        self.since = self.since.max(now);
    }

    /// What the endpoint would cost a request given to it now: seconds, by weight.
    #[must_use]
    pub fn cost(&self, now: Instant) -> f64 {
        // A floor, so that in-flight requests count even where answers took no measurable time.
        self.decayed(now).max(1e-6) * (f64::from(self.in_flight) + 1.0) / f64::from(self.weight)
    }

    fn decayed(&self, now: Instant) -> f64 {
        self.average * self.fading(now)
    }

    fn fading(&self, now: Instant) -> f64 {
        (-now.saturating_duration_since(self.since).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::algorithm::sample::two_of;
    use super::*;

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut load = Load::new(1, start);
        load.observe(at(0), Duration::from_millis(5));
        load.observe(at(1), Duration::from_secs(2));
        let peak = load.cost(at(1));
        assert!(peak >= 2.0, "{peak}");
        assert!(load.cost(at(11)) < peak / 2.0);
        for second in 12..60 {
            load.observe(at(second), Duration::from_millis(5));
        }
        assert!(load.cost(at(60)) < 0.05, "{}", load.cost(at(60)));
    }

    #[test]
    fn work_in_flight_and_weight_scale_the_cost() {
        let now = Instant::now();
        let mut busy = Load::new(1, now);
        let mut strong = Load::new(4, now);
        busy.observe(now, Duration::from_millis(10));
        strong.observe(now, Duration::from_millis(10));
        for _ in 0..3 {
            busy.start();
            strong.start();
        }
        assert!((busy.cost(now) / strong.cost(now) - 4.0).abs() < 1e-9);
        busy.end();
        assert_eq!(busy.in_flight(), 2);
    }

    #[test]
    fn a_newcomer_is_neither_shunned_nor_flooded() {
        let now = Instant::now();
        let mut known = Load::new(1, now);
        known.observe(now, Duration::from_millis(20));
        let mut newcomer = Load::new(1, now);
        known.start();
        assert!(newcomer.cost(now) < known.cost(now), "idle newcomer before busy veteran");
        newcomer.start();
        newcomer.start();
        assert!(newcomer.cost(now) > known.cost(now), "but not twice in a row");
    }

    #[test]
    fn a_newcomer_is_tried_soon_even_among_fast_siblings() {
        let start = Instant::now();
        let newcomer = Load::new(1, start);
        let mut fast = Load::new(1, start);
        let mut second = 0;
        loop {
            let now = start + Duration::from_secs(second);
            fast.observe(now, Duration::from_millis(1));
            if newcomer.cost(now) < fast.cost(now) {
                break;
            }
            second += 1;
        }
        assert!((10..60).contains(&second), "after {second} s");
    }

    proptest! {
        #[test]
        fn a_cost_is_always_a_positive_number(
            steps in proptest::collection::vec((0_u64..100_000, 0_u64..100_000, any::<bool>()), 0..50),
            weight: u32,
        ) {
            let mut now = Instant::now();
            let mut load = Load::new(weight, now);
            for (advance, elapsed, start) in steps {
                now += Duration::from_millis(advance);
                if start { load.start() } else { load.end() }
                load.observe(now, Duration::from_millis(elapsed));
                let cost = load.cost(now);
                prop_assert!(cost.is_finite() && cost > 0.0);
            }
        }

        #[test]
        fn the_slow_one_of_two_gets_less(seed: u64) {
            // Two endpoints, one ten times slower; each serves one request per tick of its own.
            let mut random = fastrand::Rng::with_seed(seed);
            let start = Instant::now();
            let mut loads = [Load::new(1, start), Load::new(1, start)];
            let took = [Duration::from_millis(2), Duration::from_millis(20)];
            let mut count = [0_u32; 2];
            let mut ends: Vec<(Instant, usize)> = Vec::new();
            for tick in 0..400_u64 {
                let now = start + Duration::from_millis(tick);
                ends.retain(|&(end, index)| {
                    if end <= now {
                        loads[index].end();
                        loads[index].observe(now, took[index]);
                    }
                    end > now
                });
                let (a, b) = two_of(2, random.u64(..));
                let index = if loads[a].cost(now) <= loads[b].cost(now) { a } else { b };
                loads[index].start();
                ends.push((now + took[index], index));
                count[index] += 1;
            }
            prop_assert!(count[0] > count[1] * 3, "{count:?}");
        }
    }
}
