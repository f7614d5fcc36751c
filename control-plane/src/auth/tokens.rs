//! Tokens of the API: a file that says whose they are, and what their bearers may do.
//!
//! In: a YAML list, one token a line, each as the SHA-256 of the token. Out: [`Tokens::holder`]. Whoever reads the file
//! therefore cannot sign in with it.
//!
//! Invariants: a file that cannot be read, or that everybody on the machine can read, never replaces what was read before,
//! and ends the start of the program; a token that left the file is refused from the next look at it, [`PERIOD`] later.
//! Surprise: the digest is neither salted nor slow. That is for passwords, which can be guessed; [`mint`] makes 256
//! random bits. All digests are compared, each in constant time, so that the time tells nothing about any of them.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use jiff::Timestamp;
use prometheus::{IntCounter, Registry};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tracing::{error, info};

use super::{How, Principal, Role};

/// How often the file is looked at. Not by notification: a Secret is mounted through links that are swapped above it.
pub const PERIOD: Duration = Duration::from_secs(2);
/// People and programs with a token of their own. More than a team has; each look-up compares all.
const ENTRIES_MAX: usize = 1_000;
const FILE_BYTES_MAX: u64 = 1 << 20;
const NAME_CHARS_MAX: usize = 100;
/// What a token begins with, so that scanners for leaked secrets and people know one when they see it.
const PREFIX: &str = "weft_api_";
/// Random bytes in a token.
const SECRET_BYTES: usize = 32;

/// SHA-256 of a token.
pub type Digest = [u8; 32];

/// The digest of `token`.
pub(super) fn digest(token: &[u8]) -> Digest {
    Sha256::digest(token).into()
}

/// The file's current content.
#[derive(Debug)]
pub struct Tokens {
    path: PathBuf,
    table: RwLock<Arc<Table>>,
    errors: IntCounter,
}

impl Tokens {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(path: &Path, registry: &Registry) -> anyhow::Result<Self> {
        let table =
            Table::read(path).with_context(|| format!("read the API's tokens in {}", path.display()))?;
        info!(file = %path.display(), tokens = table.entries.len(), "the API asks for a token");
        let errors = IntCounter::new(
            "weft_api_tokens_reload_errors_total",
            "Looks at the file of API tokens that failed; the tokens of before stay.",
        );
        let errors = errors.expect("a valid name");
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(errors.clone())));
        Ok(Self { path: path.to_owned(), table: RwLock::new(Arc::new(table)), errors })
    }

    /// Whose token has `digest`, if anybody's still.
    pub fn holder(&self, digest: &Digest, now: Timestamp) -> Option<Principal> {
        let table = Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner));
        table.find(digest, now)
    }

    /// Looks at the file again and again.
    pub async fn follow(&self) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut complaint = String::new();
        loop {
            ticks.tick().await;
            let path = self.path.clone();
            // Only a panic or the end of the runtime fails it.
            let Ok(read) = tokio::task::spawn_blocking(move || Table::read(&path)).await else { return };
            match read {
                Ok(table) => {
                    complaint.clear();
                    self.replace(table);
                }
                Err(cause) => {
                    self.errors.inc();
                    let text = format!("{cause:#}");
                    // Said once, not every two seconds.
                    if text != complaint {
                        error!(file = %self.path.display(), error = text, "the API's tokens stay as they were");
                        complaint = text;
                    }
                }
            }
        }
    }

    fn replace(&self, table: Table) {
        let mut current = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if **current != table {
            info!(file = %self.path.display(), tokens = table.entries.len(), "the API's tokens have changed");
            *current = Arc::new(table);
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Table {
    entries: Vec<Entry>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    name: Arc<str>,
    role: Role,
    sha256: Digest,
    expires: Option<Timestamp>,
}

/// A line of the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    role: Role,
    sha256: String,
    expires: Option<Timestamp>,
}

impl Table {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path)?;
        let data = file.metadata()?;
        ensure!(data.is_file(), "it is not a file");
        if data.permissions().mode() & 0o007 != 0 {
            bail!(
                "everybody on this machine may read or change it; take that away (chmod o-rwx {}; for a Secret: \
                 defaultMode: 0440 and an fsGroup)",
                path.display()
            );
        }
        let mut text = String::new();
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        ensure!(text.len() as u64 <= FILE_BYTES_MAX, "it is longer than {FILE_BYTES_MAX} bytes");
        Self::parse(&text)
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let lines: Option<Vec<Line>> = serde_yaml::from_str(text)?;
        let lines = lines.unwrap_or_default();
        ensure!(lines.len() <= ENTRIES_MAX, "{} tokens are more than {ENTRIES_MAX}", lines.len());
        let mut entries: Vec<Entry> = Vec::with_capacity(lines.len());
        for (number, line) in (1..).zip(lines) {
            let entry = Entry::check(line).with_context(|| format!("token {number}"))?;
            let twin = entries.iter().position(|other| other.sha256 == entry.sha256);
            if let Some(twin) = twin {
                bail!("token {number}: it is the same as token {}, so it has two owners", twin + 1);
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    fn find(&self, digest: &Digest, now: Timestamp) -> Option<Principal> {
        let mut found = None;
        for entry in &self.entries {
            if verify_slices_are_equal(&entry.sha256, digest).is_ok() {
                found = Some(entry);
            }
        }
        let valid = found.filter(|entry| entry.expires.is_none_or(|end| now < end))?;
        Some(Principal { name: Arc::clone(&valid.name), role: valid.role, how: How::Token, session: false })
    }
}

impl Entry {
    fn check(line: Line) -> anyhow::Result<Self> {
        let Line { name, role, sha256, expires } = line;
        check_name(&name)?;
        let sha256 = digest_of_hex(&sha256);
        let sha256 = sha256.with_context(|| format!("the sha256 of {name} is not 64 hexadecimal digits"))?;
        Ok(Self { name: name.into(), role, sha256, expires })
    }
}

fn check_name(name: &str) -> anyhow::Result<()> {
    let usable = (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && !name.contains(char::is_control);
    ensure!(usable, "a name has 1 to {NAME_CHARS_MAX} characters, and none of them is a control character");
    Ok(())
}

fn digest_of_hex(text: &str) -> Option<Digest> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

/// A new token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Minted {
    /// For its bearer; nobody can compute it from the line.
    pub token: String,
    /// For the file.
    pub line: String,
}

/// Makes a token for `name` from 32 random bytes.
///
/// # Errors
/// When the name cannot be one.
pub fn mint(
    name: &str,
    role: Role,
    expires: Option<Timestamp>,
    secret: &[u8; SECRET_BYTES],
) -> anyhow::Result<Minted> {
    check_name(name)?;
    let token = format!("{PREFIX}{}", hex(secret));
    let digest = hex(&digest(token.as_bytes()));
    // JSON's strings are YAML's, so that no name reaches out of its place.
    let name = serde_json::to_string(name)?;
    let expires = expires.map(|at| format!(", expires: {at}")).unwrap_or_default();
    // In quotes: digits alone, or digits around an e, would be a number.
    let line = format!("- {{name: {name}, role: {}, sha256: \"{digest}\"{expires}}}", role.word());
    Ok(Minted { token, line })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    fn minted(name: &str, role: Role, expires: Option<Timestamp>, seed: u8) -> Minted {
        mint(name, role, expires, &[seed; SECRET_BYTES]).expect("a good name")
    }

    #[test]
    fn what_is_minted_is_known_until_it_expires() {
        let alice = minted("alice", Role::Viewer, None, 1);
        let bob = minted("bob: \"}, the builder", Role::Operator, Some(at(1_000)), 2);
        let table = Table::parse(&format!("# people\n{}\n{}\n", alice.line, bob.line)).expect("well formed");

        let found = table.find(&digest(alice.token.as_bytes()), at(5_000)).expect("known");
        assert_eq!((&*found.name, found.role, found.how), ("alice", Role::Viewer, How::Token));
        let found = table.find(&digest(bob.token.as_bytes()), at(999)).expect("known");
        assert_eq!((&*found.name, found.role), ("bob: \"}, the builder", Role::Operator));
        assert_eq!(table.find(&digest(bob.token.as_bytes()), at(1_000)), None, "expired");
        assert_eq!(table.find(&digest(b"weft_api_00"), at(0)), None);
        assert!(alice.token.starts_with(PREFIX) && !alice.line.contains(&alice.token));
    }

    #[test]
    fn a_file_that_is_wrong_is_refused_with_the_place() {
        let alice = minted("alice", Role::Viewer, None, 1).line;
        for (text, expected) in [
            (format!("{alice}\n{alice}"), "token 2: it is the same as token 1"),
            (format!("{alice}\n- {{name: bob, role: viewer, sha256: abc}}"), "token 2: "),
            ("- {name: bob, role: admin, sha256: abc}".to_owned(), "role"),
            ("- {name: bob, role: viewer, sha256: abc, expire: 2027-01-01}".to_owned(), "expire"),
            ("- {name: bob, role: viewer, sha256: abc, expires: soon}".to_owned(), "expires"),
            (alice.replace("\"alice\"", "\"\""), "1 to 100 characters"),
            ("alice".to_owned(), "expected a sequence"),
        ] {
            let error = Table::parse(&text).expect_err(&text);
            assert!(format!("{error:#}").contains(expected), "{text}: {error:#}");
        }
        for empty in ["", "# nobody yet\n", "[]"] {
            assert_eq!(Table::parse(empty).expect("nobody"), Table::default(), "{empty:?}");
        }
    }

    #[test]
    fn a_file_that_everybody_can_read_is_refused() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), minted("alice", Role::Viewer, None, 1).line).expect("written");
        let mode = |mode| {
            std::fs::set_permissions(file.path(), Permissions::from_mode(mode)).expect("changed");
            Table::read(file.path())
        };
        for good in [0o600, 0o640, 0o440] {
            assert_eq!(mode(good).expect("good").entries.len(), 1, "{good:o}");
        }
        for bad in [0o644, 0o604, 0o602] {
            let error = mode(bad).expect_err("everybody can read it").to_string();
            assert!(error.contains("chmod o-rwx"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_file_is_followed_and_a_bad_one_changes_nothing() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (alice, bob) = (minted("alice", Role::Viewer, None, 1), minted("bob", Role::Operator, None, 2));
        std::fs::write(file.path(), &alice.line).expect("written");
        let tokens = Tokens::open(file.path(), &Registry::new()).expect("good");
        let knows = |one: &Minted| tokens.holder(&digest(one.token.as_bytes()), at(0)).is_some();
        tokio::time::pause();
        let follow = tokens.follow();
        let story = async {
            let until = async |wanted: &dyn Fn() -> bool| {
                let looking = async {
                    while !wanted() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(600), looking).await.expect("it never came");
            };
            assert!(knows(&alice) && !knows(&bob));
            std::fs::write(file.path(), "{").expect("written");
            until(&|| tokens.errors.get() > 0).await;
            assert!(knows(&alice), "what was good stays");
            std::fs::write(file.path(), &bob.line).expect("written");
            until(&|| knows(&bob)).await;
            assert!(!knows(&alice), "who left the file is out");
        };
        tokio::select! {
            () = follow => panic!("it goes on for ever"),
            () = story => {}
        }
    }
}
