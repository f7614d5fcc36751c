//! Whether the mesh is whole again after a start, or after the lead came over.
//!
//! In: how long ago that was, how many sidecars are connected, how many pods have one. Out: whether what the connected ones say
//! is what the mesh says. Pure. Right after a fail-over nobody is connected, and nobody of nobody disagrees: a rotation would
//! go on, and every route would run everywhere.
//!
//! Surprise: it does not wait for ever. A pod whose sidecar never comes must not hold up a rotation of the root.

use std::time::Duration;

/// How long sidecars need at least: their longest back-off (10 s), and some.
pub const WARM_UP: Duration = Duration::from_secs(12);
/// How long those are waited for that have a sidecar and are not here: one that has to find out by itself that the control plane
/// died with its node (15 s) before it tries again (16 s with the attempt that is under way) at an address that leads elsewhere
/// only a few seconds later.
pub const COME_BACK: Duration = Duration::from_secs(45);

/// Whether all are here of whom something could be concluded. `expected` is how many pods are known to have a sidecar; of
/// programs outside of pods nobody knows how many there are.
#[must_use]
pub fn is_whole(since: Duration, connected: usize, expected: usize) -> bool {
    since >= COME_BACK || since >= WARM_UP && connected >= expected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_concluded_from_those_who_are_not_here_yet() {
        let second = Duration::from_secs(1);
        assert!(!is_whole(WARM_UP - second, 42, 42), "programs outside of pods may be on their way");
        assert!(is_whole(WARM_UP, 42, 42) && is_whole(WARM_UP, 43, 42));
        assert!(!is_whole(WARM_UP, 0, 42) && !is_whole(COME_BACK - second, 41, 42));
        assert!(is_whole(COME_BACK, 0, 42), "a sidecar that never comes is not waited for");
        assert!(is_whole(WARM_UP, 0, 0));
    }
}
