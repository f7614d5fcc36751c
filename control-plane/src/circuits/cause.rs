//! Causes in words that need no manual.

use super::{Sighting, State};

/// Why the circuit of `sighting` is (or last was) not closed, as part of a sentence; `None` when it never was.
pub(super) fn text(sighting: &Sighting) -> Option<String> {
    let cause = sighting.cause.as_deref()?;
    let in_a_row = |what: &str| match sighting.threshold {
        Some(count) => format!("{count} {what} in a row"),
        None => format!("{what} in a row"),
    };
    // Counts go on after the fact; they explain the cause only while it stands.
    let share = |part: u64, what: &str| match sighting.calls {
        calls if calls > 0 && part > 0 && sighting.state != State::Closed => {
            format!("{} % of calls {what} ({part} of {calls})", percent(part, calls))
        }
        _ => match sighting.threshold {
            Some(threshold) => format!("{threshold} % of calls or more {what}"),
            None => format!("too many calls {what}"),
        },
    };
    let limit = |what: &str| match sighting.threshold {
        Some(max) => format!("the limit of {max} {what} is reached"),
        None => format!("the limit of {what} is reached"),
    };
    Some(match cause {
        "consecutive_5xx" => in_a_row("server errors"),
        "consecutive_gateway_failure" => in_a_row("gateway errors (502, 503 or 504)"),
        "consecutive_local_origin_failure" => in_a_row("failures to connect, resets or timeouts"),
        "failure_percentage" | "error_ratio" => share(sighting.errors, "failed"),
        "failure_percentage_local_origin" => share(sighting.errors, "got no answer"),
        "slow_calls" => share(sighting.slow, "were too slow"),
        "probe_failed" => "a probe of the half-open circuit failed".to_owned(),
        "success_rate" => "it fails far more often than the other endpoints".to_owned(),
        "success_rate_local_origin" => {
            "it gives no answer far more often than the other endpoints".to_owned()
        }
        "health_check" => "its health checks fail".to_owned(),
        "max_connections" => limit("connections"),
        "max_pending_requests" => limit("waiting requests"),
        "max_requests" => limit("concurrent requests"),
        "max_retries" => limit("concurrent retries"),
        // A newer sidecar's word reads well enough without its underscores.
        other => other.replace('_', " "),
    })
}

fn percent(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(share.min(100)).unwrap_or(100)
}
