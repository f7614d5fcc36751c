//! A tar archive (ustar, POSIX.1-1988), written whole. Pure.
//!
//! In: names and contents. Out: bytes. Invariant: every part is a multiple of 512 bytes, and two empty ones end it.

/// Everything is a multiple of this.
const BLOCK: usize = 512;

/// An archive of `files`; a name has at most 255 bytes, and is cut if it has more.
pub(super) fn archive(files: &[(String, Vec<u8>)], unix_seconds: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in files {
        bytes.extend_from_slice(&header(name, content.len(), unix_seconds));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

fn header(name: &str, length: usize, unix_seconds: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let (prefix, name) = split(name);
    put(&mut header, 0, 100, name.as_bytes());
    put(&mut header, 100, 8, b"0000600\0");
    put(&mut header, 108, 8, b"0000000\0");
    put(&mut header, 116, 8, b"0000000\0");
    put(&mut header, 124, 12, format!("{length:011o}\0").as_bytes());
    put(&mut header, 136, 12, format!("{unix_seconds:011o}\0").as_bytes());
    // The sum is taken as if its own field were blank.
    put(&mut header, 148, 8, b"        ");
    put(&mut header, 156, 1, b"0");
    put(&mut header, 257, 8, b"ustar\x0000");
    put(&mut header, 345, 155, prefix.as_bytes());
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut header, 148, 8, format!("{sum:06o}\0 ").as_bytes());
    header
}

fn put(header: &mut [u8; BLOCK], at: usize, length: usize, bytes: &[u8]) {
    let length = bytes.len().min(length);
    header[at..at + length].copy_from_slice(&bytes[..length]);
}

/// A long name is written in two parts, at a slash.
fn split(name: &str) -> (&str, &str) {
    if name.len() <= 100 {
        return ("", name);
    }
    let fits = |(at, _): &(usize, &str)| *at <= 155 && name.len() - at - 1 <= 100;
    name.match_indices('/').find(fits).map_or(("", name), |(at, _)| (&name[..at], &name[at + 1..]))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let long = format!("report/logs/{}/{}.log", "p".repeat(70), "c".repeat(40));
        let files = [
            ("report/README.txt".to_owned(), b"hello\n".to_vec()),
            (long.clone(), vec![b'x'; 1500]),
            ("report/empty".to_owned(), Vec::new()),
        ];
        let path = directory.path().join("a.tar");
        std::fs::write(&path, archive(&files, 1_800_000_000)).expect("written");
        let run =
            |flags: &str| Command::new("tar").arg(flags).arg(&path).arg("-C").arg(directory.path()).output();
        let listed = run("-tf").expect("tar runs");
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        assert_eq!(
            String::from_utf8_lossy(&listed.stdout),
            format!("report/README.txt\n{long}\nreport/empty\n")
        );
        assert!(run("-xf").expect("tar runs").status.success());
        assert_eq!(std::fs::read(directory.path().join(&long)).expect("there").len(), 1500);
    }
}
