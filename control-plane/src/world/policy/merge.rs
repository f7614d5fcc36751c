//! Policies laid over each other, field by field.

use std::collections::BTreeMap;

use super::super::route::Created;
use super::super::spec::ObjectName;
use super::{Effective, PolicyId, PolicySpec, RetryBudget, Settings};

/// How specific an attachment is; the later wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::world) enum Level {
    /// To a service.
    Service,
    /// To a port of it.
    Port,
    /// To a route.
    Route,
    /// To a rule of it.
    Rule,
}

/// A policy, and how it is attached.
#[derive(Clone, Copy)]
pub(in crate::world) struct Layer<'a> {
    pub(in crate::world) level: Level,
    pub(in crate::world) policy: &'a PolicySpec,
}

/// A policy whose field does not count because another one at the same level sets it too, or what it excludes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::world) struct Conflict {
    pub(in crate::world) loser: PolicyId,
    pub(in crate::world) winner: PolicyId,
    pub(in crate::world) field: &'static str,
    /// What the winner set: the same field, or one that leaves no place for it.
    pub(in crate::world) by: &'static str,
}

/// Who comes first among equals: the older, then the first by name. What has no age is younger than what has one.
fn seniority(policy: &PolicySpec) -> (bool, Created, &ObjectName) {
    (policy.created.is_none(), policy.created, &policy.id.name)
}

/// Lays policies over each other, and all of them over `base`, which was merged before or is a rule's own word.
pub(in crate::world) fn merge(base: &Effective, mut layers: Vec<Layer<'_>>) -> (Effective, Vec<Conflict>) {
    layers.sort_by(|a, b| b.level.cmp(&a.level).then_with(|| seniority(a.policy).cmp(&seniority(b.policy))));
    let mut merger = Merger::default();
    for (place, layer) in layers.iter().enumerate() {
        merger.layer(Some((place, *layer)), &layer.policy.settings);
    }
    merger.base = Some(base);
    merger.layer(None, &base.settings);
    merger.bound_retries_once();
    (Effective { settings: merger.settings, origins: merger.origins }, merger.conflicts)
}

#[derive(Default)]
struct Merger<'a> {
    settings: Settings,
    origins: BTreeMap<&'static str, PolicyId>,
    /// Of each field the layer that set it, counted from the first; nothing for those of the base.
    places: BTreeMap<&'static str, (usize, Level)>,
    conflicts: Vec<Conflict>,
    base: Option<&'a Effective>,
    /// The layer that is being laid below the others; `None` is the base.
    current: Option<(usize, Layer<'a>)>,
}

macro_rules! fields {
    ($merger:ident, $from:ident: $($path:literal $($field:ident).+),+ $(,)?) => {
        $(
            let mut into = std::mem::take(&mut $merger.settings.$($field).+);
            $merger.field($path, &mut into, &$from.$($field).+);
            $merger.settings.$($field).+ = into;
        )+
    };
}

impl<'a> Merger<'a> {
    fn layer(&mut self, layer: Option<(usize, Layer<'a>)>, from: &Settings) {
        self.current = layer;
        fields!(self, from:
            "endpoints.consecutiveFailures" endpoints.consecutive_failures,
            "endpoints.consecutiveGatewayFailures" endpoints.consecutive_gateway_failures,
            "endpoints.consecutiveLocalOriginFailures" endpoints.consecutive_local_origin_failures,
            "endpoints.interval" endpoints.interval,
            "endpoints.baseEjectionTime" endpoints.base_ejection_time,
            "endpoints.maxEjectionTime" endpoints.max_ejection_time,
            "endpoints.ejectionTimeJitter" endpoints.ejection_time_jitter,
            "endpoints.maxEjectionPercent" endpoints.max_ejection_percent,
            "endpoints.failurePercentage" endpoints.failure_percentage,
            "endpoints.successRate" endpoints.success_rate,
            "service.window" circuit.window,
            "service.minimumCalls" circuit.minimum_calls,
            "service.errorPercent" circuit.error_percent,
            "service.slowCall" circuit.slow_call,
            "service.openFor" circuit.open_for,
            "service.openForMax" circuit.open_for_max,
            "service.halfOpenProbes" circuit.half_open_probes,
            "limits.maxConnections" limits.max_connections,
            "limits.maxPendingRequests" limits.max_pending_requests,
            "limits.maxRequests" limits.max_requests,
            "limits.maxRetries" limits.max_retries,
        );
        fields!(self, from:
            "timeouts.request" timeouts.request,
            "timeouts.backendRequest" timeouts.backend_request,
            "timeouts.connect" timeouts.connect,
            "retry.attempts" retry.attempts,
            "retry.retryOn" retry.on,
            "retry.statusCodes" retry.statuses,
            "retry.backoff" retry.backoff,
            "retry.backoffMax" retry.backoff_max,
            "retry.perTryTimeout" retry.per_try_timeout,
            "retryBudget.percent" retry_budget.percent,
            "retryBudget.minConcurrency" retry_budget.min_concurrency,
            "loadBalancer.type" balancer.algorithm,
            "loadBalancer.hashOn" balancer.hash_on,
            "loadBalancer.slowStart" balancer.slow_start,
            "loadBalancer.panicThreshold" balancer.panic_threshold,
            "loadBalancer.zonePreference" balancer.zone_preference,
            "healthCheck" health_check,
            "rateLimit" rate_limit,
            "concurrency" concurrency,
            "fault" fault,
            "mirror" mirror,
        );
    }

    fn field<T: Clone>(&mut self, path: &'static str, into: &mut Option<T>, from: &Option<T>) {
        let Some(value) = from else { return };
        if into.is_none() {
            *into = Some(value.clone());
            // What a rule says inline has no policy behind it.
            let origin = match self.current {
                Some((_, layer)) => Some(&layer.policy.id),
                None => self.base.and_then(|base| base.origins.get(path)),
            };
            self.origins.extend(origin.map(|origin| (path, origin.clone())));
            self.places.extend(self.current.map(|(place, layer)| (path, (place, layer.level))));
            return;
        }
        // Overridden by something more specific: that is what levels are for. By an equal: that is a conflict.
        if let (Some((_, layer)), Some(winner)) = (self.current, self.origins.get(path))
            && self.places.get(path).is_some_and(|(_, level)| *level == layer.level)
            && *winner != layer.policy.id
        {
            let loser = layer.policy.id.clone();
            self.conflicts.push(Conflict { loser, winner: winner.clone(), field: path, by: path });
        }
    }

    /// Retries are bounded by a number or by a budget: xDS knows no both. The more specific counts, as everywhere, and among
    /// equals the older; of the base the budget, which is what xDS lets win.
    fn bound_retries_once(&mut self) {
        const FIXED: &str = "limits.maxRetries";
        const BUDGET: [&str; 2] = ["retryBudget.percent", "retryBudget.minConcurrency"];
        if self.settings.limits.max_retries.is_none() || self.settings.retry_budget == RetryBudget::default()
        {
            return;
        }
        let place = |path| self.places.get(path).copied();
        let fixed = place(FIXED);
        // The first place is the most specific one.
        let budget = BUDGET.into_iter().filter_map(|path| Some((place(path)?, path))).min();
        let fixed_first = match (fixed, budget) {
            (Some((fixed, _)), Some(((budget, _), _))) => fixed < budget,
            (fixed, budget) => fixed.is_some() && budget.is_none(),
        };
        let equal = fixed.zip(budget).is_some_and(|((_, level), ((_, other), _))| level == other);
        let of_budget = budget.map_or(BUDGET[0], |(_, path)| path);
        let (winner, loser) = if fixed_first { (FIXED, of_budget) } else { (of_budget, FIXED) };
        if equal && let (Some(first), Some(second)) = (self.origins.get(winner), self.origins.get(loser)) {
            let (first, second) = (first.clone(), second.clone());
            self.conflicts.push(Conflict { loser: second, winner: first, field: loser, by: winner });
        }
        if fixed_first {
            self.settings.retry_budget = RetryBudget::default();
            self.origins.retain(|path, _| !BUDGET.contains(path));
        } else {
            self.settings.limits.max_retries = None;
            self.origins.remove(FIXED);
        }
    }
}
