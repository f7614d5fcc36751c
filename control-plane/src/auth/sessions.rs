//! Sessions of browsers: a random name in a cookie stands for somebody who has signed in.
//!
//! In: a proof that was checked once, and the time. Out: [`Sessions::begin`] makes a cookie's value, [`Sessions::find`] says
//! whose it is. Browsers need this because an event stream cannot carry a token, and a page should not keep one.
//!
//! Invariants: the map is bounded ([`SESSIONS_MAX`]; whoever was away longest goes first); a session ends after [`IDLE`]
//! without a request, after [`LIFE`] whatever happens, on sign-out, and with the token it was begun with. The map holds
//! digests of names, so that looking one up takes no time that tells anything about it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use sha2::{Digest as _, Sha256};

use super::Principal;
use super::tokens::Digest;

/// Without a request for so long, a session ends.
pub const IDLE: Duration = Duration::from_secs(60 * 60);
/// No session is longer: a working day.
pub const LIFE: Duration = Duration::from_secs(12 * 60 * 60);
/// Browsers at a time; each takes about 300 bytes.
const SESSIONS_MAX: usize = 4_096;
/// Names of the cookie: where the browser knows that the way is protected, and where it is plain HTTP.
pub const COOKIE: [&str; 2] = ["__Host-weft", "weft"];

/// What a session rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// A token of the file, which may be taken out of it.
    Token(Digest),
    /// Somebody whom another authority has vouched for, and for how long that is believed.
    Vouched(Principal, Duration),
}

/// How a session's cookie travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By HTTPS only.
    Protected,
    /// By plain HTTP: on loopback, or where that is accepted.
    Plain,
}

impl Way {
    /// The cookie's name.
    #[must_use]
    pub const fn cookie(self) -> &'static str {
        match self {
            Self::Protected => COOKIE[0],
            Self::Plain => COOKIE[1],
        }
    }

    /// The value of `Set-Cookie` for a session `name`; an empty one takes it away.
    #[must_use]
    pub fn set_cookie(self, name: &str) -> String {
        let age = if name.is_empty() { 0 } else { LIFE.as_secs() };
        let secure = if self == Self::Protected { "; Secure" } else { "" };
        format!("{}={name}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{secure}", self.cookie())
    }
}

/// The open sessions.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<Digest, Session>>);

#[derive(Debug)]
struct Session {
    proof: Proof,
    way: Way,
    begun: Timestamp,
    seen: Timestamp,
}

impl Session {
    fn is_over(&self, now: Timestamp) -> bool {
        let longer = |since: Timestamp, than: Duration| {
            now.duration_since(since) >= SignedDuration::try_from(than).unwrap_or(SignedDuration::MAX)
        };
        let life = match self.proof {
            Proof::Token(_) => LIFE,
            Proof::Vouched(_, life) => life.min(LIFE),
        };
        longer(self.begun, life) || longer(self.seen, IDLE)
    }
}

impl Sessions {
    /// Begins a session named by 32 random bytes; gives the cookie's value back.
    pub fn begin(&self, proof: Proof, way: Way, random: &[u8; 32], now: Timestamp) -> String {
        let name = super::tokens::hex(random);
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX {
            sessions.retain(|_, session| !session.is_over(now));
        }
        if sessions.len() >= SESSIONS_MAX {
            let oldest = sessions.iter().min_by_key(|(_, session)| session.seen).map(|(key, _)| *key);
            oldest.and_then(|key| sessions.remove(&key));
        }
        sessions.insert(key(&name), Session { proof, way, begun: now, seen: now });
        name
    }

    /// What the session of a cookie `name` rests on. `touch`: somebody is there.
    pub fn find(&self, name: &str, way: Way, touch: bool, now: Timestamp) -> Option<Proof> {
        let key = key(name);
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let session = sessions.get_mut(&key)?;
        if session.is_over(now) {
            sessions.remove(&key);
            return None;
        }
        // A name that was given by HTTPS is worth nothing by plain HTTP, where others may have read it.
        if session.way != way {
            return None;
        }
        if touch {
            session.seen = session.seen.max(now);
        }
        Some(session.proof.clone())
    }

    /// Ends the session of a cookie `name`.
    pub fn end(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(name));
    }

    /// How many there are, also those that nobody has noticed are over.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn key(name: &str) -> Digest {
    Sha256::digest(name.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_second(i64::try_from(seconds).expect("small")).expect("in range")
    }

    fn random(number: usize) -> [u8; 32] {
        let mut random = [0; 32];
        random[..8].copy_from_slice(&number.to_be_bytes());
        random
    }

    const PROOF: Proof = Proof::Token([7; 32]);

    #[test]
    fn a_session_ends_when_nobody_comes_and_at_the_end_of_the_day() {
        let sessions = Sessions::default();
        let find = |name: &str, now| sessions.find(name, Way::Protected, true, at(now));
        let idle = sessions.begin(PROOF, Way::Protected, &random(1), at(0));
        assert_eq!(find(&idle, IDLE.as_secs() - 1), Some(PROOF));
        assert_eq!(find(&idle, 2 * IDLE.as_secs() - 2), Some(PROOF), "was seen meanwhile");
        assert_eq!(find(&idle, 3 * IDLE.as_secs()), None);

        let busy = sessions.begin(PROOF, Way::Protected, &random(2), at(0));
        for now in (0..LIFE.as_secs()).step_by(600) {
            assert_eq!(find(&busy, now), Some(PROOF), "{now}");
        }
        assert_eq!(find(&busy, LIFE.as_secs()), None);
        assert_eq!(sessions.count(), 0, "what is over is forgotten");
    }

    #[test]
    fn looking_without_touching_keeps_nothing_alive() {
        let sessions = Sessions::default();
        let name = sessions.begin(PROOF, Way::Plain, &random(1), at(0));
        for now in (0..IDLE.as_secs()).step_by(600) {
            assert!(sessions.find(&name, Way::Plain, false, at(now)).is_some());
        }
        assert_eq!(sessions.find(&name, Way::Plain, false, at(IDLE.as_secs())), None);
    }

    #[test]
    fn a_name_is_worth_nothing_on_another_way_after_sign_out_or_when_it_is_made_up() {
        let sessions = Sessions::default();
        let name = sessions.begin(PROOF, Way::Protected, &random(1), at(0));
        assert_eq!(sessions.find(&name, Way::Plain, true, at(1)), None);
        assert_eq!(sessions.find("", Way::Protected, true, at(1)), None);
        assert_eq!(sessions.find(&name, Way::Protected, true, at(1)), Some(PROOF));
        sessions.end(&name);
        assert_eq!(sessions.find(&name, Way::Protected, true, at(1)), None);
    }

    #[test]
    fn sessions_are_bounded_and_whoever_was_away_longest_goes() {
        let sessions = Sessions::default();
        let names: Vec<_> = (0..SESSIONS_MAX)
            .map(|number| sessions.begin(PROOF, Way::Plain, &random(number), at(number as u64 / 1_000)))
            .collect();
        let now = at(100);
        assert!(names[1..].iter().all(|name| sessions.find(name, Way::Plain, true, now).is_some()));
        sessions.begin(PROOF, Way::Plain, &random(SESSIONS_MAX), now);
        assert_eq!(sessions.count(), SESSIONS_MAX);
        assert_eq!(sessions.find(&names[0], Way::Plain, true, now), None);
        assert!(sessions.find(&names[1], Way::Plain, true, now).is_some());
    }

    #[test]
    fn the_cookie_is_for_this_page_alone() {
        let cookie = Way::Protected.set_cookie("abc");
        assert_eq!(cookie, "__Host-weft=abc; Path=/; HttpOnly; SameSite=Strict; Max-Age=43200; Secure");
        assert_eq!(Way::Plain.set_cookie(""), "weft=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0");
    }
}
