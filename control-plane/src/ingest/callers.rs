//! Which instances report, from which addresses, over which time: the memory behind "who counts".
//!
//! In: committed reports, and what the journal remembers. Out: whether somebody reports for an address at a
//! moment. An instance speaks for its addresses from its first report's begin until [`GRACE`] after its last
//! report's end.
//! Invariant: bounded by [`INSTANCES_MAX`]; state changes only on commit, so that a report that was refused and
//! comes again is treated the same.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::habits::{Habits, Lately};
use crate::graph::{Claim, Mesh, Timestamp};
use crate::store::{KnownInstance, Report};

/// How long an instance speaks for its addresses after its last report: longer than its back-off when this
/// program was away, shorter than an address takes to be given to another pod.
const GRACE: Duration = Duration::from_secs(30);
/// An instance that reported within this time is reporting: five intervals.
const REPORTING: Duration = Duration::from_secs(5);
/// Instances remembered.
const INSTANCES_MAX: usize = 100_000;
/// Instances that have been silent for longer are forgotten.
const REMEMBERED: Duration = Duration::from_secs(3_600);

/// What one instance has reported since this program started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reporter {
    /// The sequence of its last report.
    pub last_sequence: u64,
    /// When its last report's interval ended.
    pub last_report_at: Timestamp,
    /// Reports counted.
    pub reports: u64,
    /// How far its clock is behind, milliseconds; negative: ahead. What reports take on the way is in it.
    pub clock_behind_ms: i64,
    /// Connections of the last five minutes whose protocol was looked for.
    pub detected: u64,
    /// Of these, those that were held until the deadline.
    pub detect_timeouts: u64,
    /// Requests that its app sent to others in the last five minutes, once it had been called itself.
    pub outbound: u64,
    /// Of these, those in the trace of a request that the app was sent.
    pub outbound_carried: u64,
    /// Of these, those in a trace of the app's own.
    pub outbound_own: u64,
}

#[derive(Debug)]
struct Instance {
    addresses: Vec<IpAddr>,
    started: Timestamp,
    last_end: Timestamp,
    sequence: u64,
    reports: u64,
    behind_ms: i64,
    lately: Lately,
}

impl Instance {
    fn speaks_at(&self, at: Timestamp) -> bool {
        at >= self.started && at.since(self.last_end) <= GRACE
    }
}

#[derive(Debug, Default)]
struct State {
    instances: HashMap<Arc<str>, Instance>,
    by_address: HashMap<IpAddr, Vec<Arc<str>>>,
}

/// Who reports.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<State>);

impl Callers {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The addresses that `instance` calls from: what it told the mesh, else what it was known by before.
    ///
    /// The other end of its connection is used only when nothing else is known, or when it is loopback: then the
    /// instance runs on this machine and its calls to others here may come from loopback too.
    pub(super) fn addresses(&self, instance: &str, mesh: &dyn Mesh, peer: Option<IpAddr>) -> Vec<IpAddr> {
        let told = mesh.addresses_of(instance);
        let known = || self.state().instances.get(instance).map(|known| known.addresses.clone());
        let mut addresses = told.filter(|told| !told.is_empty()).or_else(known).unwrap_or_default();
        let peer = peer.map(|peer| peer.to_canonical());
        match peer {
            Some(peer) if peer.is_loopback() => {
                addresses.extend([IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]);
            }
            Some(peer) if addresses.is_empty() => addresses.push(peer),
            _ => {}
        }
        addresses.sort();
        addresses.dedup();
        addresses
    }

    /// Whether somebody reports the calls from `address` at `at`, seen from the instance that sent `report`.
    pub(super) fn reports_for(&self, address: IpAddr, report: &Report, at: Timestamp) -> bool {
        let state = self.state();
        let own = report.instance.as_deref().unwrap_or_default();
        let speaks =
            |name: &Arc<str>| state.instances.get(name).is_some_and(|instance| instance.speaks_at(at));
        let claimants = |address: &IpAddr| state.by_address.get(address).into_iter().flatten();
        if !address.is_loopback() {
            return claimants(&address).any(speaks);
        }
        // On loopback, the callee itself does not count as a possible caller: one program alone on a machine
        // is called by programs without a sidecar.
        let neighbours = report.addresses.iter().chain([&address]).flat_map(claimants);
        neighbours.filter(|name| ***name != *own).any(speaks)
    }

    /// What an instance was known by before a restart.
    pub(super) fn known(&self, known: KnownInstance) {
        let instance = Instance {
            addresses: known.addresses,
            started: known.started,
            last_end: known.last_end,
            sequence: known.sequence,
            reports: 0,
            behind_ms: 0,
            lately: Lately::default(),
        };
        self.state().put(known.instance, instance);
    }

    /// A report was committed: over which time its instance now speaks, for each of its addresses.
    pub(super) fn committed(&self, report: &Report) -> Vec<Claim> {
        let Some(name) = &report.instance else { return Vec::new() };
        let mut state = self.state();
        let before = state.instances.get(name);
        let is_moved = before.is_none_or(|before| before.addresses != report.addresses);
        if is_moved {
            let instance = Instance {
                addresses: report.addresses.clone(),
                started: before.map_or(report.start, |before| before.started),
                last_end: before.map_or(report.end, |before| before.last_end),
                sequence: before.map_or(report.sequence, |before| before.sequence),
                reports: before.map_or(0, |before| before.reports),
                behind_ms: before.map_or(0, |before| before.behind_ms),
                lately: before.map_or_else(Lately::default, |before| before.lately),
            };
            state.put(name.clone(), instance);
        }
        let Some(instance) = state.instances.get_mut(name) else { return Vec::new() };
        instance.started = instance.started.min(report.start);
        instance.last_end = instance.last_end.max(report.end);
        instance.sequence = instance.sequence.max(report.sequence);
        instance.reports += 1;
        let (since, until) = (instance.started, instance.last_end.plus(GRACE));
        let claim = |&address| Claim { reporter: name.clone(), address, since, until };
        instance.addresses.iter().map(claim).collect()
    }

    pub(super) fn reporter(&self, instance: &str, now: Timestamp) -> Option<Reporter> {
        let state = self.state();
        let known = state.instances.get(instance)?;
        let Habits { detected, detect_timeouts, outbound, outbound_carried, outbound_own } =
            known.lately.sum(now);
        Some(Reporter {
            last_sequence: known.sequence,
            last_report_at: known.last_end,
            reports: known.reports,
            clock_behind_ms: known.behind_ms,
            detected,
            detect_timeouts,
            outbound,
            outbound_carried,
            outbound_own,
        })
    }

    /// Notes what a report of `instance` that came at `now` says of its app.
    pub(super) fn behaves(&self, instance: &str, habits: Habits, now: Timestamp) {
        if let Some(known) = self.state().instances.get_mut(instance) {
            known.lately.add(habits, now);
        }
    }

    /// Notes how far the clock of `instance` is behind.
    pub(super) fn clock(&self, instance: &str, behind_ms: i64) {
        if let Some(known) = self.state().instances.get_mut(instance) {
            known.behind_ms = behind_ms;
        }
    }

    pub(super) fn reporting(&self, now: Timestamp) -> usize {
        let state = self.state();
        state.instances.values().filter(|instance| now.since(instance.last_end) <= REPORTING).count()
    }

    /// Forgets instances that have been silent for long.
    pub(super) fn expire(&self, now: Timestamp) {
        let mut state = self.state();
        let silent = state.instances.iter().filter(|(_, instance)| now.since(instance.last_end) > REMEMBERED);
        let silent: Vec<Arc<str>> = silent.map(|(name, _)| name.clone()).collect();
        for name in silent {
            state.remove(&name);
        }
    }
}

impl State {
    fn put(&mut self, name: Arc<str>, instance: Instance) {
        self.remove(&name);
        if self.instances.len() >= INSTANCES_MAX {
            return;
        }
        for address in &instance.addresses {
            self.by_address.entry(*address).or_default().push(name.clone());
        }
        self.instances.insert(name, instance);
    }

    fn remove(&mut self, name: &Arc<str>) {
        let Some(instance) = self.instances.remove(name) else { return };
        for address in instance.addresses {
            if let Some(names) = self.by_address.get_mut(&address) {
                names.retain(|other| other != name);
                if names.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }
}
