//! What may be in progress at a time.

use super::*;
use crate::balance::breaker::limits::{Retries, Share};

#[test]
fn limits_refuse_what_is_too_much_and_count_it() {
    let mut breaking = Settings::default();
    breaking.limits.max_requests = 2;
    breaking.limits.max_pending_requests = 1;
    breaking.limits.max_connections = 1;
    breaking.limits.retries = Retries::Max(1);
    let stage = Stage::new(breaking, 1);
    let cluster = &stage.cluster;
    let requests = [cluster.admit(stage.now), cluster.admit(stage.now)].map(|request| request.expect("room"));
    assert_eq!(cluster.admit(stage.now).err(), Some(Reason::ConcurrencyLimited));
    let (pending, retry, connection) = (cluster.pending(), cluster.retry(), cluster.connection());
    assert!(pending.is_some() && retry.is_some() && connection.is_some());
    assert!(cluster.pending().is_none() && cluster.retry().is_none() && cluster.connection().is_none());
    let first = cluster.first_connection().expect("the first of an endpoint is always allowed");
    assert_eq!(Gauge::ALL.map(|gauge| cluster.held(gauge)), [2, 1, 2, 1]);
    assert_eq!(Gauge::ALL.map(|gauge| cluster.core().refused(gauge)), [1; 4]);
    drop((requests, pending, retry, connection, first));
    assert_eq!(Gauge::ALL.map(|gauge| cluster.held(gauge)), [0; 4]);
    assert!(cluster.admit(stage.now).is_ok());
}

#[test]
fn a_budget_grows_with_what_is_in_progress() {
    let mut breaking = Settings::default();
    let share = Share::percent(20.0).expect("a share");
    breaking.limits.retries = Retries::Budget { share, min_concurrency: 1 };
    let stage = Stage::new(breaking, 1);
    let retries = || {
        let mut held = vec![];
        while let Some(retry) = stage.cluster.retry() {
            held.push(retry);
        }
        held.len()
    };
    assert_eq!(retries(), 1);
    let requests: Vec<_> = (0..30).map(|_| stage.cluster.admit(stage.now).expect("room")).collect();
    let waiting: Vec<_> = (0..20).map(|_| stage.cluster.pending().expect("room")).collect();
    assert_eq!(retries(), 10, "a fifth of fifty");
    drop((requests, waiting));
    assert_eq!(retries(), 1);
}
