use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use futures_util::poll;
use prometheus::Registry;

use super::token::{State, TTL_DEFAULT, Wish};
use super::{Ca, Options, Refusal, TOKENS};
use crate::world::Live;

fn open(directory: &Path) -> Ca {
    let options = Options {
        domain: "cluster.local".into(),
        leaf_life: Duration::from_secs(3_600),
        directory: Some(directory.to_owned()),
        brought: None,
        accounts: None,
    };
    Ca::open(options, Live::default(), &Registry::new(), SystemTime::now()).unwrap()
}

fn wish() -> Wish {
    Wish { workload: "shop/orders".parse().unwrap(), service_account: "orders".into(), ttl: TTL_DEFAULT }
}

#[tokio::test]
async fn a_change_is_carried_through_also_when_nobody_waits_for_it_any_more() {
    let kept = tempfile::tempdir().unwrap();
    let ca = open(kept.path());
    let now = SystemTime::now();
    let token = ca.create_token(&wish(), now).await.unwrap();
    {
        let revoking = std::pin::pin!(ca.revoke_token(&token.id, now));
        assert!(poll!(revoking).is_pending(), "the disk takes a moment");
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while ca.tokens(now)[0].state != State::Revoked {
        assert!(Instant::now() < deadline, "it was begun and never ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(open(kept.path()).tokens(now)[0].state, State::Revoked, "on the disk too");
}

#[tokio::test]
async fn a_disk_that_hangs_refuses_changes_and_keeps_their_order() {
    let kept = tempfile::tempdir().unwrap();
    let ca = open(kept.path());
    let now = SystemTime::now();
    let token = ca.create_token(&wish(), now).await.unwrap();
    // Whoever opens this waits until somebody reads.
    let unfinished = kept.path().join(format!(".{TOKENS}.tmp"));
    assert!(std::process::Command::new("mkfifo").arg(&unfinished).status().unwrap().success());
    let (one, other) = tokio::join!(ca.revoke_token(&token.id, now), ca.revoke_token(&token.id, now));
    assert_eq!((one, other), (Err(Refusal::Internal), Err(Refusal::Internal)));
    assert_eq!(ca.tokens(now)[0].state, State::Active, "what is not on the disk is not so");
    // It wakes up; the file is none, so that first change fails, and the next one succeeds.
    let reader = tokio::task::spawn_blocking(move || {
        std::fs::read(&unfinished)?;
        std::fs::remove_file(&unfinished)
    });
    reader.await.unwrap().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while ca.revoke_token(&token.id, now).await.is_err() {
        assert!(Instant::now() < deadline, "the disk is back");
    }
    assert_eq!(open(kept.path()).tokens(now)[0].state, State::Revoked);
}
