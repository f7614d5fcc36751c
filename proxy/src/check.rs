//! Active health checks: asks the endpoints of clusters that are in use whether they are well.
//!
//! In: clusters' settings and endpoints ([`Circuits`]), answers of endpoints. Out: endpoints' availability, by the rules of
//! [`crate::balance::breaker::health`]. [`schedule`] says who is asked when; [`probe`] asks.
//!
//! Invariants: at most [`RUNNING_MAX`] checks run at a time and [`schedule::TASKS_MAX`] are scheduled; both say so in
//! `weft_limit_total`; every check has a deadline; an endpoint that has left is asked no more, and what it still answers
//! counts for nothing. A check is no call: it takes none of the cluster's limits and nothing records it. Surprise: each
//! check opens a connection of its own, so it also tells whether the endpoint still accepts. Runs on the admin thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::balance::Circuits;
use crate::balance::breaker::health::Checked;
use crate::record::{Limit, Telemetry};
use crate::tls::Mesh;
use schedule::{Id, Schedule};

mod probe;
mod schedule;

pub(crate) use probe::is_serving;

/// Checks that run at a time: descriptors and CPU that a sidecar can spare. With a timeout of one second, some thirty
/// endpoints that do not answer are found each second.
pub const RUNNING_MAX: usize = 32;

/// How soon an endpoint that the control plane adds is seen by checks when no traffic shows it before.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A check that begins this late counts as a bound that was reached.
const LATE: Duration = Duration::from_secs(1);

/// Checks until `stop`; those that are under way then end at once. `mark` is the sidecar's mark on its own sockets.
pub async fn run(
    circuits: Arc<Circuits>,
    telemetry: Arc<Telemetry>,
    mesh: Arc<Mesh>,
    mark: Option<u32>,
    stop: impl Future<Output = ()>,
) {
    let mut stop = std::pin::pin!(stop);
    let mut schedule = Schedule::default();
    let mut running: JoinSet<(Id, Checked)> = JoinSet::new();
    loop {
        let now = Instant::now();
        telemetry.limits_reached(Limit::Checks, schedule.look(&circuits.all(), now, fastrand::f64));
        while running.len() < RUNNING_MAX
            && let Some(job) = schedule.next(now)
        {
            if now.saturating_duration_since(job.due) > LATE {
                telemetry.limit(Limit::Checks);
            }
            let mesh = Arc::clone(&mesh);
            running.spawn(async move { (job.id, probe::ask(&job, mark, &mesh).await) });
        }
        let room = running.len() < RUNNING_MAX;
        // Whoever is not checked need not be looked at: a cluster that will be is told of.
        let look = (!schedule.is_empty()).then(|| now + LOOK_EVERY);
        let wake = schedule.due().filter(|_| room).into_iter().chain(look).min();
        tokio::select! {
            () = &mut stop => return,
            () = circuits.clusters_changed() => {}
            () = until(wake) => {}
            Some(ended) = running.join_next(), if !running.is_empty() => {
                // A check that panicked would be a bug of ours; its endpoint would not be asked again until it changes.
                let Ok((id, checked)) = ended else { continue };
                let now = Instant::now();
                telemetry.limits_reached(Limit::Checks, schedule.look(&circuits.all(), now, fastrand::f64));
                schedule.finish(id, checked, now, fastrand::f64());
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
