//! Logins that have begun and not come back.
//!
//! In: `state`, and what has to fit when it comes back. Invariants: each comes back once; none after [`LIFE`]; strangers can
//! begin as many as they like, so there are at most [`LOGINS_MAX`], and the oldest goes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::auth::tokens::Digest;

/// How long somebody may take at the provider.
pub(super) const LIFE: Duration = Duration::from_secs(10 * 60);
/// At about 400 bytes each.
const LOGINS_MAX: usize = 4_096;

/// What has to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    pub(super) nonce: String,
    /// PKCE's.
    pub(super) verifier: String,
    /// What the browser's cookie holds.
    pub(super) browser: String,
    pub(super) begun: Timestamp,
}

/// The logins under way, by the digest of their state.
#[derive(Debug, Default)]
pub(super) struct Logins(Mutex<HashMap<Digest, Attempt>>);

impl Logins {
    pub(super) fn begin(&self, state: &str, attempt: Attempt, now: Timestamp) {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.len() >= LOGINS_MAX {
            logins.retain(|_, attempt| !is_over(attempt, now));
        }
        if logins.len() >= LOGINS_MAX {
            let oldest = logins.iter().min_by_key(|(_, attempt)| attempt.begun).map(|(key, _)| *key);
            oldest.and_then(|key| logins.remove(&key));
        }
        logins.insert(key(state), attempt);
    }

    /// Takes it out.
    pub(super) fn take(&self, state: &str, now: Timestamp) -> Option<Attempt> {
        let attempt = self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(state))?;
        (!is_over(&attempt, now)).then_some(attempt)
    }
}

fn is_over(attempt: &Attempt, now: Timestamp) -> bool {
    now.duration_since(attempt.begun) >= SignedDuration::try_from(LIFE).unwrap_or(SignedDuration::MAX)
}

fn key(state: &str) -> Digest {
    Sha256::digest(state.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    fn attempt(begun: i64) -> Attempt {
        Attempt { nonce: "n".into(), verifier: "v".into(), browser: "b".into(), begun: at(begun) }
    }

    #[test]
    fn a_login_comes_back_once_and_in_time() {
        let logins = Logins::default();
        logins.begin("one", attempt(0), at(0));
        assert_eq!(logins.take("another", at(1)), None);
        assert_eq!(logins.take("one", at(599)), Some(attempt(0)));
        assert_eq!(logins.take("one", at(599)), None, "replayed");
        logins.begin("late", attempt(0), at(0));
        assert_eq!(logins.take("late", at(600)), None);
    }

    #[test]
    fn logins_are_bounded_and_the_oldest_goes() {
        let logins = Logins::default();
        for number in 0..=LOGINS_MAX {
            let begun = i64::try_from(number).expect("small") / 100;
            logins.begin(&number.to_string(), attempt(begun), at(begun));
        }
        assert_eq!(logins.0.lock().expect("not poisoned").len(), LOGINS_MAX);
        assert!(logins.take(&LOGINS_MAX.to_string(), at(41)).is_some());
    }
}
