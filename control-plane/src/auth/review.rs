//! Tokens of the cluster: the Kubernetes API server says whose they are, and their groups which role they have.
//!
//! In: a bearer token. Out: somebody, or nobody. Invariants: only what looks like a token of a cluster goes there; answers are
//! remembered for a short time ([`KNOWN`], [`UNKNOWN`]) and in bounded number; at most [`PLACES`] questions are under way, so that
//! strangers cannot make us press the API server; a token that was made for somebody else ([`Settings::audience`]) is nobody's here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use tokio::sync::Semaphore;
use tracing::warn;

use super::tokens::Digest;
use super::{How, Principal, Role};
use crate::ca::{Reviewer, TokenReviews};

/// How long somebody stays known: also how long somebody stays in whose token was taken back.
const KNOWN: Duration = Duration::from_secs(30);
/// How long a token stays nobody's.
const UNKNOWN: Duration = Duration::from_secs(5);
/// Answers remembered, at about 300 bytes each.
const ANSWERS_MAX: usize = 2_048;
/// Questions at a time.
const PLACES: usize = 8;
/// Longest name.
const NAME_MAX: usize = 200;

/// What is configured.
#[derive(Clone)]
pub struct Settings {
    /// Who is asked.
    pub reviewer: Reviewer,
    /// For whom a token must have been made.
    pub audience: String,
    /// Groups of operators.
    pub operators: Vec<String>,
    /// Groups of viewers.
    pub viewers: Vec<String>,
}

/// The API server cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// Asks an API server, and remembers.
pub struct Reviews {
    server: TokenReviews,
    settings: Settings,
    answers: Mutex<HashMap<Digest, Answer>>,
    places: Semaphore,
}

#[derive(Debug, Clone)]
struct Answer {
    who: Option<Principal>,
    until: Timestamp,
}

impl Reviews {
    /// Checks `settings`; asks nobody yet.
    ///
    /// # Errors
    /// When they cannot work.
    pub fn new(settings: Settings) -> anyhow::Result<Self> {
        ensure!(
            !settings.operators.is_empty() || !settings.viewers.is_empty(),
            "nobody could come in: say who may by --api-token-review-viewer-group or --api-token-review-operator-group, for \
             instance system:serviceaccounts:monitoring"
        );
        let server = TokenReviews::new(settings.reviewer.clone(), &settings.audience);
        let server = server.context("use --api-token-review")?;
        Ok(Self { server, settings, answers: Mutex::default(), places: Semaphore::new(PLACES) })
    }

    /// Whose `token` is.
    ///
    /// # Errors
    /// When that cannot be found out now.
    pub async fn find(
        &self,
        token: &str,
        digest: &Digest,
        now: Timestamp,
    ) -> Result<Option<Principal>, Unavailable> {
        if !may_be_of_a_cluster(token) {
            return Ok(None);
        }
        if let Some(answer) = self.remembered(digest, now) {
            return Ok(answer);
        }
        let _place = self.places.try_acquire().map_err(|_| Unavailable)?;
        let status = self.server.review(token).await.map_err(|error| {
            warn!(error = &error as &dyn std::error::Error, "a token of the cluster could not be checked");
            Unavailable
        })?;
        let who = somebody(&status, &self.settings);
        self.remember(*digest, who.clone(), now);
        Ok(who)
    }

    fn remembered(&self, digest: &Digest, now: Timestamp) -> Option<Option<Principal>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(digest).filter(|answer| now < answer.until).map(|answer| answer.who.clone())
    }

    fn remember(&self, digest: Digest, who: Option<Principal>, now: Timestamp) {
        let life = SignedDuration::try_from(if who.is_some() { KNOWN } else { UNKNOWN });
        let until = life.ok().and_then(|life| now.checked_add(life).ok()).unwrap_or(now);
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= ANSWERS_MAX {
            answers.retain(|_, answer| now < answer.until);
        }
        if answers.len() >= ANSWERS_MAX {
            // Those who are known stay longest.
            let soonest = answers.iter().min_by_key(|(_, answer)| answer.until).map(|(key, _)| *key);
            soonest.and_then(|key| answers.remove(&key));
        }
        answers.insert(digest, Answer { who, until });
    }
}

/// Three parts of base64.
fn may_be_of_a_cluster(token: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte))
    };
    token.split('.').count() == 3 && token.split('.').all(is_part)
}

/// Who it is by the server's answer, if they have a role here.
fn somebody(status: &TokenReviewStatus, settings: &Settings) -> Option<Principal> {
    if status.authenticated != Some(true) {
        return None;
    }
    // A server that does not know audiences says nothing of them, and would take a token for anybody.
    if !status.audiences.iter().flatten().any(|audience| *audience == settings.audience) {
        return None;
    }
    let user = status.user.as_ref()?;
    let groups = user.groups.as_deref().unwrap_or_default();
    let is_in = |wanted: &[String]| wanted.iter().any(|group| groups.contains(group));
    let role = match () {
        () if is_in(&settings.operators) => Role::Operator,
        () if is_in(&settings.viewers) => Role::Viewer,
        () => return None,
    };
    let name = user.username.as_deref().filter(|name| !name.is_empty())?;
    let name: String = name.chars().filter(|one| !one.is_control()).take(NAME_MAX).collect();
    Some(Principal { name: name.into(), role, how: How::TokenReview, session: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;

    fn at(url: &str) -> Reviewer {
        Reviewer::At(url.to_owned(), "/nowhere".into())
    }

    fn settings() -> Settings {
        Settings {
            reviewer: at("https://kubernetes.default.svc"),
            audience: "weft-api".into(),
            operators: vec!["sre".into()],
            viewers: vec!["system:serviceaccounts:monitoring".into()],
        }
    }

    fn status(groups: &[&str], audiences: Option<&[&str]>) -> TokenReviewStatus {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: audiences.map(owned),
            user: Some(UserInfo {
                username: Some("alice".into()),
                groups: Some(owned(groups)),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    #[test]
    fn groups_decide_and_a_token_for_others_is_nobodys() {
        let role = |groups: &[&str], audiences| {
            somebody(&status(groups, audiences), &settings()).map(|principal| principal.role)
        };
        let ours = Some(&["weft-api"][..]);
        assert_eq!(role(&["system:serviceaccounts:monitoring"], ours), Some(Role::Viewer));
        assert_eq!(role(&["system:serviceaccounts:monitoring", "sre"], ours), Some(Role::Operator));
        assert_eq!(role(&["system:authenticated"], ours), None);
        assert_eq!(role(&["sre"], Some(&["https://kubernetes.default.svc"])), None);
        assert_eq!(role(&["sre"], None), None, "a server that does not know audiences");
        let refused = TokenReviewStatus { authenticated: Some(false), ..status(&["sre"], ours) };
        assert_eq!(somebody(&refused, &settings()), None);
    }

    #[test]
    fn what_is_no_token_of_a_cluster_stays_here() {
        assert!(may_be_of_a_cluster("eyJh.eyJp.c2ln-_"));
        for token in ["weft_api_00", "a.b", "a..b", "a.b.c.d", "a.b.c d", ""] {
            assert!(!may_be_of_a_cluster(token), "{token:?}");
        }
    }

    #[test]
    fn answers_are_forgotten_and_bounded() {
        let reviews = Reviews::new(settings()).expect("settings that work");
        let at = |seconds| Timestamp::from_second(seconds).expect("in range");
        let alice = somebody(&status(&["sre"], Some(&["weft-api"])), &settings());
        reviews.remember([255; 32], alice.clone(), at(0));
        reviews.remember([254; 32], None, at(0));
        assert_eq!(reviews.remembered(&[255; 32], at(29)), Some(alice.clone()));
        assert_eq!(reviews.remembered(&[255; 32], at(30)), None);
        assert_eq!(reviews.remembered(&[254; 32], at(4)), Some(None));
        assert_eq!(reviews.remembered(&[254; 32], at(5)), None);
        for number in 0..ANSWERS_MAX {
            let mut digest = [0; 32];
            digest[..8].copy_from_slice(&number.to_be_bytes());
            reviews.remember(digest, None, at(1));
        }
        assert_eq!(reviews.answers.lock().expect("not poisoned").len(), ANSWERS_MAX);
        assert_eq!(
            reviews.remembered(&[255; 32], at(2)),
            Some(alice),
            "strangers do not drive out who is known"
        );
    }

    #[test]
    fn settings_that_let_nobody_in_are_refused() {
        let nobody = Settings { operators: Vec::new(), viewers: Vec::new(), ..settings() };
        assert!(Reviews::new(nobody).is_err());
        assert!(Reviews::new(Settings { reviewer: at("http://x"), ..settings() }).is_err());
    }
}
