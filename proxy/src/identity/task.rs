//! The life of an identity: had, kept fresh, and had again when it was lost.
//!
//! In: an authority, the operator's files, new bundles. Out: certificates in the [`Identity`]. Runs on the admin thread.
//! Invariant: whatever fails, what there was stays, it is said once in words and counted each time, and it is tried again.
//! Surprise: it looks at the wall clock every few seconds instead of sleeping until a renewal: a machine that slept wakes
//! up with a certificate that may be about to end, and no timer has noticed.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use weft_wire::ca::JoinToken;

use super::answer::{self, Checked, Expected};
use super::authority::{Authority, ControlPlane, Failure, Question};
use super::client::Show;
use super::directory::{self, Watched};
use super::request::Request;
use super::{Complaint, Identity, Leaf, schedule, svid};
use crate::config::Proof;
use crate::connect::Dialer;

/// How often files and the clock are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Looks after an [`Identity`]. Does nothing until [`Task::run`] is polled.
#[derive(Debug)]
pub struct Task {
    identity: Arc<Identity>,
    authority: ControlPlane,
}

impl Identity {
    /// Asks the control plane at `address`, over connections that `dialer` opens.
    #[must_use]
    pub fn enrol(self: &Arc<Self>, address: http::Uri, dialer: Dialer) -> Task {
        let known = self.secure(dialer.clone(), Show::Certificate);
        let stranger = self.secure(dialer, Show::Nothing);
        Task { identity: Arc::clone(self), authority: ControlPlane::new(address, known, stranger) }
    }
}

impl Task {
    /// Until `stop`.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        let Self { identity, authority } = self;
        Life::new(identity, authority, SystemTime::now).run(stop).await;
    }
}

/// What the next question is proved with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Certificate,
    Token,
}

/// The task with its authority and clock open for tests.
pub(super) struct Life<A, C> {
    identity: Arc<Identity>,
    authority: A,
    clock: C,
    bundles: watch::Receiver<u64>,
    trust_bundle: Option<Watched>,
    directory: Option<Watched>,
    /// When to ask next; `None`: never, somebody else does.
    due: Option<SystemTime>,
    failures: u32,
    /// The authority has refused the certificate; a token may be better.
    refused: bool,
    expiry_told: bool,
}

impl<A: Authority, C: Fn() -> SystemTime> Life<A, C> {
    pub(super) fn new(identity: Arc<Identity>, authority: A, clock: C) -> Self {
        let enrolment = &identity.enrolment;
        let due = (enrolment.proof != Proof::Directory).then(&clock);
        Self {
            bundles: identity.bundles.subscribe(),
            trust_bundle: enrolment.trust_bundle.as_deref().map(Watched::file),
            directory: enrolment.directory.as_deref().map(Watched::directory),
            authority,
            clock,
            due,
            failures: 0,
            refused: false,
            expiry_told: false,
            identity,
        }
    }

    pub(super) async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        self.resume();
        loop {
            self.look();
            let now = (self.clock)();
            if self.due.is_some_and(|due| due <= now) {
                tokio::select! {
                    outcome = self.attempt() => self.settle(outcome),
                    () = &mut stop => return,
                }
            }
            self.identity.state().renew_at = self.due;
            tokio::select! {
                () = tokio::time::sleep(self.rest()) => {}
                changed = self.bundles.changed() => if changed.is_ok() { self.bundle_changed() },
                () = &mut stop => return,
            }
        }
    }

    /// How long there is nothing to do.
    fn rest(&self) -> Duration {
        let due = self.due.map(|due| due.duration_since((self.clock)()).unwrap_or_default());
        due.unwrap_or(LOOK).min(LOOK)
    }

    /// Goes on with what was kept before a restart.
    fn resume(&mut self) {
        let Some(directory) = self.identity.enrolment.directory.clone() else { return };
        if self.identity.enrolment.proof == Proof::Directory {
            return;
        }
        // Ours, and nobody else's from now on.
        self.directory = None;
        let now = (self.clock)();
        match directory::load(&directory, self.expected(), now) {
            Ok(found) if found.leaf.is_valid(now) => {
                let directory::Found { leaf, roots } = found;
                // It came when its life began, as far as anybody knows.
                let due = schedule::renewal(leaf.not_before, leaf.not_after, fastrand::f64());
                self.due = Some(due);
                tracing::info!(id = %leaf.id, directory = %directory.display(), "identity kept from before");
                self.identity.hold(roots);
                self.identity.adopt(leaf);
            }
            Ok(_) => {
                // Its roots may be as old; whom to believe is what the proof says.
                tracing::warn!(directory = %directory.display(), "the identity kept from before has expired; asking for another");
            }
            Err(error) if is_empty(&directory) => tracing::debug!(%error, "no identity from before"),
            Err(error) => {
                tracing::warn!(%error, "the identity kept from before cannot be used; asking for another")
            }
        }
    }

    /// Looks at files and the clock.
    fn look(&mut self) {
        if self.trust_bundle.as_mut().is_some_and(Watched::changed)
            && let Some(path) = self.identity.enrolment.trust_bundle.clone()
        {
            match directory::bundle(&path) {
                Ok(bundle) => {
                    tracing::info!(roots = bundle.len(), file = %path.display(), "roots read");
                    self.identity.believe(bundle);
                }
                Err(error) => {
                    self.trust_bundle.iter_mut().for_each(Watched::again);
                    self.complain(&Failure::File(format!("WEFT_TRUST_BUNDLE: {error}")));
                }
            }
        }
        if self.directory.as_mut().is_some_and(Watched::changed)
            && let Some(path) = self.identity.enrolment.directory.clone()
        {
            match directory::load(&path, self.expected(), (self.clock)()) {
                Ok(directory::Found { leaf, roots }) => {
                    tracing::info!(id = %leaf.id, directory = %path.display(), "identity read");
                    self.identity.hold(roots);
                    self.take(leaf);
                }
                Err(error) => {
                    self.directory.iter_mut().for_each(Watched::again);
                    self.complain(&Failure::File(format!("WEFT_IDENTITY_DIR: {error}")));
                }
            }
        }
        self.look_at_expiry();
    }

    fn look_at_expiry(&mut self) {
        let now = (self.clock)();
        let expired = self.identity.state().leaf.as_ref().is_some_and(|leaf| !leaf.is_valid(now));
        if expired && !self.expiry_told {
            self.identity.metrics.failures.with_label_values(&["expired"]).inc();
            tracing::error!(
                "the certificate has expired and there is no other: peers will refuse this sidecar"
            );
        }
        self.expiry_told = expired;
    }

    /// The mesh has another bundle: our own root may no longer be the one that certificates come from.
    fn bundle_changed(&mut self) {
        let now = (self.clock)();
        let (leaf, mesh) = {
            let state = self.identity.state();
            (state.leaf.clone(), state.mesh.clone())
        };
        let (Some(leaf), Some(mesh)) = (leaf, mesh) else { return };
        self.keep(&leaf, None);
        if svid::verify(leaf.chain(), &mesh.issuing(), now).is_err()
            && let Some(due) = self.due
        {
            let sooner = schedule::hurry(now, leaf.not_after, fastrand::f64());
            tracing::info!("certificates come from another root now; renewing soon");
            self.due = Some(due.min(sooner));
        }
    }

    /// Asks once.
    async fn attempt(&mut self) -> Result<(Leaf, Request), Failure> {
        let by = self.prove_by();
        let bearer = match by {
            By::Certificate => None,
            By::Token => Some(self.token()?),
        };
        let request = Request::new().map_err(|error| Failure::Proof(format!("no key: {error}")))?;
        let asked = self.authority.ask(Question { csr: request.csr.clone(), bearer }).await;
        let pem = asked.inspect_err(|failure| {
            if matches!(failure, Failure::Refused(_)) {
                self.refused = by == By::Certificate;
            }
        });
        let pem = pem.map_err(|failure| self.explain(by, failure))?;
        let Checked { leaf, root } =
            self.check(&pem, &request).map_err(|error| Failure::Answer(error.to_string()))?;
        if let Some(root) = root {
            self.identity.begin_with(root);
        }
        Ok((leaf, request))
    }

    fn check(&self, pem: &[u8], request: &Request) -> Result<Checked, answer::Invalid> {
        let (chain, key) = (answer::chain(pem)?, request.signing_key()?);
        let anchors = self.identity.anchors.load();
        answer::check(chain, key, &request.public_key(), &anchors, self.expected(), (self.clock)())
    }

    fn prove_by(&self) -> By {
        let now = (self.clock)();
        let valid = self.identity.state().leaf.as_ref().is_some_and(|leaf| leaf.is_valid(now));
        if valid && !self.refused { By::Certificate } else { By::Token }
    }

    /// The proof, and with a join token whom to believe.
    fn token(&self) -> Result<String, Failure> {
        let read = |variable: &str, path: &Path| {
            let text =
                directory::read(path).map_err(|error| Failure::Proof(format!("{variable}: {error}")))?;
            let text = String::from_utf8(text).ok().map(|text| text.trim().to_owned());
            text.filter(|text| !text.is_empty())
                .ok_or_else(|| Failure::Proof(format!("{variable}: {} holds no token", path.display())))
        };
        match &self.identity.enrolment.proof {
            Proof::JoinToken(token) => Ok(token.reveal()),
            Proof::JoinTokenFile(path) => {
                let text = read("WEFT_JOIN_TOKEN_FILE", path)?;
                let token: JoinToken = text.parse().map_err(|error| {
                    Failure::Proof(format!("WEFT_JOIN_TOKEN_FILE: {}: {error}", path.display()))
                })?;
                self.identity.pin(token.pin);
                Ok(token.reveal())
            }
            Proof::ServiceAccount(path) => read("WEFT_IDENTITY_TOKEN_FILE", path),
            Proof::Directory => Err(Failure::Proof("somebody else renews WEFT_IDENTITY_DIR".to_owned())),
        }
    }

    /// Adds what to do.
    fn explain(&self, by: By, failure: Failure) -> Failure {
        let enrolment = &self.identity.enrolment;
        let join = matches!(enrolment.proof, Proof::JoinToken(_) | Proof::JoinTokenFile(_));
        match failure {
            Failure::Refused(text) if by == By::Token && join => Failure::Refused(format!(
                "{text}; a join token is good for one sidecar: make another with `weft token create`{}",
                if enrolment.directory.is_some() {
                    ""
                } else {
                    ", or set WEFT_IDENTITY_DIR so that the identity outlives a restart"
                }
            )),
            failure => failure,
        }
    }

    fn settle(&mut self, outcome: Result<(Leaf, Request), Failure>) {
        let now = (self.clock)();
        match outcome {
            Ok((leaf, request)) => {
                let due = schedule::renewal(now, leaf.not_after, fastrand::f64());
                tracing::info!(id = %leaf.id, renew_in = ?due.duration_since(now).unwrap_or_default(), "certificate issued");
                self.due = Some(due);
                self.take(leaf.clone());
                self.keep(&leaf, Some(&request));
            }
            Err(failure) => {
                self.failures = self.failures.saturating_add(1);
                let left = {
                    let state = self.identity.state();
                    state.leaf.as_ref().and_then(|leaf| leaf.not_after.duration_since(now).ok())
                };
                self.due = Some(now + schedule::pause(self.failures, left, fastrand::f64()));
                self.complain(&failure);
            }
        }
    }

    fn take(&mut self, leaf: Leaf) {
        self.failures = 0;
        self.refused = false;
        self.identity.adopt(leaf);
    }

    /// Writes what is to outlive a restart. Not written is a warning: this process has it.
    fn keep(&self, leaf: &Leaf, request: Option<&Request>) {
        let enrolment = &self.identity.enrolment;
        let Some(directory) = enrolment.directory.as_deref().filter(|_| enrolment.proof != Proof::Directory)
        else {
            return;
        };
        let roots = self.identity.state().peers().cloned();
        let Some(roots) = roots else { return };
        if let Err(error) =
            directory::store(directory, leaf, request.map(Request::key_pem).as_deref(), &roots)
        {
            self.complain(&Failure::File(format!("WEFT_IDENTITY_DIR: {error}")));
        }
    }

    /// Counts a failure, and says it unless it was the last thing said.
    fn complain(&self, failure: &Failure) {
        let (reason, text) = (failure.reason(), failure.to_string());
        self.identity.metrics.failures.with_label_values(&[reason]).inc();
        let mut state = self.identity.state();
        let known = state.leaf.is_some();
        if state.last_failure.as_ref().is_none_or(|last| last.text != text) {
            tracing::warn!(reason, error = text, keeps_certificate = known, "no new certificate");
        } else {
            tracing::debug!(reason, error = text, "no new certificate");
        }
        state.last_failure = Some(Complaint { reason, text, at: (self.clock)() });
    }

    fn expected(&self) -> Expected<'_> {
        let enrolment = &self.identity.enrolment;
        Expected { trust_domain: &enrolment.trust_domain, namespace: &enrolment.namespace }
    }
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
}
