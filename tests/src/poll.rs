//! Waiting for a condition with a deadline: the only way a test waits.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Time between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Asks `look` until it answers `Ok`, for at most `deadline`.
///
/// # Errors
/// The last answer, with `what` and the time spent, once the deadline has passed.
pub async fn until<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(last) if started.elapsed() > deadline => {
                anyhow::bail!("{what}: not within {deadline:?}; last look: {last}")
            }
            Err(_) => tokio::time::sleep(STEP).await,
        }
    }
}

/// [`until`] for code without a runtime.
///
/// # Errors
/// As [`until`].
pub fn until_blocking<T, E: Display>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if started.elapsed() > deadline => {
                anyhow::bail!("{what}: not within {deadline:?}; last look: {last}")
            }
            Err(_) => std::thread::park_timeout(STEP),
        }
    }
}
