//! Join tokens: what a program outside Kubernetes shows once to get its first certificate.
//!
//! Pure: `now` and randomness are passed in. Invariants: the secret is not kept, only its hash; a token is good for one key:
//! whoever lost the answer may ask again with the same key for [`RETRY`], nobody else ever; there are at most [`TOKENS_MAX`].
//!
//! Surprise: a used token leaves a trace beyond its life: for which workload its identity was given out. That is how a
//! sidecar named otherwise than its service account is known to be what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use weft_wire::ca::JoinToken;
use weft_wire::{SpiffeId, WorkloadId};

use super::issue::hex;
use super::refusal::Refusal;

/// Tokens kept. One per program that is about to join, and those of the last day.
pub const TOKENS_MAX: usize = 10_000;
/// Identities whose workloads are remembered.
const BOUND_MAX: usize = 10_000;
/// Workloads remembered of one identity.
const WORKLOADS_MAX: usize = 16;
/// How long a used token answers its own key again.
pub const RETRY: Duration = Duration::from_secs(60);
/// How long used, expired and revoked tokens are still listed.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// Longest and usual life.
pub const TTL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Life unless asked otherwise.
pub const TTL_DEFAULT: Duration = Duration::from_secs(15 * 60);
/// Random bytes that a token is made of.
pub const RANDOM: usize = 20;

/// For whom a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The workload that will join.
    pub workload: WorkloadId,
    /// The account in the workload's namespace; the workload's name unless said otherwise.
    pub service_account: Box<str>,
    /// How long the token may be used.
    pub ttl: Duration,
}

/// What becomes of a token, for lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// May be used.
    Active,
    /// Was used.
    Used,
    /// Too old.
    Expired,
    /// Taken back.
    Revoked,
}

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Token {
    namespace: Box<str>,
    name: Box<str>,
    service_account: Box<str>,
    /// SHA-256 of the secret.
    secret: Box<str>,
    created: u64,
    expires: u64,
    #[serde(default)]
    used: Option<Use>,
    #[serde(default)]
    revoked: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    at: u64,
    /// SHA-256 of the public key it was used for.
    key: Box<str>,
}

/// A token in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Names it.
    pub id: Box<str>,
    /// The workload's namespace.
    pub namespace: Box<str>,
    /// The workload's name.
    pub name: Box<str>,
    /// The account.
    pub service_account: Box<str>,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds.
    pub expires: u64,
    /// What has become of it.
    pub state: State,
}

/// What a token gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The identity.
    pub id: SpiffeId,
    /// The workload it was made for.
    pub workload: WorkloadId,
}

/// All tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    tokens: BTreeMap<Box<str>, Token>,
    /// `namespace/service-account` to names of workloads in the namespace.
    #[serde(default)]
    bound: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
}

impl Tokens {
    /// Makes a token that pins `pin`.
    ///
    /// # Errors
    /// When there are too many.
    pub fn create(
        &mut self,
        wish: &Wish,
        pin: [u8; 32],
        now: SystemTime,
        random: [u8; RANDOM],
    ) -> Result<JoinToken, Refusal> {
        self.forget(now);
        if self.tokens.len() >= TOKENS_MAX && !self.forget_one(now) {
            return Err(Refusal::TooManyTokens);
        }
        let (id, secret) = random.split_at(4);
        let (id, secret): (Box<str>, Box<str>) = (hex(id).into(), hex(secret).into());
        let token = Token {
            namespace: wish.workload.namespace().into(),
            name: wish.workload.name().into(),
            service_account: wish.service_account.clone(),
            secret: hashed(&secret),
            created: unix(now),
            expires: unix(now + wish.ttl.min(TTL_MAX)),
            used: None,
            revoked: None,
        };
        // One in four billion: the older token of this id would stop working, so the newer one is not made.
        if self.tokens.contains_key(&id) {
            return Err(Refusal::TooManyTokens);
        }
        self.tokens.insert(id.clone(), token);
        Ok(JoinToken { id, secret, pin })
    }

    /// What `token` would give to `key`, without using it up.
    ///
    /// # Errors
    /// When it gives nothing.
    pub fn check(
        &self,
        token: &JoinToken,
        key: &[u8; 32],
        domain: &str,
        now: SystemTime,
    ) -> Result<Grant, Refusal> {
        let known = self.tokens.get(&token.id).filter(|known| known.secret == hashed(&token.secret));
        let known = known.ok_or_else(|| Refusal::TokenUnknown { id: token.id.clone() })?;
        let id = || token.id.clone();
        if known.revoked.is_some() {
            return Err(Refusal::TokenRevoked { id: id() });
        }
        if let Some(used) = &known.used {
            let again = *used.key == *hex(key) && unix(now) <= used.at + RETRY.as_secs();
            if !again {
                return Err(Refusal::TokenUsed { id: id() });
            }
        } else if unix(now) >= known.expires {
            return Err(Refusal::TokenExpired { id: id() });
        }
        let names = SpiffeId::new(domain, &known.namespace, &known.service_account)
            .and_then(|spiffe| Ok((spiffe, WorkloadId::new(&known.namespace, &known.name)?)));
        let (id, workload) = names.map_err(|_| Refusal::TokenUnknown { id: id() })?;
        Ok(Grant { id, workload })
    }

    /// Uses `token` up for `key`.
    ///
    /// # Errors
    /// When it gives nothing.
    pub fn redeem(
        &mut self,
        token: &JoinToken,
        key: &[u8; 32],
        domain: &str,
        now: SystemTime,
    ) -> Result<Grant, Refusal> {
        let grant = self.check(token, key, domain, now)?;
        if let Some(known) = self.tokens.get_mut(&token.id) {
            known.used.get_or_insert_with(|| Use { at: unix(now), key: hex(key).into() });
        }
        self.bind(&grant);
        Ok(grant)
    }

    /// Takes a token back. `false`: there is none of this name.
    pub fn revoke(&mut self, id: &str, now: SystemTime) -> bool {
        let known = self.tokens.get_mut(id);
        known.map(|token| token.revoked.get_or_insert(unix(now))).is_some()
    }

    /// Every token, the newest first.
    #[must_use]
    pub fn list(&self, now: SystemTime) -> Vec<Listed> {
        let listed = |id: &str, token: &Token| Listed {
            id: id.into(),
            namespace: token.namespace.clone(),
            name: token.name.clone(),
            service_account: token.service_account.clone(),
            created: token.created,
            expires: token.expires,
            state: token.state(now),
        };
        let mut tokens: Vec<Listed> = self.tokens.iter().map(|(id, token)| listed(id, token)).collect();
        tokens.sort_by(|one, other| (other.created, &other.id).cmp(&(one.created, &one.id)));
        tokens
    }

    /// Whether a token was used for `workload` that gave `id`.
    #[must_use]
    pub fn is_bound(&self, id: &SpiffeId, workload: &WorkloadId) -> bool {
        workload.namespace() == id.namespace()
            && self.bound.get(&*account(id)).is_some_and(|names| names.contains(workload.name()))
    }

    fn bind(&mut self, grant: &Grant) {
        if grant.workload.name() == grant.id.service_account() {
            return;
        }
        let key = account(&grant.id);
        if self.bound.len() >= BOUND_MAX && !self.bound.contains_key(&key) {
            return;
        }
        let names = self.bound.entry(key).or_default();
        if names.len() < WORKLOADS_MAX {
            names.insert(grant.workload.name().into());
        }
    }

    fn forget(&mut self, now: SystemTime) {
        let oldest = unix(now).saturating_sub(REMEMBERED.as_secs());
        self.tokens.retain(|_, token| token.over() >= oldest);
    }

    /// Forgets the one that has been good for nothing for longest. It stays so: a token that is not known gives nothing.
    fn forget_one(&mut self, now: SystemTime) -> bool {
        let end = unix(now).saturating_sub(RETRY.as_secs());
        let over = self.tokens.iter().filter(|(_, token)| token.over() < end);
        let oldest = over.min_by_key(|(_, token)| token.over()).map(|(id, _)| id.clone());
        oldest.and_then(|id| self.tokens.remove(&id)).is_some()
    }
}

impl Token {
    /// Since when it is, or will be, good for nothing.
    fn over(&self) -> u64 {
        self.used.as_ref().map(|used| used.at).or(self.revoked).unwrap_or(self.expires)
    }

    fn state(&self, now: SystemTime) -> State {
        match (&self.revoked, &self.used) {
            (Some(_), _) => State::Revoked,
            (_, Some(_)) => State::Used,
            _ if unix(now) >= self.expires => State::Expired,
            _ => State::Active,
        }
    }
}

fn account(id: &SpiffeId) -> Box<str> {
    format!("{}/{}", id.namespace(), id.service_account()).into()
}

fn hashed(secret: &str) -> Box<str> {
    hex(&Sha256::digest(secret.as_bytes())).into()
}

/// Seconds since 1970.
#[must_use]
pub fn unix(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "cluster.local";

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn made(tokens: &mut Tokens, name: &str, account: &str, seed: u8) -> JoinToken {
        let workload = WorkloadId::new("shop", name).unwrap();
        let wish = Wish { workload, service_account: account.into(), ttl: TTL_DEFAULT };
        tokens.create(&wish, [7; 32], start(), [seed; RANDOM]).unwrap()
    }

    #[test]
    fn a_token_is_good_for_one_key_and_for_a_minute_again_for_the_same() {
        let mut tokens = Tokens::default();
        let token = made(&mut tokens, "orders", "orders", 1);
        let (key, other) = ([1; 32], [2; 32]);
        let grant = tokens.redeem(&token, &key, DOMAIN, start()).unwrap();
        assert_eq!(grant.id.to_string(), "spiffe://cluster.local/ns/shop/sa/orders");
        let used = Err(Refusal::TokenUsed { id: token.id.clone() });
        assert_eq!(tokens.redeem(&token, &other, DOMAIN, start()), used);
        assert_eq!(tokens.redeem(&token, &key, DOMAIN, start() + RETRY), Ok(grant));
        assert_eq!(tokens.redeem(&token, &key, DOMAIN, start() + RETRY + Duration::from_secs(1)), used);
    }

    #[test]
    fn a_token_ends_with_its_time_or_when_it_is_taken_back() {
        let mut tokens = Tokens::default();
        let (one, two) = (made(&mut tokens, "a", "a", 1), made(&mut tokens, "b", "b", 2));
        let key = [1; 32];
        assert!(tokens.check(&one, &key, DOMAIN, start() + TTL_DEFAULT - Duration::from_secs(1)).is_ok());
        let expired = Err(Refusal::TokenExpired { id: one.id.clone() });
        assert_eq!(tokens.check(&one, &key, DOMAIN, start() + TTL_DEFAULT), expired);
        assert!(tokens.revoke(&two.id, start()));
        assert!(!tokens.revoke("00000000", start()));
        let revoked = Err(Refusal::TokenRevoked { id: two.id.clone() });
        assert_eq!(tokens.check(&two, &key, DOMAIN, start()), revoked);
        let states: Vec<State> = tokens.list(start() + TTL_DEFAULT).iter().map(|token| token.state).collect();
        assert_eq!(states, [State::Revoked, State::Expired]);
    }

    #[test]
    fn a_used_token_remembers_for_whom_an_account_was_given_out() {
        let mut tokens = Tokens::default();
        let token = made(&mut tokens, "orders-v2", "orders", 1);
        let grant = tokens.redeem(&token, &[1; 32], DOMAIN, start()).unwrap();
        assert!(tokens.is_bound(&grant.id, &grant.workload));
        assert!(!tokens.is_bound(&grant.id, &"shop/payments".parse().unwrap()));
        assert!(!tokens.is_bound(&grant.id, &"other/orders-v2".parse().unwrap()));
        let read: Tokens = serde_json::from_slice(&serde_json::to_vec(&tokens).unwrap()).unwrap();
        assert_eq!(read, tokens);
    }

    #[test]
    fn there_are_never_too_many_and_old_ones_make_room() {
        let mut tokens = Tokens::default();
        let wish =
            Wish { workload: "shop/a".parse().unwrap(), service_account: "a".into(), ttl: TTL_DEFAULT };
        for number in 0..TOKENS_MAX {
            let mut random = [0; RANDOM];
            random[..4].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
            tokens.create(&wish, [0; 32], start(), random).unwrap();
        }
        assert_eq!(tokens.create(&wish, [0; 32], start(), [0xff; RANDOM]), Err(Refusal::TooManyTokens));
        assert!(tokens.revoke("00000007", start()));
        let soon = start() + RETRY + Duration::from_secs(1);
        assert!(tokens.create(&wish, [0; 32], soon, [0xff; RANDOM]).is_ok(), "a revoked one makes room");
        assert_eq!(tokens.create(&wish, [0; 32], soon, [0xfe; RANDOM]), Err(Refusal::TooManyTokens));
        let later = soon + TTL_DEFAULT + REMEMBERED + Duration::from_secs(1);
        assert!(tokens.create(&wish, [0; 32], later, [0xfe; RANDOM]).is_ok());
        assert_eq!(tokens.list(later).len(), 1);
    }
}
