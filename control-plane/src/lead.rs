//! Who leads, for those who serve sidecars: whether whoever comes here is to go to another control plane.
//!
//! In: what the task that keeps the Lease has seen (`cluster::leader`). Out: whether *another* leads, and since when we do. A
//! control plane that merely cannot keep the Lease serves on: nobody else may lead then, and what it knows is better than
//! nothing. One that sees another in the Lease serves no sidecar, because what is connected to it is missing in the other's
//! graph, statuses and rotation ([ADR 20](../../docs/adr/0020-sidecars-are-served-by-the-one-that-leads.md)).
//!
//! Surprise: before anybody has looked, everybody is served; that is why the program looks before it serves.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Status;

/// What is known of who leads.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Seen {
    /// Nobody has looked yet.
    #[default]
    Nothing,
    /// This control plane leads, since then.
    Ours(Instant),
    /// Another one does, as the Lease names it.
    Theirs(Arc<str>),
    /// Nobody else, as far as can be seen; and we may not.
    Nobody,
}

/// What is known of who leads, as it changes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lead(watch::Receiver<Seen>);

impl Lead {
    /// What `seen` says.
    #[must_use]
    pub fn new(seen: watch::Receiver<Seen>) -> Self {
        Self(seen)
    }

    /// There is no other control plane.
    #[must_use]
    pub fn alone() -> Self {
        Self(watch::channel(Seen::Ours(Instant::now())).1)
    }

    /// Another one that leads, as a refusal of whoever comes here.
    #[must_use]
    pub fn other(&self) -> Option<Other> {
        match &*self.0.borrow() {
            Seen::Theirs(name) => Some(Other(Arc::clone(name))),
            Seen::Nothing | Seen::Ours(_) | Seen::Nobody => None,
        }
    }

    /// Completes when another one leads. Cancel safe.
    pub async fn lost(&self) -> Other {
        let mut seen = self.0.clone();
        loop {
            if let Seen::Theirs(name) = &*seen.borrow_and_update() {
                return Other(Arc::clone(name));
            }
            if seen.changed().await.is_err() {
                // Nobody will look any more: the program ends, or it is alone.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Completes when somebody has looked. Cancel safe.
    pub async fn looked(&self) {
        let looked = self.0.clone().wait_for(|seen| *seen != Seen::Nothing).await.is_ok();
        if !looked {
            std::future::pending().await
        }
    }

    /// Since when this control plane leads; as if it began now, when it does not.
    #[must_use]
    pub fn since(&self) -> Instant {
        match &*self.0.borrow() {
            Seen::Ours(since) => *since,
            Seen::Nothing | Seen::Theirs(_) | Seen::Nobody => Instant::now(),
        }
    }
}

/// Another control plane that leads.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} leads, not this control plane: come again through the address that leads to it", self.pod())]
pub struct Other(Arc<str>);

impl Other {
    /// Its pod or machine: a Lease names it with something behind that no other run of the program has.
    fn pod(&self) -> &str {
        self.0.rsplit_once('_').map_or(&*self.0, |(pod, _)| pod)
    }
}

impl From<Other> for Status {
    /// The code that tells a sender to keep what it has, and to come again.
    fn from(other: Other) -> Self {
        Self::unavailable(other.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::poll;
    use tonic::Code;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_another_that_leads_is_gone_to() {
        let (tells, hears) = watch::channel(Seen::Nothing);
        let lead = Lead::new(hears);
        let mut lost = std::pin::pin!(lead.lost());
        assert!(poll!(std::pin::pin!(lead.looked())).is_pending());
        for seen in [Seen::Ours(Instant::now()), Seen::Nobody] {
            tells.send_replace(seen);
            assert!(poll!(std::pin::pin!(lead.looked())).is_ready());
            assert_eq!(lead.other(), None);
            assert!(poll!(lost.as_mut()).is_pending());
        }
        tells.send_replace(Seen::Theirs("cp-two_1b2c".into()));
        let status = Status::from(lost.await);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with("cp-two leads"), "{status:?}");
        assert!(lead.other().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lead_is_as_old_as_it_is_and_without_one_it_begins_now() {
        let (tells, hears) = watch::channel(Seen::Ours(Instant::now()));
        let (lead, began) = (Lead::new(hears), Instant::now());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(lead.since(), began);
        tells.send_replace(Seen::Nobody);
        assert_eq!(lead.since(), Instant::now());
    }
}
