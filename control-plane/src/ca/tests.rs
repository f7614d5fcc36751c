use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use futures_util::poll;
use prometheus::Registry;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::store::{Document, Failure, Kept, Store, Version, WriteError};
use super::token::{State, TTL_DEFAULT, Wish};
use super::{Ca, Disk, Options, Refusal};
use crate::world::Live;
use crate::xds::{COME_BACK, Status};

async fn open(directory: &Path) -> Ca {
    let options = Options {
        domain: "cluster.local".into(),
        leaf_life: Duration::from_secs(3_600),
        store: Some(Arc::new(Disk::open(directory.to_owned()).unwrap())),
        brought: None,
        accounts: None,
        hears: None,
    };
    Ca::open(options, Live::default(), &Registry::new(), SystemTime::now()).await.unwrap()
}

fn wish() -> Wish {
    Wish { workload: "shop/orders".parse().unwrap(), service_account: "orders".into(), ttl: TTL_DEFAULT }
}

#[tokio::test]
async fn a_change_is_carried_through_also_when_nobody_waits_for_it_any_more() {
    let kept = tempfile::tempdir().unwrap();
    let ca = open(kept.path()).await;
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
    assert_eq!(open(kept.path()).await.tokens(now)[0].state, State::Revoked, "on the disk too");
}

#[tokio::test]
async fn a_disk_that_hangs_refuses_changes_and_keeps_their_order() {
    let kept = tempfile::tempdir().unwrap();
    let ca = open(kept.path()).await;
    let now = SystemTime::now();
    let token = ca.create_token(&wish(), now).await.unwrap();
    // Whoever opens this waits until somebody reads.
    let unfinished = kept.path().join(format!(".{}.tmp", Document::Tokens.file()));
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
    assert_eq!(open(kept.path()).await.tokens(now)[0].state, State::Revoked);
}

// === several control planes that share a place ===

/// A place with versions, as an API server is one.
#[derive(Default)]
struct Shared {
    documents: Mutex<HashMap<&'static str, (u64, Vec<u8>)>>,
    changed: Notify,
    /// Writes that were refused because somebody else was quicker.
    conflicts: AtomicUsize,
}

impl Shared {
    fn documents(&self) -> MutexGuard<'_, HashMap<&'static str, (u64, Vec<u8>)>> {
        self.documents.lock().unwrap()
    }
}

#[tonic::async_trait]
impl Store for Shared {
    fn place(&self, document: Document) -> String {
        document.file().to_owned()
    }

    async fn read(&self, document: Document) -> Result<Option<Kept>, Failure> {
        // Others get in between a reading and a writing.
        tokio::task::yield_now().await;
        let found = self.documents().get(document.file()).cloned();
        Ok(found.map(|(version, bytes)| Kept { bytes, version: Version(version.to_string().into()) }))
    }

    async fn write(
        &self,
        document: Document,
        bytes: Vec<u8>,
        _public: Option<String>,
        over: Option<&Version>,
    ) -> Result<Version, WriteError> {
        tokio::task::yield_now().await;
        let mut documents = self.documents();
        let found = documents.get(document.file()).map(|(version, _)| version.to_string());
        if found.as_deref() != over.map(|version| &*version.0) {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
            return Err(WriteError::Conflict);
        }
        let next = documents.values().map(|(version, _)| version + 1).max().unwrap_or(1);
        documents.insert(document.file(), (next, bytes));
        self.changed.notify_waiters();
        Ok(Version(next.to_string().into()))
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}

async fn open_shared(store: &Arc<Shared>) -> Ca {
    open_in(store, Live::default()).await
}

async fn open_in(store: &Arc<Shared>, live: Live) -> Ca {
    let options = Options {
        domain: "cluster.local".into(),
        leaf_life: Duration::from_secs(3_600),
        store: Some(Arc::<Shared>::clone(store)),
        brought: None,
        accounts: None,
        hears: None,
    };
    Ca::open(options, live, &Registry::new(), SystemTime::now()).await.unwrap()
}

fn roots(ca: &Ca) -> Vec<[u8; 32]> {
    ca.authority().roots().iter().map(|root| root.certificate.pin).collect()
}

#[tokio::test]
async fn of_two_that_start_at_once_one_makes_the_root_and_the_other_takes_it() {
    let store = Arc::new(Shared::default());
    let (one, other) = tokio::join!(open_shared(&store), open_shared(&store));
    assert_eq!(roots(&one), roots(&other));
    assert_eq!(store.conflicts.load(Ordering::Relaxed), 1, "they did start at once");
    assert_eq!(one.authority().issuer().certificate, other.authority().issuer().certificate);
}

#[tokio::test]
async fn a_join_token_is_good_once_also_of_two_that_are_asked_at_once() {
    let store = Arc::new(Shared::default());
    let (one, other) = (open_shared(&store).await, open_shared(&store).await);
    let now = SystemTime::now();
    let token = one.create_token(&wish(), now).await.unwrap();
    other.catch_up().await.unwrap();
    let redeemed = tokio::join!(one.redeem(&token, &[1; 32], now), other.redeem(&token, &[2; 32], now));
    let outcome = [redeemed.0, redeemed.1];
    assert_eq!(outcome.iter().filter(|given| given.is_ok()).count(), 1, "{outcome:?}");
    assert!(outcome.contains(&Err(Refusal::TokenUsed { id: token.id.clone() })), "{outcome:?}");
}

#[tokio::test]
async fn a_rotation_that_one_begins_is_everybodys_and_only_who_leads_goes_on_with_it() {
    let store = Arc::new(Shared::default());
    let (one, other) = (open_shared(&store).await, open_shared(&store).await);
    let begun = tokio::join!(one.rotate(false), other.rotate(false));
    assert!(begun.0.is_ok() != begun.1.is_ok(), "there is one rotation: {begun:?}");
    one.catch_up().await.unwrap();
    other.catch_up().await.unwrap();
    assert_eq!(roots(&one), roots(&other));
    assert_eq!(roots(&one).len(), 2);
    let shutdown = CancellationToken::new();
    let (leads, follows) = (watch::channel(true).1, watch::channel(false).1);
    let before = roots(&one);
    let running = [
        tokio::spawn(one.clone().run(Status::default(), leads, shutdown.clone())),
        tokio::spawn(other.clone().run(Status::default(), follows, shutdown.clone())),
    ];
    // No sidecar need be waited for: after the settling the new root issues, and stands first.
    let deadline = Instant::now() + Duration::from_secs(90);
    while roots(&one) == before || roots(&one) != roots(&other) {
        assert!(Instant::now() < deadline, "it does not go on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(one.authority().issuer().certificate, other.authority().issuer().certificate);
    shutdown.cancel();
    for task in running {
        task.await.unwrap();
    }
}

/// Right after a fail-over nobody is connected, and nobody of nobody lacks the new root.
#[tokio::test(start_paused = true)]
async fn a_rotation_waits_for_those_who_come_over_from_whoever_led_before() {
    const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, annotations: {weft.dev/status: '{\"version\":\"0.1.0\"}'}}
spec: {containers: []}
status: {podIP: 10.0.0.7, phase: Running}
";
    let store = Arc::new(Shared::default());
    let ca = open_in(&store, Live::new(crate::fixture::world(POD))).await;
    ca.rotate(false).await.unwrap();
    // The bundle has been out for long: only who has it is left to wait for.
    for (version, bytes) in store.documents().values_mut() {
        let mut document: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        document["rotation"]["since"] = 1_700_000_000.into();
        (*version, *bytes) = (*version + 1, serde_json::to_vec(&document).unwrap());
    }
    ca.catch_up().await.unwrap();
    let (before, shutdown) = (roots(&ca), CancellationToken::new());
    let (tells, leads) = watch::channel(false);
    let running = tokio::spawn(ca.clone().run(Status::default(), leads, shutdown.clone()));
    let second = Duration::from_secs(1);
    tokio::time::sleep(COME_BACK * 2).await;
    assert_eq!(roots(&ca), before, "it does not lead");
    tells.send_replace(true);
    tokio::time::sleep(COME_BACK - second * 2).await;
    assert_eq!(roots(&ca), before, "the sidecar of the pod may be on its way");
    // Lost and had again between two looks: another may have led, and taken the sidecars over.
    tells.send_replace(false);
    tells.send_replace(true);
    tokio::time::sleep(COME_BACK - second * 2).await;
    assert_eq!(roots(&ca), before, "on its way once more");
    tokio::time::sleep(second * 5).await;
    assert_ne!(roots(&ca), before, "a sidecar that never comes is not waited for");
    shutdown.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn what_makes_no_sense_replaces_nothing_and_what_is_gone_is_written_again() {
    let store = Arc::new(Shared::default());
    let ca = open_shared(&store).await;
    let before = roots(&ca);
    store.documents().insert(Document::Authority.file(), (77, b"{".to_vec()));
    assert_eq!(ca.catch_up().await, Err(Refusal::Internal));
    assert_eq!(roots(&ca), before);
    store.documents().remove(Document::Authority.file());
    ca.catch_up().await.unwrap();
    assert_eq!(roots(&open_shared(&store).await), before, "it is there again");
}
