use rustls::pki_types::UnixTime;

use super::*;
use crate::ca::brought;
use crate::ca::kept::{self, ReadError};

const DAY: Duration = Duration::from_secs(86_400);

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Serial numbers that differ.
fn counter() -> impl FnMut() -> Serial {
    let mut next = 0_u128;
    move || {
        next += 0x0100_0000_0001;
        next.rotate_left(88).to_be_bytes()
    }
}

fn authority(random: Random<'_>) -> Authority {
    Authority::new("cluster.local", Offer::make("cluster.local", start(), random).unwrap(), DAY)
}

fn leaf(authority: &Authority, now: SystemTime, random: Random<'_>) -> Issued {
    let id = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    let spki = Key::generate().unwrap().to_spki();
    authority.issue(&id, &spki, None, Duration::ZERO, now, random()).unwrap()
}

/// Whether somebody who trusts only `root` believes `leaf`.
fn believes(root: &Certificate, leaf: &Issued, now: SystemTime) -> bool {
    let anchor = webpki::anchor_from_trusted_cert(&root.der).unwrap();
    let between: Vec<CertificateDer<'_>> = leaf.chain[1..].iter().map(|one| one.der.clone()).collect();
    let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let end = webpki::EndEntityCert::try_from(&leaf.leaf.der).unwrap();
    let usages = [webpki::KeyUsage::client_auth(), webpki::KeyUsage::server_auth()];
    usages.into_iter().all(|usage| {
        end.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            std::slice::from_ref(&anchor),
            &between,
            time,
            usage,
            None,
            None,
        )
        .is_ok()
    })
}

fn ready(connected: usize, trusting: usize) -> Adoption {
    Adoption { connected, trusting, renewed: 0 }
}

/// The same after a restart.
fn restarted(authority: &Authority, now: SystemTime) -> Authority {
    let document = kept::write(authority).unwrap();
    kept::read(&document, "cluster.local", DAY, now, None, || panic!("nothing new is made")).unwrap()
}

#[test]
fn a_rotation_waits_for_everybody_and_hurts_nobody() {
    let (mut next, now) = (counter(), start());
    let mut authority = authority(&mut next);
    let old = authority.roots()[0].certificate.clone();
    let before = leaf(&authority, now, &mut next);
    assert_eq!(authority.rotate(false, now, &mut next).unwrap(), Step::Began);
    let new = authority.roots()[1].certificate.clone();

    // Phase 1: both are trusted, the old one issues, until everybody has the bundle.
    assert!(believes(&old, &leaf(&authority, now, &mut next), now));
    assert_eq!(authority.tick(ready(42, 42), now, &mut next).unwrap(), None, "not before it has settled");
    let now = now + SETTLE;
    assert_eq!(
        authority.tick(ready(42, 41), now + DAY, &mut next).unwrap(),
        None,
        "41 of 42 trust the new root"
    );
    authority = restarted(&authority, now);
    assert_eq!(authority.tick(ready(42, 42), now, &mut next).unwrap(), Some(Step::Issuing));

    // Phase 2: the new one issues and stands first. Who knows only the old one believes it all the same.
    assert_eq!(authority.roots()[0].certificate, new);
    assert_eq!(authority.roots()[1].certificate, old);
    let after = leaf(&authority, now, &mut next);
    assert!(believes(&new, &after, now) && believes(&old, &after, now));
    assert!(!believes(&new, &before, now));
    assert_eq!(after.chain.last(), Some(&new));
    assert!(after.chain.contains(&old), "who has a join token knows of it no more than its pin");
    authority = restarted(&authority, now);
    assert_eq!(authority.tick(ready(0, 0), now + DAY - Duration::from_secs(1), &mut next).unwrap(), None);

    // Phase 3: no certificate of the old root can be valid any more.
    assert!(!believes(&old, &before, now + DAY));
    assert_eq!(authority.tick(ready(0, 0), now + DAY, &mut next).unwrap(), Some(Step::Dropped));
    assert!(authority.rotation().is_none());
    assert_eq!(authority.roots().len(), 1);
    let last = leaf(&authority, now + DAY, &mut next);
    assert!(believes(&new, &last, now + DAY) && !believes(&old, &last, now + DAY));
}

#[test]
fn force_takes_the_next_step_whoever_is_not_ready() {
    let (mut next, now) = (counter(), start());
    let mut authority = authority(&mut next);
    assert!(matches!(authority.rotate(true, now, &mut next), Err(RotateError::NothingToForce)));
    authority.rotate(false, now, &mut next).unwrap();
    assert!(matches!(authority.rotate(false, now, &mut next), Err(RotateError::GoingOn)));
    assert_eq!(authority.rotate(true, now, &mut next).unwrap(), Step::Issuing);
    assert_eq!(authority.rotate(true, now, &mut next).unwrap(), Step::Dropped);
    assert_eq!(authority.roots().len(), 1);
}

#[test]
fn a_longer_life_of_an_earlier_setting_is_waited_for() {
    let (mut next, now) = (counter(), start());
    let authority = authority(&mut next);
    let document = kept::write(&authority).unwrap();
    let short = Duration::from_secs(600);
    let mut authority = kept::read(&document, "cluster.local", short, now, None, || panic!("made")).unwrap();
    authority.rotate(false, now, &mut next).unwrap();
    authority.rotate(true, now, &mut next).unwrap();
    assert_eq!(authority.tick(ready(0, 0), now + short, &mut next).unwrap(), None);
    assert_eq!(authority.tick(ready(0, 0), now + DAY, &mut next).unwrap(), Some(Step::Dropped));
}

#[test]
fn intermediates_renew_themselves_and_old_roots_rotate() {
    let (mut next, now) = (counter(), start());
    let mut authority = authority(&mut next);
    let (root, first) = (authority.roots()[0].certificate.clone(), authority.issuer().certificate.clone());
    assert_eq!(authority.tick(ready(0, 0), now + 240 * DAY, &mut next).unwrap(), None);
    let later = now + 244 * DAY;
    assert_eq!(authority.tick(ready(0, 0), later, &mut next).unwrap(), Some(Step::Intermediate));
    assert_ne!(authority.issuer().certificate, first);
    assert!(believes(&root, &leaf(&authority, later, &mut next), later));
    let late = now + 9 * 366 * DAY;
    assert_eq!(authority.tick(ready(0, 0), late, &mut next).unwrap(), Some(Step::Began));
}

#[test]
fn leaves_never_outlive_what_is_allowed_and_reach_back_for_slow_clocks() {
    let (mut next, now) = (counter(), start());
    let authority = authority(&mut next);
    let id = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    let spki = Key::generate().unwrap().to_spki();
    let mut issue = |asked: Option<u64>, behind: u64, now| {
        let (asked, behind) = (asked.map(Duration::from_secs), Duration::from_secs(behind));
        authority.issue(&id, &spki, asked, behind, now, next()).map(|issued| issued.leaf)
    };
    assert_eq!(issue(None, 0, now).unwrap().not_after, now + DAY);
    assert_eq!(issue(Some(60), 0, now).unwrap().not_after, now + Duration::from_secs(60));
    assert_eq!(issue(Some(u64::MAX), 0, now).unwrap().not_after, now + DAY);
    assert_eq!(issue(None, 7, now).unwrap().not_before, now - Duration::from_secs(67));
    let end = authority.issuer().certificate.not_after;
    assert_eq!(issue(None, 0, end - Duration::from_secs(60)).unwrap().not_after, end);
    assert!(matches!(issue(None, 0, end + DAY), Err(Error::IssuerExpired)));
}

#[test]
fn what_is_kept_is_not_used_for_another_mesh_nor_made_up_anew() {
    let mut next = counter();
    let document = kept::write(&authority(&mut next)).unwrap();
    let read = |document: &[u8], domain: &str| {
        kept::read(document, domain, DAY, start(), None, || panic!("nothing new is made")).map(drop)
    };
    assert!(matches!(read(&document, "example.org"), Err(ReadError::Domain { .. })));
    assert!(matches!(read(b"{", "cluster.local"), Err(ReadError::Form(_))));
    let newer = String::from_utf8(document).unwrap().replacen("\"version\": 1", "\"version\": 2", 1);
    assert!(matches!(read(newer.as_bytes(), "cluster.local"), Err(ReadError::Version(2))));
}

/// A directory as cert-manager writes it.
fn brought(offer: &Offer) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    bring(directory.path(), offer);
    directory
}

fn bring(directory: &std::path::Path, offer: &Offer) {
    let roots: String = offer.roots.iter().map(|root| root.certificate.to_pem()).collect();
    std::fs::write(directory.join("tls.crt"), offer.issuer.certificate.to_pem()).unwrap();
    std::fs::write(directory.join("tls.key"), offer.issuer.key.to_pem()).unwrap();
    std::fs::write(directory.join("ca.crt"), roots).unwrap();
}

#[test]
fn an_issuer_that_is_brought_goes_the_same_way_from_root_to_root() {
    let (mut next, now) = (counter(), start());
    let first = Offer::make("cluster.local", now, &mut next).unwrap();
    let second = Offer::make("cluster.local", now, &mut next).unwrap();
    let directory = brought(&first);
    let read = || brought::read(directory.path(), now).unwrap();
    let mut authority = Authority::new("cluster.local", read(), DAY);
    assert!(believes(&first.roots[0].certificate, &leaf(&authority, now, &mut next), now));
    assert_eq!(authority.adopt(read(), now).unwrap(), None, "nothing has changed");
    assert!(matches!(authority.rotate(false, now, &mut next), Err(RotateError::Brought)));
    let document = String::from_utf8(kept::write(&authority).unwrap()).unwrap();
    assert!(!document.contains("PRIVATE KEY"), "the operator's key is not copied");

    bring(directory.path(), &second);
    assert_eq!(authority.adopt(read(), now).unwrap(), Some(Step::Began));
    assert_eq!(authority.adopt(read(), now).unwrap(), None);
    assert!(believes(&first.roots[0].certificate, &leaf(&authority, now, &mut next), now));
    let now = now + SETTLE;
    assert_eq!(authority.tick(ready(1, 1), now, &mut next).unwrap(), Some(Step::Issuing));
    assert!(believes(&second.roots[0].certificate, &leaf(&authority, now, &mut next), now));
    assert_eq!(authority.roots().len(), 2);

    // Its key is not kept, so a restart goes on with what is in the directory, and with both roots.
    let document = kept::write(&authority).unwrap();
    let authority =
        kept::read(&document, "cluster.local", DAY, now, Some(read()), || panic!("made")).unwrap();
    assert_eq!(authority.roots().len(), 2);
    assert!(matches!(authority.rotation().unwrap().phase, Phase::Replacing { .. }));
}

#[test]
fn a_directory_that_makes_no_sense_is_refused_by_file() {
    let (mut next, now) = (counter(), start());
    let (good, other) = (
        Offer::make("cluster.local", now, &mut next).unwrap(),
        Offer::make("cluster.local", now, &mut next).unwrap(),
    );
    let told = |change: &dyn Fn(&std::path::Path)| {
        let directory = brought(&good);
        change(directory.path());
        let error = brought::read(directory.path(), now).unwrap_err();
        error.to_string().replace(&directory.path().display().to_string(), "")
    };
    let write = |name: &'static str, text: String| {
        move |directory: &std::path::Path| std::fs::write(directory.join(name), &text).unwrap()
    };
    assert_eq!(told(&|directory| std::fs::remove_file(directory.join("ca.crt")).unwrap()), "read /ca.crt");
    assert!(told(&write("tls.key", "x".into())).starts_with("/tls.key"));
    assert!(told(&write("tls.key", other.issuer.key.to_pem())).contains("is not the key"));
    assert!(told(&write("ca.crt", other.roots[0].certificate.to_pem())).contains("holds no root"));
    let authority = Authority::new("cluster.local", good.clone(), DAY);
    let id = "spiffe://cluster.local/ns/shop/sa/orders".parse().unwrap();
    let key = Key::generate().unwrap();
    let leaf = authority.issue(&id, &key.to_spki(), None, Duration::ZERO, now, next()).unwrap().leaf;
    let error = told(&|directory| {
        std::fs::write(directory.join("tls.crt"), leaf.to_pem()).unwrap();
        std::fs::write(directory.join("tls.key"), key.to_pem()).unwrap();
    });
    assert!(error.contains("may not issue"), "{error}");
}
