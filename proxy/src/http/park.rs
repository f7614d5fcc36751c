//! Where idle connections wait, and the one clock of a worker's HTTP connections.
//!
//! hyper keeps buffers for every open connection (18 kB), most of which are idle most of the time. So each
//! connection has a [`Pulse`]: two counters that its requests bump. One sweep per worker, every [`TICK`],
//! looks at all pulses: no request since the last look and none in flight means *idle*, and the connection's task
//! is told to take its engine apart and wait on the bare socket. The same sweep enforces the deadlines for header
//! sections and idle connections and passes on the drain signal, so none of these costs a timer or a waiter per
//! connection.
//!
//! Invariants: a request pays one increment and one decrement of a `Cell`; a connection is parked only when hyper
//! has written everything and a client's body was read to its end. Surprise: when nothing is warm the sweep slows
//! down to [`TICK_IDLE`], so an idle sidecar does not keep a core awake.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::balance::Clusters;
use crate::drain::Watch;
use crate::policy::Shed;
use crate::record::{Limit, Shard};

/// Between two sweeps. A connection is parked when it was idle for one whole interval: after 100 to 200 ms, which is
/// longer than the pauses of a client that is busy and shorter than anybody's patience for memory.
const TICK: Duration = Duration::from_millis(100);

/// Between two sweeps when every connection is parked: only deadlines of many seconds are left.
const TICK_IDLE: Duration = Duration::from_secs(2);

/// How long a header section may take, from the first idle tick that finds part of one.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a client's connection may be idle. What Envoy allows; apps behind close theirs earlier as they like.
const IDLE_TIME_MAX: Duration = Duration::from_secs(3600);

/// While draining: how long an idle HTTP/1 connection may still bring a request, which then is answered with
/// `Connection: close`. Closing at once would lose the request that is on its way.
const DRAIN_IDLE_TIME: Duration = Duration::from_secs(1);

/// How long a connection that has had its time may still bring a request while it is idle. Sidecars that call close theirs
/// sooner, so that no request meets the end on its way.
const AGED_IDLE_TIME: Duration = Duration::from_secs(75);

/// What a connection speaks, as far as idling differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Can be parked; drains with `Connection: close` in its responses.
    H1,
    /// Cannot be parked; drains with GOAWAY.
    H2,
}

/// What a connection's task shall do; later ones win.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Nothing.
    None,
    /// Take the engine apart if nothing is in the way.
    Park,
    /// The header section took too long: say so and close.
    HeaderTimeout,
    /// Send GOAWAY, finish the streams and close.
    Drain,
    /// Close.
    Expire,
}

/// One connection's signs of life.
#[derive(Debug)]
pub struct Pulse {
    engine: Engine,
    /// Requests and responses that are not over.
    in_flight: Cell<u32>,
    /// Requests so far, wrapping: only ever compared for change.
    requests: Cell<u32>,
    /// `requests` at the last sweep.
    seen: Cell<u32>,
    /// Bytes may be waiting in hyper's write buffer.
    dirty: Cell<bool>,
    /// Part of a request's body was not read: the connection's bytes make sense to this engine only.
    spoiled: Cell<bool>,
    parked: Cell<bool>,
    /// Since when part of a header section is here.
    header_since: Cell<Option<Instant>>,
    /// Since when it is parked (HTTP/1) or without a stream (HTTP/2).
    idle_since: Cell<Instant>,
    /// When it has had its time.
    end: Cell<Option<Instant>>,
    /// It has.
    aged: Cell<bool>,
    signal: Cell<Signal>,
    waker: RefCell<Option<Waker>>,
    slot: Cell<usize>,
}

impl Pulse {
    fn new(engine: Engine) -> Rc<Self> {
        Rc::new(Self {
            engine,
            in_flight: Cell::new(0),
            requests: Cell::new(0),
            // Differs from `requests`, so that a new connection gets one whole tick.
            seen: Cell::new(u32::MAX),
            dirty: Cell::new(false),
            spoiled: Cell::new(false),
            parked: Cell::new(false),
            header_since: Cell::new(None),
            idle_since: Cell::new(Instant::now()),
            end: Cell::new(None),
            aged: Cell::new(false),
            signal: Cell::new(Signal::None),
            waker: RefCell::new(None),
            slot: Cell::new(usize::MAX),
        })
    }

    /// A request came in. The guard goes with its response.
    pub fn request(self: &Rc<Self>) -> InFlight {
        self.requests.set(self.requests.get().wrapping_add(1));
        self.dirty.set(true);
        if self.header_since.get().is_some() {
            self.header_since.set(None);
            if self.signal.get() == Signal::HeaderTimeout {
                // Came at the last moment: the next pause is not an unfinished head.
                self.signal.set(Signal::None);
            }
        }
        self.enter()
    }

    /// Something else that keeps the connection busy: a request's body.
    pub fn enter(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }

    /// Requests and responses that are not over.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// From `end` on it shall carry no further request.
    pub fn set_end(&self, end: Instant) {
        self.end.set(Some(end));
    }

    /// Whether it has had its time: the next response says goodbye.
    #[must_use]
    pub fn is_aged(&self) -> bool {
        self.aged.get()
    }

    /// hyper's write buffer is empty.
    pub fn flushed(&self) {
        if self.in_flight.get() == 0 {
            self.dirty.set(false);
        }
    }

    /// Whether nothing of a response can still be in hyper's write buffer.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        !self.dirty.get()
    }

    /// Whether the engine can be taken apart without losing a byte.
    #[must_use]
    pub fn may_park(&self) -> bool {
        self.in_flight.get() == 0 && !self.dirty.get() && !self.spoiled.get()
    }

    /// Where the connection stands from now on: with an engine or without.
    pub fn set_parked(&self, parked: bool, lot: &Lot) {
        self.parked.set(parked);
        if parked {
            self.idle_since.set(Instant::now());
        } else {
            self.seen.set(self.requests.get().wrapping_sub(1));
            lot.wake();
        }
    }

    /// Part of a header section is waiting for the rest; its clock runs until the next request.
    pub fn header_begun(&self) {
        if self.header_since.get().is_none() {
            self.header_since.set(Some(Instant::now()));
        }
    }

    /// What to do, once: [`Signal::Park`] is taken back, the others stay.
    pub fn signal(&self) -> Signal {
        let signal = self.signal.get();
        if signal == Signal::Park {
            self.signal.set(Signal::None);
        }
        signal
    }

    /// Remembers whom to wake. Two comparisons when it is the same task as before, which it always is.
    pub fn listen(&self, context: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !matches!(&*waker, Some(known) if known.will_wake(context.waker())) {
            *waker = Some(context.waker().clone());
        }
    }

    fn raise(&self, signal: Signal) {
        if signal > self.signal.get() {
            self.signal.set(signal);
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    /// One look. Says whether the connection needs another one soon.
    fn look(&self, now: Instant, draining_since: Option<Instant>, shard: &Shard) -> bool {
        if self.end.get().is_some_and(|end| now >= end) {
            self.aged.set(true);
        }
        match self.engine {
            Engine::H1 => self.look_h1(now, draining_since, shard),
            Engine::H2 => {
                self.look_h2(now, shard);
                false
            }
        }
    }

    fn look_h1(&self, now: Instant, draining_since: Option<Instant>, shard: &Shard) -> bool {
        let since = |then: Instant| now.saturating_duration_since(then);
        if self.in_flight.get() == 0
            && self.header_since.get().is_some_and(|then| since(then) > HEADER_TIME_MAX)
        {
            if self.signal.get() < Signal::HeaderTimeout {
                shard.limit(Limit::HeaderTimeout);
            }
            self.raise(Signal::HeaderTimeout);
            return false;
        }
        if self.parked.get() {
            let idle_since = self.idle_since.get();
            if let Some(draining_since) = draining_since {
                if since(idle_since.max(draining_since)) >= DRAIN_IDLE_TIME {
                    self.raise(Signal::Expire);
                }
            } else if self.aged.get() && since(idle_since) >= AGED_IDLE_TIME {
                self.raise(Signal::Expire);
            } else if since(idle_since) > IDLE_TIME_MAX {
                shard.limit(Limit::IdleTimeout);
                self.raise(Signal::Expire);
            }
            return draining_since.is_some();
        }
        let requests = self.requests.get();
        if self.in_flight.get() == 0 && self.seen.get() == requests {
            self.raise(Signal::Park);
        } else {
            self.seen.set(requests);
        }
        // A connection that cannot be parked does not keep the clock fast for its own sake.
        !self.spoiled.get()
    }

    fn look_h2(&self, now: Instant, shard: &Shard) {
        if self.aged.get() {
            return self.raise(Signal::Drain);
        }
        let requests = self.requests.get();
        if self.in_flight.get() > 0 || self.seen.replace(requests) != requests {
            self.idle_since.set(now);
        } else if now.saturating_duration_since(self.idle_since.get()) > IDLE_TIME_MAX {
            shard.limit(Limit::IdleTimeout);
            self.raise(Signal::Drain);
        }
    }
}

/// Something in flight on a connection.
#[derive(Debug)]
pub struct InFlight(Rc<Pulse>);

impl InFlight {
    /// The connection must not be parked any more.
    pub fn spoil(&self) {
        self.0.spoiled.set(true);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
    }
}

/// All HTTP connections of one worker.
#[derive(Debug, Default)]
pub struct Lot {
    pulses: RefCell<Vec<Rc<Pulse>>>,
    /// Whether the sweep runs at its fast pace.
    fast: Cell<bool>,
    hurry: Notify,
    draining_since: Cell<Option<Instant>>,
}

impl Lot {
    /// Takes part in the sweep until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Rc<Self>, engine: Engine) -> Place {
        let pulse = Pulse::new(engine);
        if engine == Engine::H2 && self.draining_since.get().is_some() {
            pulse.signal.set(Signal::Drain);
        }
        let mut pulses = self.pulses.borrow_mut();
        pulse.slot.set(pulses.len());
        pulses.push(Rc::clone(&pulse));
        drop(pulses);
        self.wake();
        Place { lot: Rc::clone(self), pulse }
    }

    /// Makes the sweep run at its fast pace.
    pub fn wake(&self) {
        if !self.fast.replace(true) {
            self.hurry.notify_one();
        }
    }

    /// Runs the sweep for ever; one task per worker. Its timer is also the measure of how far the worker is behind.
    pub async fn tend(&self, clusters: &Clusters, shard: &Shard, shed: &Shed, drain: &Watch) {
        loop {
            let pace = if self.fast.get() { TICK } else { TICK_IDLE };
            let due = tokio::time::Instant::now() + pace;
            tokio::select! {
                () = tokio::time::sleep_until(due) => {
                    let now = Instant::now();
                    shed.woke(now.saturating_duration_since(due.into_std()));
                    self.sweep(now, clusters, shard);
                }
                () = self.hurry.notified() => {}
                () = drain.signaled(), if self.draining_since.get().is_none() => self.drain(Instant::now()),
            }
        }
    }

    fn sweep(&self, now: Instant, clusters: &Clusters, shard: &Shard) {
        let mut soon = clusters.sweep(now);
        for pulse in self.pulses.borrow().iter() {
            soon |= pulse.look(now, self.draining_since.get(), shard);
        }
        self.fast.set(soon);
    }

    fn drain(&self, now: Instant) {
        self.draining_since.set(Some(now));
        self.fast.set(true);
        for pulse in self.pulses.borrow().iter().filter(|pulse| pulse.engine == Engine::H2) {
            pulse.raise(Signal::Drain);
        }
    }

    /// Connections that take part.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pulses.borrow().len()
    }

    /// Connections without an engine.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.pulses.borrow().iter().filter(|pulse| pulse.parked.get()).count()
    }

    /// Whether no connection takes part.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pulses.borrow().is_empty()
    }
}

/// A connection's place in the lot.
#[derive(Debug)]
pub struct Place {
    lot: Rc<Lot>,
    /// The connection's pulse.
    pub pulse: Rc<Pulse>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut pulses = self.lot.pulses.borrow_mut();
        let slot = self.pulse.slot.get();
        pulses.swap_remove(slot);
        if let Some(moved) = pulses.get(slot) {
            moved.slot.set(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard() -> Rc<Shard> {
        Rc::clone(&crate::worker::tests::worker(&[]).shard)
    }

    #[test]
    fn a_connection_is_parked_after_a_whole_quiet_tick() {
        let lot = Rc::new(Lot::default());
        let place = lot.enter(Engine::H1);
        let pulse = &place.pulse;
        let now = Instant::now();
        let request = pulse.request();
        pulse.look(now, None, &shard());
        pulse.look(now, None, &shard());
        assert_eq!(pulse.signal(), Signal::None, "in flight");
        drop(request);
        pulse.flushed();
        let quick = pulse.request();
        drop(quick);
        pulse.look(now, None, &shard());
        assert_eq!(pulse.signal(), Signal::None, "there was a request since the last look");
        pulse.look(now, None, &shard());
        assert_eq!(pulse.signal(), Signal::Park);
        assert_eq!(pulse.signal(), Signal::None, "once");
        assert!(!pulse.may_park(), "not flushed yet");
        pulse.flushed();
        assert!(pulse.may_park());
    }

    #[test]
    fn an_unread_body_keeps_the_engine() {
        let lot = Rc::new(Lot::default());
        let place = lot.enter(Engine::H1);
        place.pulse.request().spoil();
        place.pulse.flushed();
        assert!(!place.pulse.may_park());
    }

    #[test]
    fn half_a_header_section_has_a_deadline() {
        let lot = Rc::new(Lot::default());
        let place = lot.enter(Engine::H1);
        place.pulse.header_begun();
        place.pulse.set_parked(true, &lot);
        let now = Instant::now();
        place.pulse.look(now, None, &shard());
        assert_eq!(place.pulse.signal(), Signal::None);
        place.pulse.look(now + HEADER_TIME_MAX + TICK, None, &shard());
        assert_eq!(place.pulse.signal(), Signal::HeaderTimeout);
    }

    #[test]
    fn a_head_that_came_at_the_last_moment_is_not_too_late() {
        let lot = Rc::new(Lot::default());
        let place = lot.enter(Engine::H1);
        let pulse = &place.pulse;
        pulse.header_begun();
        pulse.look(Instant::now() + HEADER_TIME_MAX + TICK, None, &shard());
        drop(pulse.request());
        pulse.flushed();
        assert_eq!(pulse.signal(), Signal::None, "its connection goes on");
    }

    #[test]
    fn draining_leaves_an_idle_connection_a_moment() {
        let lot = Rc::new(Lot::default());
        let place = lot.enter(Engine::H1);
        place.pulse.set_parked(true, &lot);
        let begun = Instant::now() + Duration::from_secs(60);
        place.pulse.look(begun, Some(begun), &shard());
        assert_eq!(place.pulse.signal(), Signal::None);
        place.pulse.look(begun + DRAIN_IDLE_TIME, Some(begun), &shard());
        assert_eq!(place.pulse.signal(), Signal::Expire);
    }

    #[test]
    fn an_h2_connection_drains_at_once_also_when_it_came_late() {
        let lot = Rc::new(Lot::default());
        let early = lot.enter(Engine::H2);
        lot.drain(Instant::now());
        let late = lot.enter(Engine::H2);
        assert_eq!((early.pulse.signal(), late.pulse.signal()), (Signal::Drain, Signal::Drain));
    }

    #[test]
    fn a_connection_that_has_had_its_time_ends_with_its_next_answer_or_when_it_is_idle() {
        let lot = Rc::new(Lot::default());
        let end = Instant::now() + Duration::from_secs(60);
        let [busy, idle, h2] = [Engine::H1, Engine::H1, Engine::H2].map(|engine| lot.enter(engine));
        for place in [&busy, &idle, &h2] {
            place.pulse.set_end(end);
            place.pulse.look(end - TICK, None, &shard());
            assert!(!place.pulse.is_aged());
        }
        let _request = busy.pulse.request();
        idle.pulse.set_parked(true, &lot);
        for place in [&busy, &idle, &h2] {
            place.pulse.look(end, None, &shard());
        }
        assert!(busy.pulse.is_aged() && busy.pulse.signal() == Signal::None);
        assert_eq!(idle.pulse.signal(), Signal::None, "a request may be on its way");
        assert_eq!(h2.pulse.signal(), Signal::Drain);
        idle.pulse.look(end + AGED_IDLE_TIME, None, &shard());
        assert_eq!(idle.pulse.signal(), Signal::Expire);
    }

    #[test]
    fn places_can_leave_in_any_order() {
        let lot = Rc::new(Lot::default());
        let mut places: Vec<_> = (0..5).map(|_| lot.enter(Engine::H1)).collect();
        for index in [1, 3, 0, 1, 0] {
            drop(places.remove(index));
        }
        assert!(lot.is_empty());
    }
}
