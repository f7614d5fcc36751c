//! Who runs what: the connected proxies and how their configuration fares.
//!
//! In: notes from each stream as it goes. Out: [`ProxyStatus`] lists for the API.
//! Invariant: an entry exists exactly while its stream does; bounded by the number of streams, and its
//! subscription names by the stream's own bound.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use weft_wire::WorkloadId;

use super::Kind;
use crate::serve::Verified;
use crate::world::StreamId;

/// One connected proxy.
#[derive(Debug, Clone)]
pub struct ProxyStatus {
    /// The proxy instance (`node.id`).
    pub instance: Arc<str>,
    /// The workload, unless a foreign client did not say.
    pub workload: Option<WorkloadId>,
    /// The workload's version, when known.
    pub version: Option<String>,
    /// The pod's name, when there is a pod.
    pub pod: Option<String>,
    /// The proxy's own addresses.
    pub addresses: Vec<IpAddr>,
    /// What the proxy is: `weft-proxy`, `envoy`, …, as it says.
    pub agent: String,
    /// Which version of that, as it says.
    pub agent_version: Option<String>,
    /// Who it proved to be; `None` on a connection without proof.
    pub verified: Option<Arc<Verified>>,
    /// When the stream was opened.
    pub connected_since: SystemTime,
    /// Since when it owes an answer to something that was sent; `None` when it owes none.
    pub waiting_since: Option<SystemTime>,
    /// When it last accepted or rejected something on this stream.
    pub answered_at: Option<SystemTime>,
    /// Per kind of resource, what it asked for and how that went.
    pub kinds: BTreeMap<Kind, KindStatus>,
}

/// How one kind of resource fares on one stream.
#[derive(Debug, Clone, Default)]
pub struct KindStatus {
    /// Names subscribed to, in order, and what of them runs.
    pub subscriptions: Arc<[Running]>,
    /// Responses the proxy accepted.
    pub acked: u64,
    /// Responses the proxy rejected.
    pub nacked: u64,
    /// Whether a response is sent and neither accepted nor rejected yet.
    pub outstanding: bool,
    /// The last rejection in the proxy's words.
    pub last_nack: Option<String>,
}

/// One resource on one proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: Arc<str>,
    /// The version that the proxy said it took; `None` when it has none.
    pub acked: Option<Arc<str>>,
    /// What it refused since.
    pub refused: Option<Arc<Refusal>>,
}

/// A version that a proxy did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The version.
    pub version: Arc<str>,
    /// Why, in the proxy's words.
    pub message: Arc<str>,
}

impl ProxyStatus {
    /// Takes over what became of its resources.
    fn update(&mut self, kinds: BTreeMap<Kind, KindStatus>, now: SystemTime) {
        let answers = |kinds: &BTreeMap<Kind, KindStatus>| {
            kinds.values().map(|kind| kind.acked.saturating_add(kind.nacked)).fold(0_u64, u64::saturating_add)
        };
        let answered = answers(&kinds) != answers(&self.kinds);
        if answered {
            self.answered_at = Some(now);
        }
        // Who answers and is sent the next thing at once is not late: every answer starts the clock anew.
        let waits = kinds.values().any(|kind| kind.outstanding);
        self.waiting_since = match self.waiting_since {
            Some(since) if waits && !answered => Some(since),
            _ => waits.then_some(now),
        };
        self.kinds = kinds;
    }
}

impl KindStatus {
    /// What runs of the resource `name`; `None` when it is not subscribed to.
    #[must_use]
    pub fn running(&self, name: &str) -> Option<&Running> {
        let place = self.subscriptions.binary_search_by(|running| (*running.name).cmp(name)).ok()?;
        self.subscriptions.get(place)
    }
}

/// The shared list. Cheap to clone.
#[derive(Clone)]
pub struct Status {
    proxies: Arc<Mutex<BTreeMap<StreamId, ProxyStatus>>>,
    version: watch::Sender<u64>,
}

impl Default for Status {
    fn default() -> Self {
        Self { proxies: Arc::default(), version: watch::Sender::new(0) }
    }
}

impl Status {
    /// Every connected proxy, oldest stream first.
    #[must_use]
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        self.lock().values().cloned().collect()
    }

    /// How many proxies are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.lock().len()
    }

    /// Signals whenever a proxy connects, leaves, or something about it changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    pub(crate) fn set(&self, stream: StreamId, proxy: ProxyStatus) {
        self.lock().insert(stream, proxy);
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn update(&self, stream: StreamId, kinds: BTreeMap<Kind, KindStatus>, now: SystemTime) {
        if let Some(proxy) = self.lock().get_mut(&stream) {
            proxy.update(kinds, now);
        }
        self.version.send_modify(|version| *version += 1);
    }

    pub(crate) fn remove(&self, stream: StreamId) {
        self.lock().remove(&stream);
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<StreamId, ProxyStatus>> {
        // Plain data: a poisoned lock still holds a list.
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn kinds(outstanding: bool, acked: u64) -> BTreeMap<Kind, KindStatus> {
        [(Kind::Cluster, KindStatus { outstanding, acked, ..KindStatus::default() })].into()
    }

    #[test]
    fn who_owes_an_answer_owes_it_since_what_was_sent_last() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let mut proxy = ProxyStatus {
            instance: "a".into(),
            workload: None,
            version: None,
            pod: None,
            addresses: Vec::new(),
            agent: String::new(),
            agent_version: None,
            verified: None,
            connected_since: at(0),
            waiting_since: None,
            answered_at: None,
            kinds: BTreeMap::new(),
        };
        proxy.update(kinds(true, 0), at(1));
        proxy.update(kinds(true, 0), at(5));
        assert_eq!((proxy.waiting_since, proxy.answered_at), (Some(at(1)), None));
        proxy.update(kinds(true, 1), at(7));
        assert_eq!((proxy.waiting_since, proxy.answered_at), (Some(at(7)), Some(at(7))));
        proxy.update(kinds(false, 2), at(9));
        assert_eq!((proxy.waiting_since, proxy.answered_at), (None, Some(at(9))));
        proxy.update(kinds(false, 2), at(11));
        assert_eq!((proxy.waiting_since, proxy.answered_at), (None, Some(at(9))));
    }
}
