//! Where keys and tokens outlive the program: a directory, or whatever else can keep two documents.
//!
//! In: documents as bytes. Out: the same bytes, with the version by which the next writer says what they replace.
//!
//! Invariant: what was written over an older version than the one that is there is refused ([`WriteError::Conflict`]), so that
//! of two programs that share a place one wins and the other takes over what it wrote. Surprise: a directory has one user and
//! no versions; two control planes must not share it.

use std::fmt;

use super::disk::Disk;

/// Why a place does not work, with its causes.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// Keys, certificates and the phase of a rotation.
    Authority,
    /// Join tokens.
    Tokens,
}

/// Which version of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(pub Box<str>);

/// A document as it is kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its bytes. They hold secrets.
    pub bytes: Vec<u8>,
    /// Which version this is.
    pub version: Version,
}

/// Never the bytes.
impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("version", &self.version).finish_non_exhaustive()
    }
}

/// Why a document was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Somebody else wrote meanwhile.
    #[error("somebody else has changed it meanwhile")]
    Conflict,
    /// The place does not work.
    #[error("it cannot be written")]
    Failed(#[source] Failure),
}

/// A place.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// Where a document is, for people.
    fn place(&self, document: Document) -> String;

    /// Reads a document; `None` if there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read, or that is not known.
    async fn read(&self, document: Document) -> Result<Option<Kept>, Failure>;

    /// Writes a document in place of the version `over`; `None`: it must not be there yet. `public` is what everybody may
    /// know of it, for people; nothing reads it back.
    ///
    /// # Errors
    /// When it is not written.
    async fn write(
        &self,
        document: Document,
        bytes: Vec<u8>,
        public: Option<String>,
        over: Option<&Version>,
    ) -> Result<Version, WriteError>;

    /// Completes when somebody else may have written. Never where nobody else does.
    async fn changed(&self);
}

const AUTHORITY: &str = "authority.json";
const TOKENS: &str = "tokens.json";
/// The trust bundle for people and for sidecars that are given it as a file.
const BUNDLE: &str = "bundle.pem";

impl Document {
    /// The file it is in.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Authority => AUTHORITY,
            Self::Tokens => TOKENS,
        }
    }
}

#[tonic::async_trait]
impl Store for Disk {
    fn place(&self, document: Document) -> String {
        self.path(document.file()).display().to_string()
    }

    async fn read(&self, document: Document) -> Result<Option<Kept>, Failure> {
        let disk = self.clone();
        let bytes = tokio::task::spawn_blocking(move || Self::read(&disk, document.file())).await??;
        Ok(bytes.map(|bytes| Kept { bytes, version: unversioned() }))
    }

    async fn write(
        &self,
        document: Document,
        bytes: Vec<u8>,
        public: Option<String>,
        _over: Option<&Version>,
    ) -> Result<Version, WriteError> {
        let disk = self.clone();
        let writing = tokio::task::spawn_blocking(move || {
            Self::write(&disk, document.file(), &bytes)?;
            if let Some(public) = public
                && let Err(error) = Self::write(&disk, BUNDLE, public.as_bytes())
            {
                tracing::warn!(file = BUNDLE, %error, "cannot be written; nothing but people and new sidecars read it");
            }
            Ok::<(), std::io::Error>(())
        });
        match writing.await {
            Ok(Ok(())) => Ok(unversioned()),
            Ok(Err(error)) => Err(WriteError::Failed(error.into())),
            Err(error) => Err(WriteError::Failed(error.into())),
        }
    }

    async fn changed(&self) {
        std::future::pending().await
    }
}

fn unversioned() -> Version {
    Version("".into())
}
