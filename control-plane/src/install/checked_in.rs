//! Files of the repository that are made from types: compared with what the types say, and written again on demand.

use std::fs;
use std::path::{Path, PathBuf};

/// Asks for the files to be written.
const RENEW: &str = "WEFT_RENEW";

/// What writes the files that this crate makes.
#[cfg(test)]
pub(crate) const OURS: &str = "cargo test -p weft-control-plane --lib install";

/// `k8s/` of the repository.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s")
}

/// Writes the files if that is asked for. For tests.
///
/// # Panics
/// Unless the files are what they should be. `command` is what writes them again.
pub fn compare(files: &[(&str, String)], command: &str) {
    let renew = std::env::var_os(RENEW).is_some();
    let mut stale = Vec::new();
    for (name, text) in files {
        let path = directory().join(name);
        if renew {
            let parent = path.parent().expect("a file is in a directory");
            fs::create_dir_all(parent).expect("the directory can be made");
            fs::write(&path, text).expect("the file can be written");
        }
        if fs::read_to_string(&path).ok().as_ref() != Some(text) {
            stale.push(*name);
        }
    }
    assert!(
        stale.is_empty(),
        "not what the types say: {stale:?} in k8s/; write them again with\n    {RENEW}=1 {command}"
    );
}
