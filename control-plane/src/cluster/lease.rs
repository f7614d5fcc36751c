//! Who of several control planes leads, by a Lease as client-go keeps it. Pure: time is passed in.
//!
//! In: the Lease as it was read, and when. Out: what to write, and whether we lead. The clocks of others are never believed: a
//! Lease is over when it has stayed the same for its duration *on our own clock*, and what it says of times is for people.
//!
//! Invariant: two never lead at the same moment, as long as no clock runs faster than another by a third: who leads stops
//! [`Settings::renew`] after it *began to ask* for the last renewal that succeeded, and who follows waits for
//! [`Settings::duration`] after it *saw* that renewal. Of two that write at once the API server takes one, by resourceVersion.
//!
//! Surprise: who was cut off and finds its own name still in the Lease leads again; nobody else can have led meanwhile.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// How long things take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How long others wait for a holder that says nothing.
    pub duration: Duration,
    /// How long a holder leads after its last renewal.
    pub renew: Duration,
    /// How often to look, or to renew.
    pub retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { duration: seconds(15), renew: seconds(10), retry: seconds(2) }
    }
}

/// What a Lease says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// Who holds it; nobody after it was released.
    pub holder: Option<Box<str>>,
    /// How long others wait.
    pub duration: Duration,
    /// Since when, for people.
    pub acquired: Option<Timestamp>,
    /// When it was renewed, for people; that it differs is what others look at.
    pub renewed: Option<Timestamp>,
    /// How often it went from one to another.
    pub transitions: i32,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// Make the Lease; there is none.
    Create(Record),
    /// Write this over what was read, and over nothing else.
    Replace(Record),
    /// Somebody else holds it.
    Wait,
}

/// One who would lead.
#[derive(Debug, Clone)]
pub struct Election {
    identity: Box<str>,
    settings: Settings,
    /// What the Lease said when it last changed, and when we saw that.
    observed: Option<(Record, Instant)>,
    /// Whether it was found unchanged for longer than its holder may be silent.
    is_over: bool,
    /// When we began to ask for the renewal that succeeded.
    held: Option<Instant>,
    /// How the identities of earlier runs of ours begin.
    former: Option<Box<str>>,
}

impl Election {
    /// One who has seen nothing yet. Of the same `identity` there must be no other, nor have been one.
    #[must_use]
    pub fn new(identity: &str, settings: Settings) -> Self {
        Self { identity: identity.into(), settings, observed: None, is_over: false, held: None, former: None }
    }

    /// Names the pod that we run in, by which identities begin: who held the Lease under its name before has ended, because a
    /// pod runs its container once at a time. Nobody need wait for it.
    #[must_use]
    pub fn in_pod(mut self, pod: &str) -> Self {
        self.former = Some(format!("{pod}_").into());
        self
    }

    /// Who we are.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Who holds the Lease, as far as we know.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.observed.as_ref().and_then(|(record, _)| record.holder.as_deref())
    }

    /// Who else holds the Lease, as far as we know. Nobody does when it was given back, when its holder was silent for too long
    /// (also where we cannot take it over), or when we could not renew it and nobody has taken it.
    #[must_use]
    pub fn another(&self) -> Option<&str> {
        self.holder().filter(|holder| *holder != &*self.identity && !self.is_over && !self.is_former(holder))
    }

    /// Whether `holder`, which is not this run, was an earlier one of ours.
    fn is_former(&self, holder: &str) -> bool {
        self.former.as_deref().is_some_and(|former| holder.starts_with(former))
    }

    /// Takes note of the Lease as it is, read at `now`, and says what to do. `wall` is the time for people.
    pub fn look(&mut self, found: Option<&Record>, now: Instant, wall: Timestamp) -> Act {
        let Some(found) = found else {
            // Whoever deleted it took the lead from us too.
            self.held = None;
            self.observed = None;
            return Act::Create(self.record(0, wall, wall));
        };
        if self.observed.as_ref().is_none_or(|(known, _)| known != found) {
            self.observed = Some((found.clone(), now));
        }
        let since = self.observed.as_ref().map_or(now, |(_, since)| *since);
        self.is_over = now >= since + self.patience(found);
        let is_ours = found.holder.as_deref() == Some(&*self.identity);
        if !is_ours {
            self.held = None;
            let is_held =
                found.holder.as_ref().is_some_and(|holder| !holder.is_empty() && !self.is_former(holder));
            if is_held && !self.is_over {
                return Act::Wait;
            }
            return Act::Replace(self.record(found.transitions.saturating_add(1), wall, wall));
        }
        Act::Replace(self.record(found.transitions, found.acquired.unwrap_or(wall), wall))
    }

    /// What to write to renew what we hold, without looking first; `None` when we hold nothing.
    #[must_use]
    pub fn renewal(&self, wall: Timestamp) -> Option<Record> {
        let (known, _) = self.observed.as_ref()?;
        self.held?;
        Some(self.record(known.transitions, known.acquired.unwrap_or(wall), wall))
    }

    /// Takes note that `record` was written; `asked` is when we began to ask for it.
    pub fn wrote(&mut self, record: Record, asked: Instant) {
        self.observed = Some((record, asked));
        self.is_over = false;
        self.held = Some(asked);
    }

    /// Whether we lead.
    #[must_use]
    pub fn leads(&self, now: Instant) -> bool {
        self.until().is_some_and(|until| now < until)
    }

    /// Until when we lead, if nothing more is heard.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.held.map(|held| held + self.settings.renew)
    }

    /// Stops leading, and gives what to write so that nobody need wait; `None` when there is nothing to give up.
    pub fn release(&mut self, wall: Timestamp) -> Option<Record> {
        self.held.take()?;
        let transitions = self.observed.as_ref().map_or(0, |(record, _)| record.transitions);
        let duration = Duration::from_secs(1);
        Some(Record { holder: None, duration, acquired: Some(wall), renewed: Some(wall), transitions })
    }

    fn record(&self, transitions: i32, acquired: Timestamp, renewed: Timestamp) -> Record {
        Record {
            holder: Some(self.identity.clone()),
            duration: self.settings.duration,
            acquired: Some(acquired),
            renewed: Some(renewed),
            transitions,
        }
    }

    /// How long to wait for whoever holds it: as long as they asked for, and at least as long as we would want.
    fn patience(&self, found: &Record) -> Duration {
        // A Lease without a sensible duration was written by somebody else, or by hand.
        found.duration.clamp(self.settings.duration, self.settings.duration * 20)
    }
}

#[cfg(test)]
mod tests;
