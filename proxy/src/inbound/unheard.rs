//! Callers who are refused because the control plane has not said who may call (`WEFT_DEFAULT_ACCESS=deny`).
//!
//! In: each such connection. Out: a line in the log that says why and what to do, at most one a minute from each worker,
//! with how many there were since the last. Non-goal: refusing and counting, which is done where calls are judged.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::xds::{Directory, Lookup};
use weft_wire::xds::ListenerName;

/// Between two lines: callers may come by the thousand each second.
const INTERVAL: Duration = Duration::from_secs(60);

/// When it was last said.
#[derive(Debug, Default)]
pub(crate) struct Unheard {
    last: Cell<Option<Instant>>,
    since: Cell<u64>,
}

impl Unheard {
    /// Says it, if it is time.
    pub(crate) fn tell(&self, port: SocketAddr, directory: &Directory, now: Instant) {
        let Some(connections) = self.due(now) else { return };
        let status = directory.status();
        let why = match directory.lookup(&ListenerName::Inbound(port)) {
            Lookup::Absent => {
                "the control plane does not know this port: has it the pod, the Service or the registration?"
            }
            _ if status.last_nack.is_some() => {
                "this sidecar has refused a configuration: correct what last_nack names"
            }
            _ if status.connected_since.is_none() => "the control plane has not been reached: see last_error",
            _ => "the control plane has not answered within WEFT_DISCOVERY_TIMEOUT",
        };
        tracing::warn!(
            %port,
            connections,
            control_plane = status.control_plane,
            last_error = status.last_error,
            last_nack = status.last_nack,
            "refused as WEFT_DEFAULT_ACCESS=deny says: nobody has said who may call; {why}"
        );
    }

    /// The connections that a line is about, this one included; `None` when it is too early for one.
    fn due(&self, now: Instant) -> Option<u64> {
        let connections = self.since.get() + 1;
        self.since.set(connections);
        let early = self.last.get().is_some_and(|last| now.saturating_duration_since(last) < INTERVAL);
        (!early).then(|| {
            self.last.set(Some(now));
            self.since.replace(0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_once_a_minute_for_all() {
        let (unheard, start) = (Unheard::default(), Instant::now());
        let at = |seconds| unheard.due(start + Duration::from_secs(seconds));
        assert_eq!(
            [at(0), at(1), at(59), at(60), at(61), at(130)],
            [Some(1), None, None, Some(3), None, Some(2)]
        );
    }
}
