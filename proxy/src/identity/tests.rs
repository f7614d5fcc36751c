//! The life of an identity, in paused time, with an authority that does what a story needs.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_wire::ca::JoinToken;

use super::authority::{Authority as Ask, Failure, Question};
use super::task::Life;
use super::testing::{Authority, Says};
use super::*;

mod wire;

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const HOUR: Duration = Duration::from_secs(3600);
/// A moment within the life of rcgen's roots.
const BEGIN: Duration = Duration::from_secs(1_800_000_000);

/// What the authority says to one question.
type Script = Box<dyn Fn(&str, SystemTime) -> Result<Vec<u8>, Failure> + Send>;

/// An authority that signs, unless the script says something else.
struct Scripted {
    ca: Mutex<Arc<Authority>>,
    away: AtomicBool,
    script: Mutex<VecDeque<Script>>,
    /// What each question was proved with, and when.
    asked: Mutex<Vec<(Option<String>, Duration)>>,
    began: Instant,
}

impl Scripted {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + BEGIN + self.began.elapsed()
    }

    fn script(&self, script: impl Fn(&str, SystemTime) -> Result<Vec<u8>, Failure> + Send + 'static) {
        self.script.lock().unwrap().push_back(Box::new(script));
    }

    fn asked(&self) -> Vec<(Option<String>, Duration)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Ask for Arc<Scripted> {
    async fn ask(&self, Question { csr, bearer }: Question) -> Result<Vec<u8>, Failure> {
        self.asked.lock().unwrap().push((bearer, self.began.elapsed()));
        if self.away.load(Ordering::Relaxed) {
            return Err(Failure::Unreachable("away".into()));
        }
        match self.script.lock().unwrap().pop_front() {
            Some(script) => script(&csr, self.now()),
            None => Ok(self.ca.lock().unwrap().sign(&csr, &Says::id(ORDERS, self.now(), HOUR))),
        }
    }
}

struct Story {
    identity: Arc<Identity>,
    authority: Arc<Scripted>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

fn token(ca: &Authority) -> JoinToken {
    JoinToken { id: "0a1b2c3d".into(), secret: "5ec2e7".repeat(6)[..32].into(), pin: ca.pin() }
}

fn enrolment(proof: Proof) -> Enrolment {
    Enrolment {
        trust_domain: "cluster.local".into(),
        namespace: "shop".into(),
        proof,
        trust_bundle: None,
        directory: None,
    }
}

impl Story {
    fn begin(ca: &Arc<Authority>, enrolment: Enrolment, prepare: impl FnOnce(&Scripted)) -> Self {
        let authority = Arc::new(Scripted {
            ca: Mutex::new(Arc::clone(ca)),
            away: AtomicBool::new(false),
            script: Mutex::default(),
            asked: Mutex::default(),
            began: Instant::now(),
        });
        prepare(&authority);
        let identity = Identity::new(enrolment);
        let clock = Arc::clone(&authority);
        let life = Life::new(Arc::clone(&identity), Arc::clone(&authority), move || clock.now());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(life.run(async { drop(stopped.await) }));
        Self { identity, authority, stop: Some(stop), task }
    }

    /// With a join token of this authority.
    fn joined(ca: &Arc<Authority>) -> Self {
        Self::begin(ca, enrolment(Proof::JoinToken(token(ca))), |_| {})
    }

    async fn passes(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    fn material(&self) -> Option<Arc<Material>> {
        self.identity.slot.load_full()
    }

    fn failures(&self, reason: &str) -> u64 {
        self.identity.metrics.failures.with_label_values(&[reason]).get()
    }

    fn complaint(&self) -> String {
        self.identity.state().last_failure.as_ref().map(|last| last.text.clone()).unwrap_or_default()
    }

    async fn end(mut self) {
        drop(self.stop.take());
        self.task.await.expect("no panic");
    }
}

#[tokio::test(start_paused = true)]
async fn a_join_token_becomes_an_identity() {
    let ca = Arc::new(Authority::new("mesh"));
    let story = Story::joined(&ca);
    assert!(story.material().is_none());
    story.identity.known().await;
    let material = story.material().expect("some");
    assert_eq!(material.id.to_string(), ORDERS);
    assert_eq!(material.roots.len(), 1, "the root that the pin meant");
    assert_eq!(material.key.cert.len(), 2, "leaf and intermediate, not the root");
    assert_eq!(story.authority.asked()[0].0.as_deref(), Some(&*token(&ca).reveal()));
    let view = story.identity.describe(story.authority.now());
    assert_eq!(view["certificate"]["id"], ORDERS);
    assert_eq!(view["certificate"]["issuer"], "CN=mesh intermediate");
    assert_eq!(view["roots"][0]["subject"], "CN=mesh root");
    assert!(!view.to_string().contains(&*token(&ca).secret), "{view}");
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_about_half_life_with_another_key() {
    let story = Story::joined(&Arc::new(Authority::new("mesh")));
    story.identity.known().await;
    let first = story.material().expect("some");
    story.passes(HOUR.mul_f64(0.39)).await;
    assert_eq!(story.identity.certificate(), Some(1));
    story.passes(HOUR.mul_f64(0.23)).await;
    assert_eq!(story.identity.certificate(), Some(2));
    let second = story.material().expect("some");
    assert_ne!(first.key.cert[0], second.key.cert[0]);
    let key = |material: &Material| material.key.key.public_key().map(|key| key.to_vec());
    assert_ne!(key(&first), key(&second));
    assert_eq!(story.authority.asked()[1].0, None, "the certificate proves it, the token is used up");
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_keeps_what_there_is_and_is_tried_until_it_comes() {
    let story = Story::joined(&Arc::new(Authority::new("mesh")));
    story.identity.known().await;
    let first = story.material().expect("some");
    story.authority.away.store(true, Ordering::Relaxed);
    story.passes(HOUR - Duration::from_secs(10)).await;
    assert!(Arc::ptr_eq(&first, &story.material().expect("kept")));
    assert!(story.failures("unreachable") > 3);
    assert_eq!(story.failures("expired"), 0);
    story.passes(Duration::from_secs(60)).await;
    assert_eq!(story.failures("expired"), 1, "once, however long");
    assert!(story.material().is_some());
    assert_eq!(story.identity.describe(story.authority.now())["certificate"]["expired"], true);
    story.authority.away.store(false, Ordering::Relaxed);
    story.passes(Duration::from_secs(16)).await;
    assert_eq!(story.identity.certificate(), Some(2));
    let asked = story.authority.asked();
    assert!(asked.last().expect("asked").0.is_some(), "an expired certificate proves nothing");
    assert_eq!(story.complaint(), "");
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn attempts_become_rarer_but_do_not_end() {
    let story = Story::begin(
        &Arc::new(Authority::new("mesh")),
        enrolment(Proof::JoinToken(token(&Authority::new("mesh")))),
        |authority| authority.away.store(true, Ordering::Relaxed),
    );
    story.passes(HOUR).await;
    let times: Vec<_> = story.authority.asked().into_iter().map(|(_, at)| at).collect();
    assert!((200..600).contains(&times.len()), "{}", times.len());
    let longest = times.windows(2).map(|pair| pair[1] - pair[0]).max().expect("some");
    assert!(longest <= Duration::from_secs(16), "{longest:?}");
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_hold_is_not_taken() {
    let ca = Arc::new(Authority::new("mesh"));
    let stranger = Authority::new("stranger");
    let sign = |says: fn(SystemTime) -> Says| {
        let ca = Arc::clone(&ca);
        move |csr: &str, now| Ok(ca.sign(csr, &says(now)))
    };
    let story = Story::begin(&ca, enrolment(Proof::JoinToken(token(&ca))), |authority| {
        authority.script(sign(|now| Says::id("spiffe://cluster.local/ns/other/sa/orders", now, HOUR)));
        authority.script(sign(|now| Says::id("spiffe://example.org/ns/shop/sa/orders", now, HOUR)));
        authority.script(sign(|now| Says::id("spiffe://cluster.local/orders", now, HOUR)));
        authority.script(sign(|now| Says {
            uris: vec![ORDERS.into(), "spiffe://cluster.local/ns/shop/sa/more".into()],
            ..Says::id(ORDERS, now, HOUR)
        }));
        authority.script(sign(|now| Says { uris: vec![], ..Says::id(ORDERS, now, HOUR) }));
        authority.script(sign(|now| Says { not_after: now - HOUR, ..Says::id(ORDERS, now, HOUR) }));
        authority.script(move |csr, now| Ok(stranger.sign(csr, &Says::id(ORDERS, now, HOUR))));
        let other = Arc::clone(&ca);
        authority.script(move |_, now| {
            let request = request::Request::new().expect("a key");
            Ok(other.sign(&request.csr, &Says::id(ORDERS, now, HOUR)))
        });
        authority.script(|_, _| Ok(b"hello".to_vec()));
        authority.script(|_, _| Ok(vec![]));
    });
    let mut complaints = Vec::new();
    while story.material().is_none() {
        let complaint = story.complaint();
        if !complaint.is_empty() && complaints.last() != Some(&complaint) {
            complaints.push(complaint);
        }
        story.passes(Duration::from_millis(50)).await;
    }
    for (complaint, says) in complaints.iter().zip([
        "\"shop\"",
        "\"cluster.local\"",
        "not of the form",
        "2 URI names",
        "0 URI names",
        "no chain to a root that is trusted",
        "the root that the join token names",
        "another key",
        "1 to 10 certificates",
    ]) {
        assert!(complaint.contains(says), "{says}: {complaint}");
    }
    assert_eq!(complaints.len(), 9, "{complaints:#?}");
    assert_eq!(story.failures("answer"), 10);
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_used_token_is_refused_in_words_that_help_and_hide_it() {
    let ca = Arc::new(Authority::new("mesh"));
    let story = Story::begin(&ca, enrolment(Proof::JoinToken(token(&ca))), |authority| {
        for _ in 0..100 {
            authority.script(|_, _| Err(Failure::Refused("token 0a1b2c3d was used".into())));
        }
    });
    story.passes(Duration::from_secs(5)).await;
    let complaint = story.complaint();
    assert!(
        complaint.contains("weft token create") && complaint.contains("WEFT_IDENTITY_DIR"),
        "{complaint}"
    );
    assert!(!complaint.contains(&*token(&ca).secret));
    assert!(story.failures("refused") > 1);
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_bundle_is_new_material_at_once_and_another_issuing_root_a_renewal_soon() {
    let (old, new) = (Arc::new(Authority::new("old")), Arc::new(Authority::new("new")));
    let story = Story::joined(&old);
    story.identity.known().await;
    let bundle = |roots: &[&Authority]| {
        let pem: String = roots.iter().map(|root| root.root_pem()).collect();
        Bundle::parse(pem.as_bytes()).expect("roots")
    };
    // Both are trusted; nothing else changes.
    story.identity.trust(bundle(&[&old, &new]));
    assert_eq!(story.material().expect("some").roots.len(), 2);
    assert_eq!(story.identity.certificate(), Some(1), "connections need not be opened anew for that");
    story.passes(Duration::from_secs(60)).await;
    assert_eq!(story.identity.certificate(), Some(1));
    // The new root issues.
    *story.authority.ca.lock().unwrap() = Arc::clone(&new);
    story.identity.trust(bundle(&[&new, &old]));
    story.passes(Duration::from_secs(31)).await;
    assert_eq!(story.identity.certificate(), Some(2));
    let issuer = story.identity.describe(story.authority.now())["certificate"]["issuer"].clone();
    assert_eq!(issuer, "CN=new intermediate");
    // The old one goes; the sidecar has nothing more to do.
    story.identity.trust(bundle(&[&new]));
    story.passes(Duration::from_secs(60)).await;
    assert_eq!(story.identity.certificate(), Some(2));
    assert_eq!(story.material().expect("some").roots.len(), 1);
    assert_eq!(story.identity.metrics.bundles.get(), 3);
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_refused_gives_way_to_a_token() {
    let ca = Arc::new(Authority::new("mesh"));
    let directory = tempfile::tempdir().unwrap();
    let [account, roots] = ["token", "roots.pem"].map(|name| directory.path().join(name));
    fs::write(&account, "first\n").unwrap();
    fs::write(&roots, ca.root_pem()).unwrap();
    let enrolment =
        Enrolment { trust_bundle: Some(roots), ..enrolment(Proof::ServiceAccount(account.clone())) };
    let story = Story::begin(&ca, enrolment, |_| {});
    story.identity.known().await;
    fs::write(&account, "second\n").unwrap();
    story.authority.script(|_, _| Err(Failure::Refused("who are you?".into())));
    story.passes(HOUR.mul_f64(0.7)).await;
    let proofs: Vec<_> = story.authority.asked().into_iter().map(|(proof, _)| proof).collect();
    assert_eq!(proofs, [Some("first".to_owned()), None, Some("second".to_owned())]);
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_operators_roots_may_come_late_and_change() {
    let (first, second) = (Arc::new(Authority::new("first")), Arc::new(Authority::new("second")));
    let directory = tempfile::tempdir().unwrap();
    let [account, roots] = ["token", "roots.pem"].map(|name| directory.path().join(name));
    let enrolment =
        Enrolment { trust_bundle: Some(roots.clone()), ..enrolment(Proof::ServiceAccount(account.clone())) };
    let story = Story::begin(&first, enrolment, |_| {});
    story.passes(Duration::from_secs(5)).await;
    assert!(story.complaint().contains("cannot read"), "{}", story.complaint());
    fs::write(&account, "token").unwrap();
    fs::write(&roots, first.root_pem()).unwrap();
    story.identity.known().await;
    fs::write(&roots, "half a fi").unwrap();
    story.passes(Duration::from_secs(5)).await;
    assert!(story.complaint().contains("holds no certificate"), "{}", story.complaint());
    assert_eq!(story.material().expect("kept").roots.len(), 1);
    fs::write(&roots, format!("{}{}", second.root_pem(), first.root_pem())).unwrap();
    story.passes(Duration::from_secs(5)).await;
    assert_eq!(story.material().expect("some").roots.len(), 2);
    story.end().await;
}

fn kept(ca: &Authority, directory: &Path) -> Enrolment {
    Enrolment { directory: Some(directory.to_owned()), ..enrolment(Proof::JoinToken(token(ca))) }
}

#[tokio::test(start_paused = true)]
async fn an_identity_outlives_a_restart_in_a_directory_that_only_its_owner_reads() {
    let ca = Arc::new(Authority::new("mesh"));
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path().join("identity");
    let story = Story::begin(&ca, kept(&ca, &directory), |_| {});
    story.identity.known().await;
    let before = story.material().expect("some");
    story.passes(Duration::from_secs(1)).await;
    story.end().await;
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let mode = fs::metadata(directory.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);

    let story = Story::begin(&ca, kept(&ca, &directory), |_| {});
    story.identity.known().await;
    assert_eq!(story.material().expect("some").key.cert, before.key.cert);
    assert!(story.authority.asked().is_empty(), "nobody was asked");
    story.end().await;
    // A half-written identity is none; the token is asked with.
    fs::write(directory.join("tls.key"), request::Request::new().unwrap().key_pem()).unwrap();
    let story = Story::begin(&ca, kept(&ca, &directory), |_| {});
    story.identity.known().await;
    assert_eq!(story.authority.asked().len(), 1);
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_root_that_leaves_somebody_elses_directory_is_trusted_no_more() {
    let (ca, compromised) = (Arc::new(Authority::new("mesh")), Authority::new("compromised"));
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let enrolment = Enrolment { directory: Some(directory.to_owned()), ..enrolment(Proof::Directory) };
    let story = Story::begin(&ca, enrolment, |_| {});
    let (chain, _, key) = ca.issue(&Says::id(ORDERS, story.authority.now(), HOUR));
    fs::write(directory.join("tls.key"), key).unwrap();
    fs::write(directory.join("tls.crt"), bundle::pem(&chain)).unwrap();
    fs::write(directory.join("ca.crt"), ca.root_pem() + &compromised.root_pem()).unwrap();
    story.identity.known().await;
    assert_eq!(story.material().expect("some").roots.len(), 2);
    fs::write(directory.join("ca.crt"), ca.root_pem()).unwrap();
    story.passes(Duration::from_secs(5)).await;
    assert_eq!(story.material().expect("some").roots.len(), 1);
    story.end().await;
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_identity_is_taken_when_it_is_complete() {
    let ca = Arc::new(Authority::new("mesh"));
    let temporary = tempfile::tempdir().unwrap();
    let directory = temporary.path();
    let enrolment = Enrolment { directory: Some(directory.to_owned()), ..enrolment(Proof::Directory) };
    let story = Story::begin(&ca, enrolment, |_| {});
    let write = |id: &str| {
        let (chain, _, key) = ca.issue(&Says::id(id, story.authority.now(), HOUR));
        fs::write(directory.join("ca.crt"), ca.root_pem()).unwrap();
        fs::write(directory.join("tls.crt"), bundle::pem(&chain)).unwrap();
        key
    };
    let key = write(ORDERS);
    story.passes(Duration::from_secs(5)).await;
    assert!(story.complaint().contains("tls.key"), "{}", story.complaint());
    fs::write(directory.join("tls.key"), key).unwrap();
    story.identity.known().await;
    // Renewed, file by file.
    let key = write(ORDERS);
    story.passes(Duration::from_secs(5)).await;
    assert!(story.complaint().contains("another key"), "{}", story.complaint());
    assert_eq!(story.identity.certificate(), Some(1));
    fs::write(directory.join("tls.key"), key).unwrap();
    story.passes(Duration::from_secs(5)).await;
    assert_eq!(story.identity.certificate(), Some(2));
    // Somebody else's is not ours.
    let key = write("spiffe://cluster.local/ns/other/sa/orders");
    fs::write(directory.join("tls.key"), key).unwrap();
    story.passes(Duration::from_secs(5)).await;
    assert_eq!(story.identity.certificate(), Some(2));
    assert!(story.authority.asked().is_empty());
    story.end().await;
}
