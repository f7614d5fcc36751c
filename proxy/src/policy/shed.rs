//! Shedding: what a worker refuses because it has enough to do.
//!
//! Two measures, each a plain counter of one thread. [`Shed`] bounds the requests in flight, which bites when upstreams
//! hang. [`Lag`] measures how late the worker's own clock wakes, which bites when the CPU is what is short: requests then
//! wait in queues that nobody sees, and answering one in ten at once is better than all of them late.
//!
//! Pure: time and randomness are arguments. Surprise: shedding is a counter, not `tower::limit` with `load_shed`. The
//! layers' semaphore is atomic and each request would clone a stack of them, 0.4 µs of the 3 µs that everything of
//! ours may cost, to guard a thread that shares nothing. The permit lives as long as the response's body, which the
//! layers do not offer either.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Requests in flight on one worker. At 16 kB of engine buffers for each side that is 256 MB in the worst case, far
/// above what one core can serve (20,000 requests per second times 0.4 s), so it bites only when an upstream hangs.
pub const REQUESTS_MAX: usize = 8192;

/// Looks in a row that must have been late. A single late wake-up is a throttled cgroup (a period of its quota is
/// 100 ms) or a neighbour's burst; three in a row are a queue that stands. The idea is CoDel's: the *least* delay of
/// an interval is what counts.
const LOOKS: usize = 3;

/// The least lag at which anything is shed: longer than a cgroup's quota can stop a thread in each of three periods and
/// still leave it any work done, and far longer than a healthy worker's (under 5 ms at full load).
pub const LAG_MIN: Duration = Duration::from_millis(100);

/// The lag at which as much is shed as ever is.
pub const LAG_MAX: Duration = Duration::from_millis(500);

/// The largest share that is shed. The rest keeps the measure honest and lets the worker show that it has recovered.
const SHARE_MAX: f64 = 0.9;

/// A bound on requests in flight, and on how late they may be.
#[derive(Debug, Clone)]
pub struct Shed(Rc<Counter>);

#[derive(Debug)]
struct Counter {
    used: Cell<usize>,
    max: usize,
    lag: Cell<Lag>,
}

/// Why a request is shed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// Too many are in flight.
    InFlight,
    /// The worker is behind.
    Lag,
}

impl Shed {
    /// At most `max` at a time.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self(Rc::new(Counter { used: Cell::new(0), max, lag: Cell::new(Lag::default()) }))
    }

    /// Leave to go on, for as long as the permit lives. `draw`, uniform in 0..1, is asked for only when the worker is
    /// behind.
    ///
    /// # Errors
    /// [`Overload`], which is `overloaded` to the caller.
    pub fn admit(&self, draw: impl FnOnce() -> f64) -> Result<Permit, Overload> {
        let used = self.0.used.get();
        if used >= self.0.max {
            return Err(Overload::InFlight);
        }
        let share = self.0.lag.get().share;
        if share > 0.0 && draw() < share {
            return Err(Overload::Lag);
        }
        self.0.used.set(used + 1);
        Ok(Permit(Rc::clone(&self.0)))
    }

    /// The worker's clock woke this much too late.
    pub fn woke(&self, late: Duration) {
        self.0.lag.set(self.0.lag.get().look(late));
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.used.get()
    }
}

/// One request in flight.
#[derive(Debug)]
#[must_use = "the request counts for as long as its permit lives"]
pub struct Permit(Rc<Counter>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.used.set(self.0.used.get() - 1);
    }
}

/// How late a worker is, and what share of its requests it sheds therefore.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lag {
    last: [Duration; LOOKS],
    share: f64,
}

impl Lag {
    /// Another look.
    #[must_use]
    pub fn look(self, late: Duration) -> Self {
        let mut last = self.last;
        last.rotate_right(1);
        last[0] = late;
        let least = last.iter().min().copied().unwrap_or_default();
        let over = least.saturating_sub(LAG_MIN).as_secs_f64() / (LAG_MAX - LAG_MIN).as_secs_f64();
        Self { last, share: over.min(1.0) * SHARE_MAX }
    }

    /// The share of requests to shed, 0 to 0.9.
    #[must_use]
    pub fn share(self) -> f64 {
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_refused_and_room_comes_back() {
        let shed = Shed::new(2);
        let first = shed.admit(|| 0.0).expect("room");
        let second = shed.admit(|| 0.0).expect("room");
        assert_eq!(shed.admit(|| 0.0).err(), Some(Overload::InFlight));
        drop(first);
        assert!(shed.admit(|| 0.0).is_ok());
        drop(second);
        assert_eq!(shed.in_flight(), 0);
    }

    #[test]
    fn one_late_wake_up_sheds_nothing() {
        let mut lag = Lag::default();
        for late in [0, 900, 0, 900, 900, 90, 900] {
            lag = lag.look(Duration::from_millis(late));
            assert_eq!(lag.share(), 0.0);
        }
    }

    #[test]
    fn the_later_the_more_is_shed_and_it_ends_at_once() {
        let share = |late| {
            let look = |lag: Lag, _| lag.look(Duration::from_millis(late));
            (0..LOOKS).fold(Lag::default(), look).share()
        };
        assert_eq!(share(100), 0.0);
        assert!(share(200) > 0.0 && share(200) < share(400));
        assert_eq!(share(500), SHARE_MAX);
        assert_eq!(share(60_000), SHARE_MAX);
        let shed = Shed::new(10);
        (0..LOOKS).for_each(|_| shed.woke(Duration::from_secs(1)));
        assert_eq!(shed.admit(|| 0.5).err(), Some(Overload::Lag));
        assert!(shed.admit(|| 0.95).is_ok());
        shed.woke(Duration::ZERO);
        assert!(shed.admit(|| 0.0).is_ok());
    }
}
