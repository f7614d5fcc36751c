//! An identity in files: `tls.crt`, `tls.key`, `ca.crt`, as cert-manager lays them out.
//!
//! Either the operator lets the sidecar keep its identity there across restarts, or somebody else makes and renews it there
//! and the sidecar only reads. Invariant: what is read is checked like an authority's answer; files that do not belong
//! together (somebody is just writing them) are an error and change nothing, and are looked at again. Surprise: changes are
//! found by asking for size and times, because Kubernetes replaces such files by moving a link above them, which a
//! watch on the files would not see.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;

use super::answer::{self, Expected};
use super::bundle::{self, Bundle, TEXT_MAX};
use super::{Anchors, Leaf};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";

/// Why files are not an identity.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{} {what}", path.display())]
    Content { path: PathBuf, what: String },
}

/// What a directory holds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) leaf: Leaf,
    pub(super) roots: Bundle,
}

/// Reads a file of the operator's, within a bound.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Unusable> {
    let failed = |source| Unusable::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    let read = file.take(TEXT_MAX as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if read > TEXT_MAX {
        return Err(Unusable::Content { path: path.to_owned(), what: "is longer than 1 MiB".to_owned() });
    }
    Ok(bytes)
}

/// Reads a bundle.
pub(super) fn bundle(path: &Path) -> Result<Bundle, Unusable> {
    Bundle::parse(&read(path)?).map_err(|error| content(path, &error))
}

/// Reads and checks an identity. It may have expired.
///
/// # Errors
/// When something is missing, does not belong together, or is somebody else's.
pub(super) fn load(directory: &Path, expected: Expected<'_>, now: SystemTime) -> Result<Found, Unusable> {
    let [certificate, key, roots] = [CERTIFICATE, KEY, ROOTS].map(|name| directory.join(name));
    let roots = bundle(&roots)?;
    let chain = answer::chain(&read(&certificate)?).map_err(|error| content(&certificate, &error))?;
    let secret = PrivateKeyDer::from_pem_slice(&read(&key)?)
        // What the parser says might repeat what it read.
        .map_err(|_| content(&key, &"does not hold a private key in PEM form"))?;
    let secret = any_supported_type(&secret).map_err(|error| content(&key, &error))?;
    let public = secret.public_key().ok_or_else(|| content(&key, &"is of a kind that is not supported"))?;
    // An expired certificate is still one: its chain is judged at its last moment.
    let not_after =
        chain.first().and_then(|leaf| super::svid::validity(leaf).ok()).map_or(now, |(_, end)| end);
    let at = now.min(not_after);
    let anchors = Anchors { roots: RootCertStore::clone(&roots.roots()), pin: None };
    let checked = answer::check(chain, Arc::clone(&secret), public.as_ref(), &anchors, expected, at)
        .map_err(|error| content(&certificate, &error))?;
    Ok(Found { leaf: checked.leaf, roots })
}

/// Keeps an identity: readable by its owner only, each file replaced as a whole.
pub(super) fn store(
    directory: &Path,
    leaf: &Leaf,
    key_pem: Option<&str>,
    roots: &Bundle,
) -> Result<(), Unusable> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Unusable::Write { path, source }
    };
    if !directory.is_dir() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    }
    // The key first: a restart between two of them finds files that do not belong together, and asks anew.
    let certificates = key_pem.map(|_| bundle::pem(leaf.chain()));
    for (name, text) in [(KEY, key_pem), (CERTIFICATE, certificates.as_deref()), (ROOTS, Some(&*roots.pem()))]
    {
        let Some(text) = text else { continue };
        let path = directory.join(name);
        replace(&path, text.as_bytes()).map_err(failed(&path))?;
    }
    Ok(())
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_extension("tmp");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}

fn content(path: &Path, what: &dyn std::fmt::Display) -> Unusable {
    Unusable::Content { path: path.to_owned(), what: what.to_string() }
}

/// Files that may change.
#[derive(Debug)]
pub(super) struct Watched {
    paths: Vec<PathBuf>,
    seen: Option<Vec<Stamp>>,
}

type Stamp = Option<(u64, u64, i64, i64)>;

impl Watched {
    pub(super) fn file(path: &Path) -> Self {
        Self { paths: vec![path.to_owned()], seen: None }
    }

    pub(super) fn directory(directory: &Path) -> Self {
        Self { paths: [CERTIFICATE, KEY, ROOTS].map(|name| directory.join(name)).into(), seen: None }
    }

    /// Whether they are not what they were when this was last asked; the first time they are.
    pub(super) fn changed(&mut self) -> bool {
        let stamps: Vec<Stamp> = self.paths.iter().map(|path| stamp(path)).collect();
        let now = Some(stamps);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }

    /// What is there was no good: to be looked at again although it does not change.
    pub(super) fn again(&mut self) {
        self.seen = None;
    }
}

fn stamp(path: &Path) -> Stamp {
    let of = fs::metadata(path).ok()?;
    Some((of.ino(), of.size(), of.mtime(), of.mtime_nsec()))
}
