//! Sliding windows over one edge's traffic.
//!
//! An edge keeps three rings of slots: 61 of one second for the 10 s and 1 m windows, 31 of ten seconds for 5 m,
//! 61 of one minute for 1 h. Every sample goes to its slot in all three, so a late report needs no roll-up to be
//! repaired. In: samples with their time, and `now`. Out: sums over a window and series of its slots.
//!
//! Invariant: a window's sum is the sum of the samples whose slot lies in it, in whatever order they came.
//! Surprise: the newest slot is still filling, so a window covers a little less than its name says;
//! [`Span::covered`] says how much, and rates divide by that. Without it every rate would read low.
//! Non-goal: exact edges of windows finer than a slot.

use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::sample::Evidence;
use super::sample::{Status, Verdict};
use super::{Histogram, Tally, Timestamp, Tls};

/// How far back a view looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Window {
    /// Ten seconds.
    TenSeconds,
    /// One minute.
    Minute,
    /// Five minutes.
    FiveMinutes,
    /// One hour.
    Hour,
}

/// The text names no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a window; allowed are 10s, 1m, 5m and 1h")]
pub struct InvalidWindow(String);

impl Window {
    /// Every window, shortest first.
    pub const ALL: [Self; 4] = [Self::TenSeconds, Self::Minute, Self::FiveMinutes, Self::Hour];

    /// The word in the API.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::TenSeconds => "10s",
            Self::Minute => "1m",
            Self::FiveMinutes => "5m",
            Self::Hour => "1h",
        }
    }

    /// Its length in seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::TenSeconds => 10,
            Self::Minute => 60,
            Self::FiveMinutes => 300,
            Self::Hour => 3_600,
        }
    }

    const fn tier(self) -> Tier {
        match self {
            Self::TenSeconds | Self::Minute => Tier::Second,
            Self::FiveMinutes => Tier::TenSeconds,
            Self::Hour => Tier::Minute,
        }
    }

    /// The length of its slots in seconds.
    #[must_use]
    pub const fn step_seconds(self) -> u64 {
        self.tier().step_millis() / 1_000
    }

    /// The slots it consists of at `now`.
    #[must_use]
    pub fn span(self, now: Timestamp) -> Span {
        let step = self.tier().step_millis();
        let last = now.millis() / step;
        let first = (last + 1).saturating_sub(self.seconds() * 1_000 / step);
        Span { first, last, step, now }
    }
}

impl FromStr for Window {
    type Err = InvalidWindow;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|window| window.word() == text)
            .ok_or_else(|| InvalidWindow(text.chars().take(40).collect()))
    }
}

impl Serialize for Window {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// The slots of a window at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    first: u64,
    last: u64,
    step: u64,
    now: Timestamp,
}

impl Span {
    /// The time from its first slot's begin to now, at least one millisecond.
    #[must_use]
    pub fn covered(self) -> Duration {
        self.now.since(self.start()).max(Duration::from_millis(1))
    }

    /// When its first slot begins.
    #[must_use]
    pub const fn start(self) -> Timestamp {
        Timestamp::from_millis(self.first * self.step)
    }

    /// Number of slots.
    #[must_use]
    pub const fn len(self) -> usize {
        (self.last - self.first + 1) as usize
    }

    /// Never: a window has at least one slot.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    Second,
    TenSeconds,
    Minute,
}

impl Tier {
    const ALL: [Self; 3] = [Self::Second, Self::TenSeconds, Self::Minute];

    const fn step_millis(self) -> u64 {
        match self {
            Self::Second => 1_000,
            Self::TenSeconds => 10_000,
            Self::Minute => 60_000,
        }
    }

    /// The longest window of the tier in slots, and one: the slot that is filling.
    const fn slots(self) -> usize {
        match self {
            Self::Second | Self::Minute => 61,
            Self::TenSeconds => 31,
        }
    }
}

/// How far a slot may lie ahead of the `now` of a clean-up: what arrives while it waits for its turn.
const AHEAD_MAX: Duration = Duration::from_secs(5);

/// Position of a route in its edge's table.
pub(crate) type RouteIndex = u16;
/// Position of a failure's reason in the graph's table.
pub(crate) type ReasonIndex = u16;

/// What was counted of one route, or of connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) durations: Histogram,
    /// What failed, by reason.
    pub(crate) errors: Tally<ReasonIndex>,
    pub(crate) statuses: Tally<Status>,
    cut_short: u32,
    given_up: u32,
}

impl Cell {
    /// Counts what ended with `verdict`; `reason` says why, if it failed.
    pub(crate) fn add(&mut self, verdict: Verdict, durations: &Histogram, reason: Option<ReasonIndex>) {
        let count = small(durations.count());
        match verdict {
            Verdict::CutShort => {
                self.cut_short = self.cut_short.saturating_add(count);
                return;
            }
            Verdict::GivenUp => self.given_up = self.given_up.saturating_add(count),
            Verdict::Success | Verdict::Failure => {}
        }
        self.durations.merge(durations);
        if let Some(reason) = reason {
            self.errors.add(reason, count);
        }
    }

    /// The inverse of [`add`](Self::add).
    pub(crate) fn take(&mut self, verdict: Verdict, durations: &Histogram, reason: Option<ReasonIndex>) {
        let count = small(durations.count());
        match verdict {
            Verdict::CutShort => {
                self.cut_short = self.cut_short.saturating_sub(count);
                return;
            }
            Verdict::GivenUp => self.given_up = self.given_up.saturating_sub(count),
            Verdict::Success | Verdict::Failure => {}
        }
        self.durations.subtract(durations);
        if let Some(reason) = reason {
            self.errors.take(reason, count);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.durations.merge(&other.durations);
        self.errors.merge(&other.errors);
        self.statuses.merge(&other.statuses);
        self.cut_short = self.cut_short.saturating_add(other.cut_short);
        self.given_up = self.given_up.saturating_add(other.given_up);
    }

    /// Everything that ended, however it did.
    pub(crate) fn count(&self) -> u64 {
        self.durations.count() + u64::from(self.cut_short)
    }

    /// What the caller did not wait for.
    pub(crate) fn given_up(&self) -> u64 {
        self.given_up.into()
    }

    /// What the caller ended, before the answer or within it.
    pub(crate) fn cancelled(&self) -> u64 {
        u64::from(self.given_up) + u64::from(self.cut_short)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.errors.total()
    }
}

pub(crate) fn small(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What was counted in one slot, or in a whole window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    /// By route, sorted.
    routes: Vec<(RouteIndex, Cell)>,
    pub(crate) closed: Cell,
    pub(crate) opened: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) folded: u64,
    /// Attempts beyond the first that were sent.
    pub(crate) retried: u64,
    /// Attempts beyond the first that the retry budget kept back.
    pub(crate) retry_denied: u64,
    /// Requests, and connections that are not HTTP, by how they were protected.
    secured: Tally<Tls>,
    /// Everything else that was seen on the wire.
    traces: Tally<Tls>,
}

impl Slot {
    /// The cell of `route`, made if it is not there; the flag says that it was made.
    pub(crate) fn route_mut(&mut self, route: RouteIndex) -> (&mut Cell, bool) {
        match self.routes.binary_search_by_key(&route, |entry| entry.0) {
            Ok(position) => (&mut self.routes[position].1, false),
            Err(position) => {
                self.routes.insert(position, (route, Cell::default()));
                (&mut self.routes[position].1, true)
            }
        }
    }

    pub(crate) fn has_route(&self, route: RouteIndex) -> bool {
        self.routes.binary_search_by_key(&route, |entry| entry.0).is_ok()
    }

    pub(crate) fn routes(&self) -> impl Iterator<Item = (RouteIndex, &Cell)> {
        self.routes.iter().map(|(route, cell)| (*route, cell))
    }

    /// Number of cells it holds, which is what memory is bounded by.
    pub(crate) fn cells(&self) -> usize {
        self.routes.len()
    }

    pub(crate) fn requests(&self) -> Cell {
        let mut sum = Cell::default();
        for (_, cell) in self.routes() {
            sum.merge(cell);
        }
        sum
    }

    pub(crate) fn protected(&mut self, tls: Tls, evidence: Evidence, present: bool) {
        let (tally, count) = match evidence {
            Evidence::Calls(count) => (&mut self.secured, count),
            Evidence::Trace => (&mut self.traces, 1),
            Evidence::Nothing => return,
        };
        if present { tally.add(tls, count) } else { tally.take(tls, count) }
    }

    /// How many calls were protected in each way.
    pub(crate) fn secured(&self) -> &Tally<Tls> {
        &self.secured
    }

    /// Every way in which anything else was protected.
    pub(crate) fn traces(&self) -> &Tally<Tls> {
        &self.traces
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (route, cell) in other.routes() {
            self.route_mut(route).0.merge(cell);
        }
        self.closed.merge(&other.closed);
        self.opened = self.opened.saturating_add(other.opened);
        self.sent = self.sent.saturating_add(other.sent);
        self.received = self.received.saturating_add(other.received);
        self.folded = self.folded.saturating_add(other.folded);
        self.retried = self.retried.saturating_add(other.retried);
        self.retry_denied = self.retry_denied.saturating_add(other.retry_denied);
        self.secured.merge(&other.secured);
        self.traces.merge(&other.traces);
    }

    /// Removes cells that subtraction has emptied; returns how many.
    pub(crate) fn sweep(&mut self) -> usize {
        let before = self.routes.len();
        self.routes.retain(|(_, cell)| cell.count() > 0 || !cell.errors.is_empty());
        before - self.routes.len()
    }

    pub(crate) fn is_idle(&self) -> bool {
        let bytes = self.sent == 0 && self.received == 0;
        let retries = self.retried == 0 && self.retry_denied == 0;
        let connections = self.closed.count() == 0 && self.opened == 0;
        self.routes.is_empty() && connections && bytes && self.folded == 0 && retries
    }
}

/// Slots of one tier; the slot of time `t` lies at `t / step % length` and knows its own time.
#[derive(Debug, Clone)]
struct Ring {
    tier: Tier,
    slots: Box<[Place]>,
}

/// A slot with its time in steps, or nothing yet. Boxed, because most edges leave most places empty.
type Place = Option<Box<(u64, Slot)>>;

impl Ring {
    fn new(tier: Tier) -> Self {
        Self { tier, slots: (0..tier.slots()).map(|_| None).collect() }
    }

    /// The slot for `at`; `None` when a newer one has taken its place. Returns also the cells that were lost
    /// by recycling an old slot.
    fn slot_mut(&mut self, at: Timestamp, create: bool) -> (Option<&mut Slot>, usize) {
        let index = at.millis() / self.tier.step_millis();
        let position = (index % self.slots.len() as u64) as usize;
        let place = &mut self.slots[position];
        let mut recycled = 0;
        match place {
            Some(slot) if slot.0 > index => return (None, 0),
            Some(slot) if slot.0 == index => {}
            _ if !create => return (None, 0),
            Some(slot) => {
                recycled = slot.1.cells();
                **slot = (index, Slot::default());
            }
            None => *place = Some(Box::new((index, Slot::default()))),
        }
        (place.as_mut().map(|slot| &mut slot.1), recycled)
    }

    fn within(&self, span: Span) -> impl Iterator<Item = (u64, &Slot)> {
        let slots = self.slots.iter().flatten().map(|slot| (slot.0, &slot.1));
        slots.filter(move |(index, _)| (span.first..=span.last).contains(index))
    }

    /// Frees slots that no window can reach any more, and those that a clock set back has left in the future: they
    /// would keep their places from what happens now. Returns the number of cells freed.
    fn expire(&mut self, now: Timestamp) -> usize {
        let step = self.tier.step_millis();
        let oldest = (now.millis() / step + 1).saturating_sub(self.slots.len() as u64);
        let newest = now.plus(AHEAD_MAX).millis() / step;
        let mut freed = 0;
        for place in &mut self.slots {
            if place.as_ref().is_some_and(|slot| !(oldest..=newest).contains(&slot.0)) {
                freed += place.take().map_or(0, |slot| slot.1.cells());
            }
        }
        freed
    }
}

/// One edge's traffic over the last hour.
#[derive(Debug, Clone)]
pub(crate) struct Timeline {
    rings: [Ring; 3],
}

impl Timeline {
    pub(crate) fn new() -> Self {
        Self { rings: Tier::ALL.map(Ring::new) }
    }

    /// Calls `write` with each slot that `at` falls in. With `create`, missing slots are made. Returns the number
    /// of cells that were lost by recycling old slots.
    pub(crate) fn write(&mut self, at: Timestamp, create: bool, mut write: impl FnMut(&mut Slot)) -> usize {
        let mut recycled = 0;
        for ring in &mut self.rings {
            let (slot, lost) = ring.slot_mut(at, create);
            recycled += lost;
            if let Some(slot) = slot {
                write(slot);
            }
        }
        recycled
    }

    fn ring(&self, window: Window) -> &Ring {
        match window.tier() {
            Tier::Second => &self.rings[0],
            Tier::TenSeconds => &self.rings[1],
            Tier::Minute => &self.rings[2],
        }
    }

    /// Everything in `window` at `now`.
    pub(crate) fn sum(&self, window: Window, now: Timestamp) -> Slot {
        let mut sum = Slot::default();
        for (_, slot) in self.ring(window).within(window.span(now)) {
            sum.merge(slot);
        }
        sum
    }

    /// The window slot by slot, oldest first; empty slots are `None`.
    pub(crate) fn series(&self, window: Window, now: Timestamp) -> Vec<Option<&Slot>> {
        let span = window.span(now);
        let mut series = vec![None; span.len()];
        for (index, slot) in self.ring(window).within(span) {
            series[(index - span.first) as usize] = Some(slot);
        }
        series
    }

    /// Every route that any slot knows.
    pub(crate) fn routes_in_use(&self) -> impl Iterator<Item = RouteIndex> + '_ {
        let slots = self.rings.iter().flat_map(|ring| ring.slots.iter().flatten());
        slots.flat_map(|slot| slot.1.routes().map(|(route, _)| route))
    }

    /// Frees what no window can reach any more; returns the number of cells freed.
    pub(crate) fn expire(&mut self, now: Timestamp) -> usize {
        self.rings.iter_mut().map(|ring| ring.expire(now)).sum()
    }

    /// Number of cells in all slots.
    pub(crate) fn cells(&self) -> usize {
        self.rings.iter().flat_map(|ring| ring.slots.iter().flatten()).map(|slot| slot.1.cells()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_795_219_200_000;

    #[test]
    fn windows_are_words_and_errors_say_what_is_allowed() {
        for window in Window::ALL {
            assert_eq!(window.word().parse(), Ok(window));
        }
        let error = "2m".parse::<Window>().expect_err("not a window");
        assert_eq!(error.to_string(), "\"2m\" is not a window; allowed are 10s, 1m, 5m and 1h");
    }

    #[test]
    fn a_window_covers_a_little_less_than_its_name() {
        let span = Window::TenSeconds.span(Timestamp::from_millis(NOW + 400));
        assert_eq!(span.covered(), Duration::from_millis(9_400));
        assert_eq!(span.len(), 10);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_the_count() {
        let add = |timeline: &mut Timeline, at| {
            timeline.write(at, true, |slot| slot.route_mut(0).0.durations.add(0, 1));
        };
        let (ahead, now) = (Timestamp::from_millis(NOW + 3_600_000), Timestamp::from_millis(NOW));
        let mut timeline = Timeline::new();
        for second in 0..120 {
            add(&mut timeline, ahead.plus(Duration::from_secs(second)));
        }
        timeline.expire(now);
        add(&mut timeline, now);
        for window in Window::ALL {
            assert_eq!(timeline.sum(window, now).requests().count(), 1, "{}", window.word());
        }
    }

    proptest! {
        /// Samples within the last hour, in any order: every window holds exactly those whose slot lies in it.
        #[test]
        fn a_window_is_the_sum_of_its_samples(
            samples in proptest::collection::vec((0u64..3_600_000, 1u32..5), 0..60),
            swap in any::<u64>(),
        ) {
            let now = Timestamp::from_millis(NOW + swap % 60_000);
            let times: Vec<_> =
                samples.iter().map(|&(ago, n)| (Timestamp::from_millis(now.millis() - ago), n)).collect();
            let write = |order: &mut dyn Iterator<Item = &(Timestamp, u32)>| {
                let mut timeline = Timeline::new();
                for &(at, n) in order {
                    timeline.write(at, true, |slot| slot.route_mut(0).0.durations.add(0, n));
                }
                timeline
            };
            let forward = write(&mut times.iter());
            let backward = write(&mut times.iter().rev());
            for window in Window::ALL {
                let start = window.span(now).start();
                let expected: u64 =
                    times.iter().filter(|(at, _)| *at >= start).map(|&(_, n)| u64::from(n)).sum();
                prop_assert_eq!(forward.sum(window, now).requests().count(), expected);
                prop_assert_eq!(forward.sum(window, now), backward.sum(window, now));
            }
        }
    }
}
