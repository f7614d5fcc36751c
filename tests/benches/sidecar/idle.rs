//! What an idle proxy and an idle keep-alive connection weigh.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;
use weft_tests::poll;

use crate::peer::Running;

const CONNECTIONS: usize = 3_000;
/// Memory counts as settled when it has not moved for this many looks, 20 ms apart: four seconds, because whoever
/// tidies up does so now and then, not at once.
const STEADY_LOOKS: u32 = 200;
/// Longest wait for memory to settle: allocators give pages back after a delay.
const SETTLE: Duration = Duration::from_secs(30);

pub(crate) struct Idle {
    rss: u64,
    added: i64,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "idle_rss_mb={:.1} idle_connections={CONNECTIONS} added_mb={:.1} bytes_per_connection={}",
            self.rss as f64 / 1e6,
            self.added as f64 / 1e6,
            self.added / CONNECTIONS as i64
        )
    }
}

/// Opens the connections, has one request answered on each, leaves them open and looks at the memory.
pub(crate) fn measure(running: &Running) -> anyhow::Result<Idle> {
    let before = settled(running)?;
    let mut open = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream =
            TcpStream::connect(("127.0.0.1", running.port)).context("open an idle connection")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer)?;
        anyhow::ensure!(buffer[..length].starts_with(b"HTTP/1.1 200"), "answer to an idle connection");
        open.push(stream);
    }
    let after = settled(running)?;
    Ok(Idle { rss: before, added: after as i64 - before as i64 })
}

fn settled(running: &Running) -> anyhow::Result<u64> {
    let mut steady = (0, 0);
    let last = poll::until_blocking("memory settles", SETTLE, || {
        let rss = running.rss_bytes().map_err(|error| error.to_string())?;
        steady = if rss == steady.0 { (rss, steady.1 + 1) } else { (rss, 0) };
        if steady.1 >= STEADY_LOOKS { Ok(rss) } else { Err(format!("{rss} bytes")) }
    });
    // A proxy that never stops moving is measured as it is at the end.
    last.or_else(|_| running.rss_bytes())
}
