//! What the process takes from the machine: memory pages, file descriptors, connections.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::config::Config;

/// A proxied connection is two sockets.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// Descriptors for everything else: listeners, runtimes, control plane, admin, idle upstream connections.
const DESCRIPTORS_RESERVED: u64 = 512;

/// More than this for one direction is not what a sidecar is for; it bounds memory where the descriptor limit does
/// not.
const CONNECTIONS_MAX: u64 = 65_536;

/// Asks the kernel not to back small heaps with huge pages: with them, each thread's few kilobytes cost 2 MB.
pub(super) fn refuse_huge_pages() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "transparent huge pages stay on");
    }
}

/// Raises the soft limit of file descriptors to the hard one and returns it.
pub(super) fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// The bound for one worker and one direction.
pub(super) fn connections_per_worker(config: &Config, descriptors: u64) -> usize {
    let workers = config.workers.get();
    let total = config.connections_max.map_or_else(|| carried(descriptors), std::num::NonZeroUsize::get);
    total.div_ceil(workers).max(1)
}

/// Connections of one direction that so many descriptors carry, when the other direction has as many.
fn carried(descriptors: u64) -> usize {
    let connections = descriptors.saturating_sub(DESCRIPTORS_RESERVED) / DESCRIPTORS_PER_CONNECTION / 2;
    usize::try_from(connections.min(CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_bound_connections() {
        assert_eq!(carried(1024), 128);
        assert_eq!(carried(100), 0);
        assert_eq!(carried(1 << 20), 65_536);
    }
}
