//! Where keys and tokens lie: files that only their owner reads, each written whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Largest file that is read: 10,000 tokens take about 4 MB.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A directory of secrets.
#[derive(Debug, Clone)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Makes the directory if need be; nobody else may look into it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(directory: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        std::fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
        Ok(Self { directory })
    }

    /// Where a file is.
    #[must_use]
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Reads a file; `None` if there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        read(&self.path(name))
    }

    /// Writes a file in place of the old one. When this returns, it is on the disk.
    ///
    /// # Errors
    /// When it cannot; the old one is still there then.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.directory.join(format!(".{name}.tmp"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&unfinished, self.path(name))?;
        File::open(&self.directory)?.sync_all()
    }
}

/// Reads a file of bounded size; `None` if there is none.
///
/// # Errors
/// When it is there and cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if read as u64 > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {BYTES_MAX} bytes")));
    }
    Ok(Some(bytes))
}
