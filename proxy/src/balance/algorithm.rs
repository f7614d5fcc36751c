//! How one of several endpoints is chosen: an algorithm with its state.
//!
//! In: a [`Policy`] and the endpoints it applies to; then, for each request, the time, random numbers and a hash. Out:
//! the position of an endpoint. The algorithms themselves know positions and numbers only and stand in files of their
//! own; this one gives them an endpoint's load, weight and name.
//!
//! Invariant: no clock and no generator in here, and a pick allocates nothing. Surprise: while an endpoint starts slowly,
//! endpoints of equal weight have unequal ones, so round robin and least request keep a schedule until it has grown up.

pub mod maglev;
pub mod ring;
pub mod rotation;
pub mod sample;
pub mod schedule;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use maglev::Table;
use ring::Ring;
use rotation::Rotation;
use schedule::Schedule;

use super::endpoints::Endpoint;
use super::policy::{Algorithm, Policy, SlowStart};

/// One algorithm with its state, for one list of endpoints.
#[derive(Debug)]
pub struct Picker {
    state: State,
    warmup: Option<Warmup>,
}

#[derive(Debug)]
enum State {
    PeakEwma,
    LeastRequest {
        choices: usize,
    },
    /// Round robin or least request with unequal weights.
    Scheduled {
        schedule: Schedule,
        bias: f64,
    },
    RoundRobin(Rotation),
    Random,
    RingHash(Ring),
    Maglev(Table),
}

/// Some endpoints start slowly.
#[derive(Debug, Clone, Copy)]
struct Warmup {
    slow: SlowStart,
    until: Instant,
}

/// What a picker that is replaced hands to its successor: whose turn it was.
#[derive(Debug, Default)]
pub struct Turns {
    rotation: Option<(Rotation, Vec<SocketAddr>)>,
    waits: HashMap<SocketAddr, f64>,
}

impl Picker {
    /// A picker for these endpoints, which goes on where `turns` ended.
    #[must_use]
    pub fn new(
        policy: &Policy,
        members: &[Rc<Endpoint>],
        turns: &Turns,
        now: Instant,
        mut random: impl FnMut() -> u64,
    ) -> Self {
        let warmup = policy.slow_start.and_then(|slow| Warmup::of(slow, members, now));
        let weights = || members.iter().map(|member| member.load().weight());
        let equal = warmup.is_none() && weights().min() == weights().max();
        let state = match policy.algorithm {
            Algorithm::PeakEwma => State::PeakEwma,
            Algorithm::Random => State::Random,
            Algorithm::LeastRequest { choices, .. } if equal => {
                State::LeastRequest { choices: (choices as usize).max(2) }
            }
            Algorithm::RoundRobin if equal => State::RoundRobin(match &turns.rotation {
                Some((rotation, old)) => rotation.resumed(old, members.iter().map(|member| member.address)),
                None => Rotation::starting(random()),
            }),
            Algorithm::LeastRequest { .. } | Algorithm::RoundRobin => {
                let bias = match policy.algorithm {
                    Algorithm::LeastRequest { bias, .. } => bias,
                    _ => 0.0,
                };
                let weights =
                    members.iter().map(|member| (member.address, weight(member, bias, warmup, now)));
                State::Scheduled { schedule: Schedule::new(weights, &turns.waits, random), bias }
            }
            Algorithm::RingHash { minimum, maximum } => {
                let keys = keys(members);
                State::RingHash(Ring::new(
                    keys.iter().map(|(key, weight)| (&**key, *weight)),
                    minimum,
                    maximum,
                ))
            }
            Algorithm::Maglev { size } => {
                let keys = keys(members);
                State::Maglev(Table::new(keys.iter().map(|(key, weight)| (&**key, *weight)), size))
            }
        };
        Self { state, warmup }
    }

    /// The position of an endpoint among `members`, which must be those that the picker was made for and not empty.
    ///
    /// `hash` is the request's, or any number where it has none; a further `attempt` means that the ones before found
    /// somebody who will not do.
    pub fn pick(
        &mut self,
        members: &[Rc<Endpoint>],
        now: Instant,
        hash: u64,
        attempt: usize,
        mut random: impl FnMut() -> u64,
    ) -> usize {
        let warmup = self.warmup;
        let position = match &mut self.state {
            State::PeakEwma => sample::cheapest(members.len(), 2, random, |position| {
                let member = &members[position];
                member.load().cost(now) / factor(member, warmup, now)
            }),
            State::LeastRequest { choices } => {
                sample::cheapest(members.len(), *choices, random, |position| {
                    members[position].load().in_flight()
                })
            }
            State::Scheduled { schedule, bias } => {
                schedule.pick(|position| weight(&members[position], *bias, warmup, now)).unwrap_or(0)
            }
            State::RoundRobin(rotation) => rotation.pick(members.len()),
            State::Random => sample::one_of(members.len(), random()),
            State::RingHash(ring) => ring.member(hash, attempt).unwrap_or(0),
            State::Maglev(table) => table.member(hash, attempt).unwrap_or(0),
        };
        debug_assert!(position < members.len(), "made for other members");
        position.min(members.len().saturating_sub(1))
    }

    /// When an endpoint's slow start ends, after which a new picker is cheaper and, for least request, better.
    #[must_use]
    pub fn expires(&self) -> Option<Instant> {
        self.warmup.map(|warmup| warmup.until)
    }

    /// Whose turn it is, for a successor that has other members.
    #[must_use]
    pub fn turns(&self, members: &[Rc<Endpoint>]) -> Turns {
        let address = |position: usize| members.get(position).map(|member| member.address);
        match &self.state {
            State::RoundRobin(rotation) => {
                let old = members.iter().map(|member| member.address).collect();
                Turns { rotation: Some((*rotation, old)), ..Turns::default() }
            }
            State::Scheduled { schedule, .. } => {
                let waits = schedule.waits().filter_map(|(position, wait)| Some((address(position)?, wait)));
                Turns { waits: waits.collect(), ..Turns::default() }
            }
            _ => Turns::default(),
        }
    }
}

impl Warmup {
    fn of(slow: SlowStart, members: &[Rc<Endpoint>], now: Instant) -> Option<Self> {
        let until = members.iter().filter_map(|member| member.since()).max()? + slow.window;
        (until > now).then_some(Self { slow, until })
    }
}

/// Share of its weight that a member has while it starts slowly.
fn factor(member: &Endpoint, warmup: Option<Warmup>, now: Instant) -> f64 {
    match (warmup, member.since()) {
        (Some(warmup), Some(since)) => warmup.slow.factor(now.saturating_duration_since(since)),
        _ => 1.0,
    }
}

/// A member's weight against its work in flight.
fn weight(member: &Endpoint, bias: f64, warmup: Option<Warmup>, now: Instant) -> f64 {
    let load = member.load();
    let work = f64::from(load.in_flight()) + 1.0;
    let against = if bias == 0.0 {
        1.0
    } else if bias == 1.0 {
        work
    } else {
        work.powf(bias)
    };
    f64::from(load.weight()) / against * factor(member, warmup, now)
}

/// What members are hashed by, and their weights.
fn keys(members: &[Rc<Endpoint>]) -> Vec<(String, u32)> {
    members.iter().map(|member| (member.hash_key(), member.load().weight())).collect()
}
