//! The incremental protocol of one resource type: who is subscribed, at which version, and what to say next.
//!
//! In: names wanted or not, stream up or down, responses taken or refused. Out: requests. Pure, and ignorant of what
//! a resource contains.
//!
//! Invariant: on one stream the server always knows exactly the names in `names`, after the requests from
//! [`Subscription::next_request`] have been sent. Versions survive a stream: they are what lets a restarted control
//! plane send nothing when nothing changed.
//! Surprise: a type is not mentioned on a stream until it has a name, because an empty first request would mean
//! "everything".

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use envoy_types::pb::google::rpc::Status;

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;

/// One resource type on one connection after another.
#[derive(Debug)]
pub(super) struct Subscription {
    type_url: &'static str,
    /// Wanted names and the version that was last accepted.
    names: HashMap<Arc<str>, Option<String>>,
    /// Whether the server has heard of this type on this stream.
    introduced: bool,
    /// Changes that the server has not heard of. Sorted, so that equal histories give equal requests.
    subscribe: BTreeSet<Arc<str>>,
    unsubscribe: BTreeSet<Arc<str>>,
    /// Answers that are owed. Bounded by whoever reads responses: see [`Subscription::owes`].
    answers: VecDeque<DeltaDiscoveryRequest>,
}

impl Subscription {
    pub(super) fn new(type_url: &'static str) -> Self {
        Self {
            type_url,
            names: HashMap::new(),
            introduced: false,
            subscribe: BTreeSet::new(),
            unsubscribe: BTreeSet::new(),
            answers: VecDeque::new(),
        }
    }

    /// Subscribes; a name that is known already changes nothing.
    pub(super) fn want(&mut self, name: &Arc<str>) {
        if self.names.contains_key(name) {
            return;
        }
        self.names.insert(Arc::clone(name), None);
        // The server must hear of both: what it knows of the name is the version of a resource that was dropped here.
        self.subscribe.insert(Arc::clone(name));
    }

    /// Unsubscribes.
    pub(super) fn forget(&mut self, name: &str) {
        let Some((name, _)) = self.names.remove_entry(name) else { return };
        if !self.subscribe.remove(&name) {
            self.unsubscribe.insert(name);
        }
    }

    /// Wants exactly these names.
    pub(super) fn replace(&mut self, names: &HashSet<Arc<str>>) {
        let gone: Vec<_> = self.names.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.forget(&name);
        }
        for name in names {
            self.want(name);
        }
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Notes which version of a resource was taken; `None` = the server says that it does not exist.
    pub(super) fn took(&mut self, name: &str, version: Option<String>) {
        if let Some(known) = self.names.get_mut(name) {
            *known = version;
        }
    }

    /// Owes an ACK, or a NACK that says why.
    pub(super) fn answer(&mut self, nonce: String, refusal: Option<String>) {
        self.answers.push_back(DeltaDiscoveryRequest {
            type_url: self.type_url.into(),
            response_nonce: nonce,
            error_detail: refusal.map(|message| Status { code: INVALID_ARGUMENT, message, details: vec![] }),
            ..DeltaDiscoveryRequest::default()
        });
    }

    /// How many answers wait to be sent.
    pub(super) fn owes(&self) -> usize {
        self.answers.len()
    }

    /// A new stream: the server knows nothing of us, so everything is said again, with versions.
    pub(super) fn start_over(&mut self) {
        self.introduced = false;
        self.answers.clear();
        self.unsubscribe.clear();
        self.subscribe = self.names.keys().cloned().collect();
    }

    pub(super) fn has_request(&self) -> bool {
        !self.answers.is_empty() || !self.subscribe.is_empty() || !self.unsubscribe.is_empty()
    }

    /// What to say next, if anything. Answers first: a server may wait for one before it goes on.
    pub(super) fn next_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        let mut request = DeltaDiscoveryRequest { type_url: self.type_url.into(), ..Default::default() };
        if !self.introduced {
            if self.subscribe.is_empty() {
                // Nobody told the server about what would be unsubscribed.
                self.unsubscribe.clear();
                return None;
            }
            // All names at once, since versions may stand in the first request only. 2,000 names and versions are
            // some 200 kB; servers take 4 MB.
            self.introduced = true;
            request.resource_names_subscribe = take(&mut self.subscribe);
            let version = |name: &String| Some((name.clone(), self.names.get(name.as_str())?.clone()?));
            request.initial_resource_versions =
                request.resource_names_subscribe.iter().filter_map(version).collect();
            return Some(request);
        }
        if self.subscribe.is_empty() && self.unsubscribe.is_empty() {
            return None;
        }
        // A name dropped and wanted again is in both sets. Servers differ in which list they read first, so the
        // two never share a request.
        if self.unsubscribe.is_empty() {
            request.resource_names_subscribe = take(&mut self.subscribe);
        } else {
            request.resource_names_unsubscribe = take(&mut self.unsubscribe);
        }
        Some(request)
    }
}

fn take(names: &mut BTreeSet<Arc<str>>) -> Vec<String> {
    std::mem::take(names).into_iter().map(|name| name.as_ref().into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(subscription: &mut Subscription) -> Vec<DeltaDiscoveryRequest> {
        std::iter::from_fn(|| subscription.next_request()).collect()
    }

    fn wanting(names: &[&str]) -> Subscription {
        let mut subscription = Subscription::new("type");
        subscription.start_over();
        for name in names {
            subscription.want(&Arc::from(*name));
        }
        subscription
    }

    #[test]
    fn an_unmentioned_type_stays_unmentioned() {
        let mut subscription = wanting(&["a"]);
        subscription.forget("a");
        assert_eq!(requests(&mut subscription), []);
    }

    #[test]
    fn a_new_stream_repeats_everything_with_versions() {
        let mut subscription = wanting(&["b", "a", "c"]);
        assert_eq!(requests(&mut subscription)[0].resource_names_subscribe, ["a", "b", "c"]);
        subscription.took("a", Some("1".into()));
        subscription.took("b", None);
        subscription.answer("n".into(), None);
        subscription.forget("c");
        subscription.start_over();
        let sent = requests(&mut subscription);
        assert_eq!(sent.len(), 1, "an answer to an old stream's nonce means nothing on a new one: {sent:?}");
        assert_eq!(sent[0].resource_names_subscribe, ["a", "b"]);
        assert_eq!(sent[0].initial_resource_versions, [("a".into(), "1".into())].into());
    }

    #[test]
    fn a_name_dropped_and_wanted_again_is_unsubscribed_first() {
        let mut subscription = wanting(&["a"]);
        requests(&mut subscription);
        subscription.forget("a");
        subscription.want(&"a".into());
        let sent = requests(&mut subscription);
        assert_eq!(sent[0].resource_names_unsubscribe, ["a"]);
        assert_eq!(sent[1].resource_names_subscribe, ["a"]);
    }

    #[test]
    fn a_refusal_says_why() {
        let mut subscription = wanting(&["a"]);
        requests(&mut subscription);
        subscription.answer("n1".into(), Some("because".into()));
        let sent = requests(&mut subscription);
        assert_eq!(sent[0].response_nonce, "n1");
        assert_eq!(sent[0].error_detail.as_ref().map(|status| status.message.as_str()), Some("because"));
    }
}
