//! `weft-proxy wait`: ends when the sidecar beside it is ready.
//!
//! The start hook of a classic sidecar: the kubelet starts the app's containers when it has ended. In: the address of the
//! sidecar's `/ready`. Out: nothing, or the last thing it said. Surprise: plain sockets and no runtime; the image has no shell
//! to do it with, and the hook should cost nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// Time between two questions: what a pod's start may be late by.
const PERIOD: Duration = Duration::from_millis(100);

/// How long one question may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(1);

/// Bytes of an answer that are read.
const ANSWER_MAX: u64 = 4096;

/// Waits until a sidecar is ready.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:
  weft-proxy wait                  as the start hook of a classic sidecar does
  weft-proxy wait --timeout 10s")]
pub struct Args {
    /// Where the sidecar serves /ready
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    pub address: SocketAddr,
    /// How long to wait at most
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = timeout)]
    pub timeout: Duration,
}

fn timeout(text: &str) -> Result<Duration, String> {
    crate::config::duration(text).ok_or_else(|| "write a number and a unit: 500ms, 30s, 5m".into())
}

/// The sidecar is not ready, and why.
#[derive(Debug, thiserror::Error)]
#[error("the sidecar at {address} is not ready after {waited:?}: {said}")]
pub struct NotReady {
    address: SocketAddr,
    waited: Duration,
    said: String,
}

/// Waits.
///
/// # Errors
/// When the time is over.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the waiting, between two looks and with a deadline; no runtime runs yet"
)]
pub fn run(args: &Args) -> Result<(), NotReady> {
    let begun = Instant::now();
    loop {
        let said = match ask(args.address) {
            Ok(answer) if answer.split(' ').nth(1) == Some("200") => return Ok(()),
            Ok(answer) => answer.lines().last().unwrap_or_default().trim().to_owned(),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() >= args.timeout {
            return Err(NotReady { address: args.address, waited: args.timeout, said });
        }
        thread::sleep(PERIOD.min(args.timeout.saturating_sub(begun.elapsed())));
    }
}

fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME_MAX)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    stream.set_write_timeout(Some(ANSWER_TIME_MAX))?;
    write!(stream, "GET /ready HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
