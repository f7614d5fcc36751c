//! The circuit of a whole service: closed → open → half open → closed.
//!
//! Closed, every call passes and is counted; when the calls of a rolling window fail or are slow too often, it opens.
//! Open, every call is refused for a while. Then it is half open: exactly as many probes pass as the settings say. All
//! of them must succeed to close it; the first that fails opens it again, for twice as long, up to a maximum. A probe
//! that is cancelled gives its place to another; one that neither ends nor is cancelled for as long as a circuit may be
//! open has failed.
//!
//! In: what happened and `now`. Out: the next [`State`], a value of 64 bits. Surprise: a probe carries the era of the
//! half-open phase that let it through; what it says after that phase has ended counts for nothing.

use std::time::Duration;

use super::window::Tally;
use super::{Cause, Outcome, Position};

/// Probes at most: what fits in the state. More would be no probing.
pub const PROBES_MAX: u8 = 63;

/// Length of the window unless said otherwise: long enough for twenty calls of a quiet service, short enough to open
/// before callers pile up. Hystrix: `metrics.rollingStats.timeInMilliseconds` = 10 s.
pub const WINDOW: Duration = Duration::from_secs(10);

/// Calls in the window below which nothing is concluded. Hystrix: `circuitBreaker.requestVolumeThreshold` = 20.
pub const MINIMUM_CALLS: u32 = 20;

/// Share of failures that opens it. Hystrix: `circuitBreaker.errorThresholdPercentage` = 50.
pub const ERROR_PERCENT: u8 = 50;

/// Share of slow calls that opens it, where slow calls count. Above the error share, because a slow answer is still an
/// answer.
pub const SLOW_PERCENT: u8 = 80;

/// How long it stays open the first time. Hystrix: `circuitBreaker.sleepWindowInMilliseconds` = 5 s.
pub const OPEN: Duration = Duration::from_secs(5);

/// How long it stays open at most: after four failed rounds of probes; a recovered service waits no longer than a
/// minute for its callers.
pub const OPEN_MAX: Duration = Duration::from_secs(60);

/// Probes of one half-open phase: one lucky answer proves little, ten would be load.
pub const PROBES: u8 = 3;

/// How a service's circuit judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Calls older than this are forgotten.
    pub window: Duration,
    /// Calls in the window below which it never opens.
    pub minimum_calls: u32,
    /// Share of failures at which it opens, percent.
    pub error_percent: u8,
    /// When a call is slow and how many may be; `None`: none ever is.
    pub slow: Option<Slow>,
    /// How long it stays open the first time.
    pub open: Duration,
    /// How long it stays open at most.
    pub open_max: Duration,
    /// Probes of one half-open phase, 1 to [`PROBES_MAX`].
    pub probes: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: WINDOW,
            minimum_calls: MINIMUM_CALLS,
            error_percent: ERROR_PERCENT,
            slow: None,
            open: OPEN,
            open_max: OPEN_MAX,
            probes: PROBES,
        }
    }
}

/// When calls are too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// A call that takes at least this long is slow.
    pub threshold: Duration,
    /// Share of slow calls at which the circuit opens, percent.
    pub percent: u8,
}

impl Settings {
    /// Whether a call that took this long is slow.
    #[must_use]
    pub fn is_slow(&self, elapsed: Duration) -> bool {
        self.slow.is_some_and(|slow| elapsed >= slow.threshold)
    }

    /// Why the calls of a window open a closed circuit, if they do.
    #[must_use]
    pub fn judge(&self, tally: Tally) -> Option<Cause> {
        let reaches = |part: u64, percent: u8| part > 0 && part * 100 >= u64::from(percent) * tally.calls;
        if tally.calls < u64::from(self.minimum_calls) {
            None
        } else if reaches(tally.errors, self.error_percent) {
            Some(Cause::ErrorRatio)
        } else {
            self.slow.filter(|slow| reaches(tally.slow, slow.percent)).map(|_| Cause::SlowCalls)
        }
    }

    /// How long the circuit stays open the `trips`-th time in a row, from 1.
    #[must_use]
    pub fn open_for(&self, trips: u8) -> Duration {
        let doubled = self.open.saturating_mul(1 << u32::from(trips.saturating_sub(1)).min(TRIPS_MAX));
        doubled.min(self.open_max.max(self.open))
    }
}

/// Beyond this many doublings of a millisecond any maximum is reached.
const TRIPS_MAX: u32 = 30;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// It passes as a probe of this era.
    Probe(Era),
    /// It is refused.
    Refuse,
}

/// One half-open phase. Sixty-four of them are told apart, each at least one open time long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Era(u8);

/// A circuit's state: fits in 64 bits ([`State::pack`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Where it is.
    pub position: Position,
    /// Times it opened in a row; saturates.
    trips: u8,
    era: u8,
    /// Probes that were let through and not given back.
    issued: u8,
    /// Probes that succeeded.
    passed: u8,
    /// While open: when it will be half open. While half open: when probes that have not ended by then have failed.
    /// Milliseconds of the caller's clock.
    pub until: u64,
}

impl Default for State {
    fn default() -> Self {
        Self { position: Position::Closed, trips: 0, era: 0, issued: 0, passed: 0, until: 0 }
    }
}

impl State {
    /// What becomes of a call at `now`, and the state after it.
    #[must_use]
    pub fn admit(self, settings: &Settings, now: u64) -> (Self, Verdict) {
        match self.position {
            Position::Closed => (self, Verdict::Pass),
            Position::Open if now < self.until => (self, Verdict::Refuse),
            Position::Open => self.half_open().admit(settings, now),
            // Fewer suffice than did when the phase began.
            Position::HalfOpen if self.passed >= settings.probes => (self.close(), Verdict::Pass),
            Position::HalfOpen if self.issued < settings.probes => {
                let until = now.saturating_add(millis(settings.open_max.max(settings.open))).min(UNTIL_MAX);
                (Self { issued: self.issued + 1, until, ..self }, Verdict::Probe(Era(self.era)))
            }
            Position::HalfOpen => (self, Verdict::Refuse),
        }
    }

    /// What time alone changes: an open circuit becomes half open, and probes that hang have failed.
    #[must_use]
    pub fn tick(self, settings: &Settings, now: u64) -> Self {
        match self.position {
            Position::Open if now >= self.until => self.half_open(),
            Position::HalfOpen if self.passed >= settings.probes => self.close(),
            Position::HalfOpen if now >= self.until && self.issued > self.passed => self.open(settings, now),
            _ => self,
        }
    }

    /// When [`tick`](Self::tick) may change something; `None`: never, as it stands.
    #[must_use]
    pub fn due(self) -> Option<u64> {
        match self.position {
            Position::Closed => None,
            Position::Open => Some(self.until),
            Position::HalfOpen => (self.issued > self.passed).then_some(self.until),
        }
    }

    fn half_open(self) -> Self {
        let era = (self.era + 1) % ERAS;
        Self { position: Position::HalfOpen, era, issued: 0, passed: 0, until: 0, ..self }
    }

    fn close(self) -> Self {
        Self { era: self.era, ..Self::default() }
    }

    /// Opens a closed circuit; any other stays as it is.
    #[must_use]
    pub fn trip(self, settings: &Settings, now: u64) -> Self {
        if self.position == Position::Closed { self.open(settings, now) } else { self }
    }

    fn open(self, settings: &Settings, now: u64) -> Self {
        let trips = self.trips.saturating_add(1).min(TRIPS_MAX as u8);
        let until = now.saturating_add(millis(settings.open_for(trips))).min(UNTIL_MAX);
        Self { position: Position::Open, trips, issued: 0, passed: 0, until, ..self }
    }

    /// A probe has ended. Slow counts as failed where slow calls count at all.
    #[must_use]
    pub fn probed(self, settings: &Settings, era: Era, outcome: Outcome, slow: bool, now: u64) -> Self {
        if self.position != Position::HalfOpen || self.era != era.0 {
            return self;
        }
        match outcome.failed() {
            None => Self { issued: self.issued.saturating_sub(1), ..self },
            Some(failed) if failed || slow => self.open(settings, now),
            Some(_) if self.passed + 1 >= settings.probes => self.close(),
            Some(_) => Self { passed: self.passed + 1, ..self },
        }
    }

    /// Probes that are under way or have succeeded in this half-open phase.
    #[must_use]
    pub fn issued(self) -> u8 {
        self.issued
    }

    /// As one word: position 2 bits, trips 5, era 6, issued 6, passed 6, until 39 (17 years of milliseconds).
    #[must_use]
    pub fn pack(self) -> u64 {
        (self.position as u64) << 62
            | u64::from(self.trips) << 57
            | u64::from(self.era) << 51
            | u64::from(self.issued) << 45
            | u64::from(self.passed) << 39
            | self.until.min(UNTIL_MAX)
    }

    /// The reverse of [`pack`](Self::pack).
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        let field = |shift: u32, bits: u32| (word >> shift & ((1 << bits) - 1)) as u8;
        Self {
            position: match field(62, 2) {
                0 => Position::Closed,
                1 => Position::HalfOpen,
                _ => Position::Open,
            },
            trips: field(57, 5),
            era: field(51, 6),
            issued: field(45, 6),
            passed: field(39, 6),
            until: word & UNTIL_MAX,
        }
    }
}

const ERAS: u8 = 64;
const UNTIL_MAX: u64 = (1 << 39) - 1;

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
