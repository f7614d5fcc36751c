//! One endpoint: whether it may get requests, and what it did with the latest.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::super::breaker::outlier::{Answer, Origin, Sample, Settings, State};
use super::super::breaker::window::Tally;
use super::super::breaker::{Cause, Kind, Outcome, Position};
use super::cluster::Core;
use super::journal::Transition;
use super::window::Window;

/// Calls of an endpoint older than this are not shown. As long as a service's window.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// An endpoint's state, shared by workers and the admin thread.
pub struct EndpointState {
    address: SocketAddr,
    core: Arc<Core>,
    /// A packed [`State`].
    word: AtomicU64,
    /// Millisecond of the last change of availability.
    since: AtomicU64,
    server_errors: AtomicU32,
    gateway_errors: AtomicU32,
    local_failures: AtomicU32,
    /// Attempts and failures since the last sweep: answers, and getting any.
    interval: [AtomicU64; 2],
    window: Window,
    /// Millisecond of the next active check; 0 = none is planned.
    next_check: AtomicU64,
    /// Whether the address is in the cluster no more.
    gone: AtomicBool,
}

impl EndpointState {
    pub(super) fn new(address: SocketAddr, core: Arc<Core>) -> Self {
        Self {
            address,
            core,
            word: AtomicU64::new(State::default().pack()),
            since: AtomicU64::new(0),
            server_errors: AtomicU32::new(0),
            gateway_errors: AtomicU32::new(0),
            local_failures: AtomicU32::new(0),
            interval: Default::default(),
            window: Window::default(),
            next_check: AtomicU64::new(0),
            gone: AtomicBool::new(false),
        }
    }

    /// Whether requests may be sent to it: neither ejected nor failed by active checks.
    #[must_use]
    pub fn available(&self) -> bool {
        self.state().is_available()
    }

    /// How one attempt ended, and how long its answer took.
    pub fn report(&self, outcome: Outcome, elapsed: Duration, now: Instant) {
        let origin = self.core.origin();
        let Some(breaking) = origin.as_ref().map(|origin| &origin.breaking) else { return };
        let (Some(failed), true) = (outcome.failed(), breaking.judges_endpoints()) else { return };
        let now = self.core.shared.clock.millis(now);
        let slow = breaking.circuit.is_some_and(|circuit| circuit.is_slow(elapsed));
        self.window.add(now, WINDOW, failed, slow);
        if let Some(outlier) = &breaking.outlier {
            self.charge(outlier, outcome, now);
        }
    }

    fn charge(&self, settings: &Settings, outcome: Outcome, now: u64) {
        let charge = settings.charge(outcome);
        if let Some(answer) = charge.answer {
            self.count(Origin::External, answer != Answer::Fine);
            match answer {
                Answer::Fine => {
                    reset(&self.server_errors);
                    reset(&self.gateway_errors);
                }
                Answer::ServerError => {
                    reset(&self.gateway_errors);
                    self.consecutive(Cause::Consecutive5xx, settings, now);
                }
                Answer::GatewayError => {
                    self.consecutive(Cause::ConsecutiveGatewayFailure, settings, now);
                    self.consecutive(Cause::Consecutive5xx, settings, now);
                }
            }
        }
        if let Some(failed) = charge.local_failed {
            self.count(Origin::Local, failed);
            if failed {
                self.consecutive(Cause::ConsecutiveLocalOriginFailure, settings, now);
            } else {
                reset(&self.local_failures);
            }
        }
    }

    fn count(&self, origin: Origin, failed: bool) {
        self.interval[origin as usize].fetch_add(1 | u64::from(failed) << 32, Ordering::Relaxed);
    }

    /// One more in a row. Whoever makes the row complete ejects; the row begins anew whatever comes of it.
    fn consecutive(&self, cause: Cause, settings: &Settings, now: u64) {
        let (counter, threshold) = match cause {
            Cause::ConsecutiveGatewayFailure => (&self.gateway_errors, settings.consecutive_gateway_failure),
            Cause::ConsecutiveLocalOriginFailure => {
                (&self.local_failures, settings.consecutive_local_origin_failure)
            }
            _ => (&self.server_errors, settings.consecutive_5xx),
        };
        if counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1) == threshold {
            self.eject(cause, settings, now);
            reset(counter);
        }
    }

    /// Ejects it, if the settings and the state of its siblings allow.
    pub(crate) fn eject(&self, cause: Cause, settings: &Settings, now: u64) -> bool {
        if self.state().ejected || !settings.enforces(cause, fastrand::u8(..100)) {
            return false;
        }
        let members = self.core.origin().as_ref().map_or(0, |origin| origin.endpoints().list.len());
        // Reserved before it is done, so that two who eject at once never exceed the cap.
        let reserve = |ejected| settings.may_eject(ejected, members).then_some(ejected + 1);
        if self.core.ejected.fetch_update(Ordering::AcqRel, Ordering::Acquire, reserve).is_err() {
            return false;
        }
        let chance = fastrand::f64();
        let changed =
            self.change(now, |state| (!state.ejected).then(|| state.eject(settings, cause, now, chance)));
        if !changed {
            self.core.ejected.fetch_sub(1, Ordering::AcqRel);
        }
        // It may have left the cluster meanwhile, and then nobody else gives its place back. Of this and `leave`, each
        // first writes and then reads what the other writes; with fences one of them at least sees the other.
        fence(Ordering::SeqCst);
        if changed && self.gone.load(Ordering::Acquire) {
            self.uneject(now);
        }
        changed
    }

    /// Lets it return. Its rows of failures begin anew.
    pub(crate) fn uneject(&self, now: u64) {
        if self.change(now, |state| state.ejected.then(|| state.uneject())) {
            self.core.ejected.fetch_sub(1, Ordering::AcqRel);
            for counter in [&self.server_errors, &self.gateway_errors, &self.local_failures] {
                reset(counter);
            }
        }
    }

    /// When it is checked next; 0 = never.
    pub(crate) fn checks_again(&self, millis: u64) {
        self.next_check.store(millis, Ordering::Relaxed);
    }

    /// When it may get requests again, while it may not.
    pub(crate) fn next_probe(&self, state: State) -> Option<u64> {
        let next_check = || Some(self.next_check.load(Ordering::Relaxed)).filter(|next| *next > 0);
        if state.ejected { Some(state.until) } else { state.failed_check.then(next_check).flatten() }
    }

    /// What active checks say.
    pub(crate) fn checked(&self, healthy: bool, now: u64) {
        self.change(now, |state| (state.failed_check == healthy).then(|| state.checked(healthy)));
    }

    /// An active check has passed, and the endpoint is healthy by it: ends an ejection, where the settings say so.
    pub(crate) fn passed(&self, now: u64) {
        let settings = self.core.origin().as_ref().and_then(|origin| origin.breaking.outlier);
        let state = self.state();
        if state.ejected
            && !state.failed_check
            && settings.is_some_and(|settings| settings.health_check_unejects)
        {
            self.uneject(now);
        }
    }

    /// Nobody judges endpoints any more.
    pub(super) fn acquit(&self, now: u64) {
        self.uneject(now);
        self.change(now, |state| (state.backoff() > 0).then(|| state.acquit()));
    }

    /// A healthy interval has passed.
    pub(crate) fn calm(&self, now: u64) {
        self.change(now, |state| (!state.ejected && state.backoff() > 0).then(|| state.calm()));
    }

    /// What was counted since the last time, which begins a new interval.
    pub(crate) fn take_sample(&self, origin: Origin) -> Sample {
        let counts = self.interval[origin as usize].swap(0, Ordering::Relaxed);
        let (attempts, failures) = (counts & u64::from(u32::MAX), counts >> 32);
        Sample { attempts, failures: failures.min(attempts) }
    }

    /// The address is in the cluster no more: whoever shows its circuit learns that it is open no more.
    pub(super) fn leave(&self, now: u64) {
        self.gone.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.uneject(now);
        self.checked(true, now);
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Whether the address is in the cluster no more, so that somebody else's failures would be counted here.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether it is ejected.
    #[must_use]
    pub fn ejected(&self) -> bool {
        self.state().ejected
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn state(&self) -> State {
        State::unpack(self.word.load(Ordering::Acquire))
    }

    pub(crate) fn since(&self) -> u64 {
        self.since.load(Ordering::Relaxed)
    }

    pub(crate) fn tally(&self, now: u64) -> Tally {
        self.window.tally(now, WINDOW)
    }

    /// Applies `next` atomically and tells if availability changed; whether anything changed.
    fn change(&self, now: u64, next: impl Fn(State) -> Option<State>) -> bool {
        let mut word = self.word.load(Ordering::Acquire);
        let (before, after) = loop {
            let before = State::unpack(word);
            let Some(after) = next(before) else { return false };
            match self.word.compare_exchange_weak(word, after.pack(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break (before, after),
                Err(found) => word = found,
            }
        };
        if before.is_available() != after.is_available() {
            self.since.store(now, Ordering::Relaxed);
            self.core.availability_changed();
            self.core.shared.changed.notify_one();
            let position =
                |state: State| if state.is_available() { Position::Closed } else { Position::Open };
            self.core.shared.journal.tell(Transition {
                kind: Kind::Endpoint,
                address: Some(self.address),
                from: position(before),
                to: position(after),
                cause: after.cause,
                at: now,
                next_probe: self.next_probe(after),
                tally: self.tally(now),
                core: Arc::clone(&self.core),
            });
        }
        true
    }
}

/// Without writing where there is nothing to write.
fn reset(counter: &AtomicU32) {
    if counter.load(Ordering::Relaxed) != 0 {
        counter.store(0, Ordering::Relaxed);
    }
}

impl fmt::Debug for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EndpointState")
            .field("address", &self.address)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
