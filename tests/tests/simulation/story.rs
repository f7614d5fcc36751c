//! One story: what happens, in which order, and what callers see of it.
//!
//! First chaos: servers fail and recover, lists and policies change, callers come in bursts, retry and go away. Then calm:
//! everybody is well, nothing changes, and callers go on until everything must have come back.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use weft_proxy::balance::circuits::{Admission, ConnectionPermit, PendingPermit, RetryPermit};
use weft_proxy::balance::set::View;
use weft_proxy::balance::{Ask, Circuits, ClusterState, Endpoint, Names, Outcome, Set, Working};
use weft_proxy::xds::{self, Cluster, Health};
use weft_wire::Reason;

use crate::policy::{self, EJECTION_MAX, NAME, OPEN_MAX, SLOW_MIN};
use crate::rules::Watch;

/// Milliseconds since the story began.
type Time = u64;

const CHAOS: Time = 8_000;
/// From here on everybody must be back: an ejection, its jitter, an interval, an open circuit, and its probes.
const BACK: Time = CHAOS + 5 * (EJECTION_MAX.as_millis() + OPEN_MAX.as_millis()) as Time / 2;
/// From here on the past is forgotten (an average fades within ten seconds), and everybody must get a share.
const FAIR: Time = CHAOS + 60_000;
const END: Time = FAIR + 60_000;
/// The admin thread looks this long after something has changed.
const NOTICE: Time = 5;
const WORKERS: usize = 2;
const SERVERS: u8 = 10;
/// A caller waits this long for a server that says nothing.
const PATIENCE: Time = 300;

/// How a server is.
#[derive(Debug, Clone, Copy)]
enum State {
    Well,
    /// Fails so many calls of a hundred, as a gateway or by itself.
    Sick(u8, Outcome),
    Dead,
    Silent,
    Slow(Time),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call,
    /// The attempt of this number of this call ends.
    Ended(u64, u32),
    Retry(u64),
    GiveUp(u64),
    Change,
    Adopt(usize),
}

/// One worker: what it was told, and its own view of the endpoints.
struct Worker {
    origin: Arc<Cluster>,
    set: Set,
    regroup: bool,
}

struct Call {
    worker: usize,
    admission: Admission,
    /// The half-open phase it is a probe of.
    phase: Option<u64>,
    begun: Time,
    attempts: u32,
    attempts_max: u32,
    tried: Vec<Rc<Endpoint>>,
    attempt: Option<Attempt>,
    retry: Option<RetryPermit>,
}

struct Attempt {
    working: Working,
    begun: Time,
    outcome: Outcome,
    _connection: Option<ConnectionPermit>,
    _pending: Option<PendingPermit>,
}

/// What happened in a story, so that nobody mistakes boredom for success.
#[derive(Debug, Default)]
pub(crate) struct Told {
    calls: u64,
    answered: u64,
    failed: u64,
    circuit_open: u64,
    limited: u64,
    nobody: u64,
    given_up: u64,
    probes: u64,
    retries: u64,
    retries_denied: u64,
    panics: u64,
    ejections: u64,
    returns: u64,
    opened: u64,
    closed: u64,
}

impl Told {
    fn all(&mut self) -> [&mut u64; 15] {
        [
            &mut self.calls,
            &mut self.answered,
            &mut self.failed,
            &mut self.circuit_open,
            &mut self.limited,
            &mut self.nobody,
            &mut self.given_up,
            &mut self.probes,
            &mut self.retries,
            &mut self.retries_denied,
            &mut self.panics,
            &mut self.ejections,
            &mut self.returns,
            &mut self.opened,
            &mut self.closed,
        ]
    }

    pub(crate) fn add(&mut self, mut other: Self) {
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            *sum += *more;
        }
    }

    /// Everything that can happen has happened often.
    pub(crate) fn has_everything(&mut self) {
        let few = self.all().into_iter().any(|count| *count < 100);
        assert!(!few, "too little happened: {self:?}");
    }
}

struct Story {
    random: Rng,
    start: Instant,
    now: Time,
    circuits: Arc<Circuits>,
    cluster: Arc<ClusterState>,
    /// What the control plane says now.
    origin: Arc<Cluster>,
    workers: Vec<Worker>,
    servers: HashMap<SocketAddr, State>,
    calls: HashMap<u64, Call>,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    sweep: Time,
    watch: Watch,
    /// How often each was chosen since all must be fair.
    shares: HashMap<SocketAddr, u64>,
    told: Told,
}

/// Tells the story of a seed to its end.
pub(crate) fn tell(seed: u64) -> Told {
    // Chances inside of the proxy.
    fastrand::seed(seed);
    let mut story = Story::begin(Rng::with_seed(seed));
    story.until(CHAOS);
    story.calm_down();
    story.until(BACK);
    story.watch.recovered();
    story.until(FAIR);
    story.shares.clear();
    story.until(END);
    story.end()
}

impl Story {
    fn begin(mut random: Rng) -> Self {
        let circuits = Circuits::new();
        let cluster = circuits.cluster(NAME);
        let origin = Cluster::new(policy::spec(&mut random), listed(&mut random));
        cluster.adopt(&origin);
        let worker = || Worker { origin: Arc::clone(&origin), set: Set::default(), regroup: false };
        let mut story = Self {
            random,
            start: Instant::now(),
            now: 0,
            watch: Watch::new(Arc::clone(&cluster), Arc::clone(&origin)),
            workers: (0..WORKERS).map(|_| worker()).collect(),
            servers: (0..SERVERS).map(|last| (address(last), State::Well)).collect(),
            circuits,
            cluster,
            origin,
            calls: HashMap::new(),
            events: BinaryHeap::new(),
            sequence: 0,
            sweep: 0,
            shares: HashMap::new(),
            told: Told::default(),
        };
        story.after(0, Event::Call);
        story.after(10, Event::Change);
        story
    }

    fn after(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + time, self.sequence, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn until(&mut self, end: Time) {
        loop {
            let next = self.events.peek().map_or(Time::MAX, |Reverse((time, ..))| *time);
            if next.min(self.sweep) >= end {
                self.now = end;
                return;
            }
            let signs =
                (self.cluster.generation(), self.cluster.position(), self.origin.endpoints().generation);
            if self.sweep <= next {
                self.now = self.sweep;
                self.sweep();
            } else if let Some(Reverse((time, _, event))) = self.events.pop() {
                self.now = time;
                self.happen(event);
            }
            self.watch.look();
            let after =
                (self.cluster.generation(), self.cluster.position(), self.origin.endpoints().generation);
            if signs != after {
                self.sweep = self.sweep.min(self.now + NOTICE);
            }
        }
    }

    fn sweep(&mut self) {
        let due = self.circuits.sweep(self.instant());
        let pause = due.saturating_duration_since(self.instant()).as_millis() as Time;
        self.sweep = self.now + pause.max(NOTICE);
        self.watch.look();
        if self.workers.iter().all(|worker| Arc::ptr_eq(&worker.origin, &self.origin)) {
            self.watch.settled();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Call => {
                let calm = self.now >= CHAOS;
                let burst = if !calm && self.random.u8(..20) == 0 { self.random.u32(2..40) } else { 1 };
                for _ in 0..burst {
                    self.call();
                }
                let pause = if calm { 100 } else { self.random.u64(1..30) };
                self.after(pause, Event::Call);
            }
            Event::Ended(call, attempt) => self.ended(call, attempt),
            Event::Retry(call) => {
                if self.calls.contains_key(&call) {
                    self.attempt(call);
                }
            }
            Event::GiveUp(id) => {
                if let Some(call) = self.calls.remove(&id) {
                    self.told.given_up += 1;
                    let phase = call.phase;
                    drop(call);
                    self.gave_up(phase);
                }
            }
            Event::Change if self.now < CHAOS => self.change(),
            Event::Change => {}
            Event::Adopt(worker) => self.adopt(worker),
        }
    }

    /// A call that was let through ended without a verdict.
    fn gave_up(&mut self, phase: Option<u64>) {
        if let Some(phase) = phase {
            self.watch.cancelled(phase);
        }
    }

    /// Somebody falls ill, gets well, comes or goes; or the policy is another one.
    fn change(&mut self) {
        match self.random.u8(..20) {
            0..=1 => {
                self.origin = Cluster::new(policy::spec(&mut self.random), listed(&mut self.random));
                for worker in 0..WORKERS {
                    let later = self.random.u64(..50);
                    self.after(later, Event::Adopt(worker));
                }
            }
            2..=5 => self.origin.set_endpoints(listed(&mut self.random)),
            _ => {
                let server = address(self.random.u8(..SERVERS));
                let state = match self.random.u8(..10) {
                    0..=3 => State::Well,
                    4 => State::Dead,
                    5 => State::Silent,
                    6 => State::Slow(self.random.u64(20..500)),
                    7 => State::Sick(self.random.u8(20..=100), Outcome::GatewayError),
                    _ => State::Sick(self.random.u8(20..=100), Outcome::ServerError),
                };
                self.servers.insert(server, state);
            }
        }
        let later = self.random.u64(5..150);
        self.after(later, Event::Change);
    }

    fn adopt(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        worker.origin = Arc::clone(&self.origin);
        worker.regroup = true;
        self.cluster.adopt(&self.origin);
        self.watch.adopted(&self.origin);
    }

    fn calm_down(&mut self) {
        for state in self.servers.values_mut() {
            *state = State::Well;
        }
        let all = (0..SERVERS)
            .map(|last| xds::Endpoint { weight: self.random.u32(1..4), ..xds::Endpoint::new(address(last)) });
        self.origin.set_endpoints(all.collect());
        for worker in 0..WORKERS {
            self.adopt(worker);
        }
    }

    fn call(&mut self) {
        self.told.calls += 1;
        let admission = match self.cluster.admit(self.instant()) {
            Ok(admission) => admission,
            Err(Reason::CircuitOpen) => {
                self.watch.refused();
                return self.told.circuit_open += 1;
            }
            Err(reason) => {
                assert_eq!(reason, Reason::ConcurrencyLimited);
                return self.told.limited += 1;
            }
        };
        let phase = self.watch.passed(admission.is_probe());
        self.told.probes += u64::from(phase.is_some());
        self.sequence += 1;
        let (id, calm) = (self.sequence, self.now >= CHAOS);
        let call = Call {
            worker: self.random.usize(..WORKERS),
            admission,
            phase,
            begun: self.now,
            attempts: 0,
            attempts_max: self.random.u32(1..5),
            tried: vec![],
            attempt: None,
            retry: None,
        };
        self.calls.insert(id, call);
        if !calm && self.random.u8(..8) == 0 {
            let later = self.random.u64(..60);
            self.after(later, Event::GiveUp(id));
        }
        self.attempt(id);
    }

    fn attempt(&mut self, id: u64) {
        let call = self.calls.get_mut(&id).expect("under way");
        call.attempts += 1;
        // A third needs a connection of its own, and waits for it until it answers.
        let connects = self.random.u8(..3) == 0;
        let (connection, pending) = (self.cluster.connection(), self.cluster.pending());
        if connects && (connection.is_none() || pending.is_none()) {
            self.told.limited += 1;
            return self.unsent(id);
        }
        if pending.is_some() {
            self.watch.waits();
        }
        let (connection, pending) = if connects { (connection, pending) } else { (None, None) };
        let now = self.start + Duration::from_millis(self.now);
        let worker = &mut self.workers[call.worker];
        let random = &mut self.random;
        let Some(chosen) = worker.choose(&self.cluster, &call.tried, now, || random.u64(..)) else {
            self.told.nobody += 1;
            return self.unsent(id);
        };
        self.told.panics += u64::from(chosen.panic);
        let endpoint = chosen.endpoint;
        *self.shares.entry(endpoint.address).or_default() += 1;
        let (outcome, took) = served(&mut self.random, self.servers[&endpoint.address]);
        let attempt = Attempt {
            working: endpoint.start(),
            begun: self.now,
            outcome,
            _connection: connection,
            _pending: pending,
        };
        call.attempt = Some(attempt);
        let number = call.attempts;
        self.after(took, Event::Ended(id, number));
    }

    /// Nothing was sent, so nothing is said about anybody.
    fn unsent(&mut self, id: u64) {
        let call = self.calls.remove(&id).expect("under way");
        call.admission.settle(Outcome::Cancelled, Duration::ZERO, self.instant());
        let phase = call.phase;
        drop(call);
        self.gave_up(phase);
    }

    fn ended(&mut self, id: u64, number: u32) {
        let now = self.instant();
        let Some(call) = self.calls.get_mut(&id).filter(|call| call.attempts == number) else { return };
        let attempt = call.attempt.take().expect("it has just ended");
        let outcome = attempt.outcome;
        let elapsed = Duration::from_millis(self.now - attempt.begun);
        attempt.working.observe(now, elapsed);
        attempt.working.endpoint().report(outcome, elapsed, now);
        let endpoint = Rc::clone(attempt.working.endpoint());
        drop((attempt, call.retry.take()));
        let failed = outcome.failed() == Some(true);
        if failed && call.attempts < call.attempts_max {
            call.retry = self.cluster.retry();
            if call.retry.is_some() {
                call.tried.push(endpoint);
                self.told.retries += 1;
                self.watch.retried();
                let pause = self.random.u64(1..20);
                return self.after(pause, Event::Retry(id));
            }
            self.told.retries_denied += 1;
        }
        self.told.answered += u64::from(!failed);
        self.told.failed += u64::from(failed);
        let call = self.calls.remove(&id).expect("under way");
        call.admission.settle(outcome, Duration::from_millis(self.now - call.begun), now);
    }

    fn end(mut self) -> Told {
        for last in 0..SERVERS {
            let share = self.shares.get(&address(last)).copied().unwrap_or(0);
            assert!(share > 0, "{last} is starved: {:?}, {:?}", self.shares, self.origin.balancing);
        }
        self.calls.clear();
        self.watch.at_rest();
        for worker in &self.workers {
            assert!(worker.set.all().iter().all(|endpoint| endpoint.load().in_flight() == 0));
        }
        let watch = &self.watch;
        (self.told.ejections, self.told.returns) = (watch.ejections, watch.returns);
        (self.told.opened, self.told.closed) = (watch.opened, watch.closed);
        self.told
    }
}

impl Worker {
    /// What [`weft_proxy::balance::Clusters`] does, on this story's clock.
    fn choose(
        &mut self,
        cluster: &ClusterState,
        tried: &[Rc<Endpoint>],
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) -> Option<weft_proxy::balance::set::Chosen> {
        let list = self.origin.endpoints();
        let regroup = std::mem::take(&mut self.regroup);
        let view = View { policy: &self.origin.balancing, zone: None, circuit: cluster, now, mutual: false };
        if !self.set.is_current(&list, false) {
            self.set.apply(&list, view, &mut random, |_| Names::default());
        } else if regroup || self.set.is_outdated(cluster, || now) {
            self.set.regroup(view, &mut random);
        }
        let available = |endpoint: &xds::Endpoint| {
            endpoint.health != Health::Unhealthy && cluster.endpoint(endpoint.address).available()
        };
        let anybody = list.list.iter().any(available);
        let chosen = self.set.choose(Ask::except(tried), now, random);
        match &chosen {
            None => assert!(!anybody, "somebody is available, and nobody was chosen"),
            Some(chosen) => {
                let entry = list.list.iter().find(|endpoint| endpoint.address == chosen.endpoint.address);
                let entry = entry.expect("who is chosen is listed");
                assert!(chosen.panic || available(entry), "who is chosen is available: {entry:?}");
            }
        }
        chosen
    }
}

/// What a server does with a call, and how long it takes.
fn served(random: &mut Rng, state: State) -> (Outcome, Time) {
    let quick = random.u64(1..6);
    assert!(u128::from(quick) < SLOW_MIN.as_millis());
    match state {
        State::Well => (Outcome::Success, quick),
        State::Sick(percent, outcome) if random.u8(..100) < percent => (outcome, quick),
        State::Sick(..) => (Outcome::Success, quick),
        State::Dead => (Outcome::LocalOrigin(Reason::ConnectRefused), 1),
        State::Silent => (Outcome::LocalOrigin(Reason::RequestTimeout), PATIENCE),
        State::Slow(time) => (Outcome::Success, time),
    }
}

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 8080))
}

/// Some of the servers, in an order, with weights and priorities.
fn listed(random: &mut Rng) -> Vec<xds::Endpoint> {
    let mut list: Vec<u8> = (0..SERVERS).filter(|_| random.u8(..3) > 0).collect();
    random.shuffle(&mut list);
    let mut endpoint = |last| xds::Endpoint {
        weight: random.u32(1..4),
        priority: u32::from(random.u8(..8) == 0),
        health: match random.u8(..20) {
            0 => Health::Unhealthy,
            1 => Health::Degraded,
            _ => Health::Healthy,
        },
        ..xds::Endpoint::new(address(last))
    };
    list.into_iter().map(&mut endpoint).collect()
}
