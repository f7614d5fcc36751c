//! A stage for policies: services with a policy each, and what became of a request at each of the two.
//!
//! In: endpoints and policies by service, then requests. Out: [`Told`]: how it ended for the caller, and every attempt that
//! a backend saw. Invariant: a request has a key of its own, so nothing of another one is ever taken for its attempts.
//! Surprise: [`compare`] knows the one row that is about an answer's status.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use weft_tests::backend::{KEY, PLAN, Troupe};
use weft_tests::client::{self, Ask};

use super::super::differences::{Arrived, Row};
use super::super::objects::{self, NAMESPACE, PORT};
use super::super::pair::{Pair, Side};

/// Services that are called at once: a busy machine must not make a proxy look slow.
const TOGETHER: usize = 16;

/// Envoy counts from when its event loop last woke up, so it may be early by that.
const EARLY: Duration = Duration::from_millis(50);
/// A busy machine may be late by this much.
const LATE: Duration = Duration::from_secs(4);

/// A circuit that never opens, where circuits are not the matter.
pub(super) const NO_EJECTION: &str = "endpoints: {consecutiveFailures: 0, consecutiveLocalOriginFailures: 0}";

/// What will be on the stage.
pub(super) struct Cast {
    pub(super) troupe: Troupe,
    objects: Vec<Value>,
    services: Vec<String>,
}

impl Cast {
    pub(super) fn new(backends: usize) -> anyhow::Result<Self> {
        Ok(Self { troupe: Troupe::start(backends)?, objects: Vec::new(), services: Vec::new() })
    }

    /// The addresses of the first `count` backends.
    pub(super) fn backends(&self, count: usize) -> Vec<SocketAddr> {
        self.troupe.backends.iter().take(count).map(|backend| backend.address).collect()
    }

    /// Adds a service that nothing is ejected from, with a TrafficPolicy of this spec if there is any; gives its index.
    pub(super) fn service(&mut self, endpoints: &[SocketAddr], traffic: &str) -> anyhow::Result<usize> {
        self.guarded(endpoints, traffic, NO_EJECTION)
    }

    /// The same with a CircuitBreaker of this spec.
    pub(super) fn guarded(
        &mut self,
        endpoints: &[SocketAddr],
        traffic: &str,
        breaker: &str,
    ) -> anyhow::Result<usize> {
        let index = self.services.len();
        let name = format!("s{index}");
        self.objects.extend(objects::service(&name, endpoints));
        let target = json!([{"kind": "Service", "name": name}]);
        for (kind, spec) in [("TrafficPolicy", traffic), ("CircuitBreaker", breaker)] {
            if !spec.is_empty() {
                self.objects.push(policy(kind, &name, &target, spec)?);
            }
        }
        self.services.push(name);
        Ok(index)
    }

    pub(super) fn add(&mut self, object: Value) {
        self.objects.push(object);
    }

    /// All objects but the one of this name.
    pub(super) fn without(&self, name: &str) -> Vec<Value> {
        self.objects.iter().filter(|object| object["metadata"]["name"] != name).cloned().collect()
    }

    pub(super) async fn enter(self, binary: &Path) -> anyhow::Result<Scene> {
        let pair = Pair::start(binary, &self.objects, &self.services).await?;
        Ok(Scene { pair, troupe: self.troupe, asked: AtomicUsize::new(0) })
    }
}

/// An object of ours, of this spec in YAML.
pub(super) fn policy(kind: &str, name: &str, targets: &Value, spec: &str) -> anyhow::Result<Value> {
    let mut spec: Value = serde_yaml::from_str(spec).with_context(|| spec.to_owned())?;
    spec["targetRefs"] = targets.clone();
    Ok(json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": spec,
    }))
}

/// An HTTPRoute on the service with this index, with these rules in YAML.
pub(super) fn route(service: usize, rules: &str) -> anyhow::Result<Value> {
    let rules: Value = serde_yaml::from_str(rules).with_context(|| rules.to_owned())?;
    let parent = json!({"group": "", "kind": "Service", "name": format!("s{service}"), "port": PORT});
    Ok(json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": format!("r{service}"), "namespace": NAMESPACE},
        "spec": {"parentRefs": [parent], "rules": rules},
    }))
}

/// The stage.
pub(super) struct Scene {
    pub(super) pair: Pair,
    pub(super) troupe: Troupe,
    asked: AtomicUsize,
}

/// How a request ended for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// With a whole answer.
    Answer {
        status: u16,
        grpc: Option<String>,
        /// Whether an app gave it; else the proxy did.
        app: bool,
        /// What a rule adds to answers.
        decorated: Option<String>,
    },
    /// The answer broke off, or there never was one.
    Broken,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// What it was known by to backends.
    pub(super) key: String,
    pub(super) end: End,
    pub(super) attempts: Vec<Arrived>,
    /// Whom each attempt reached, and when.
    pub(super) reached: Vec<(String, Instant)>,
    /// Until the answer was whole.
    pub(super) took: Duration,
    /// What a proxy that answered by itself wrote; empty when an app did.
    pub(super) own: String,
    /// `x-weft-reason`, without who decided.
    reason: Option<String>,
}

impl Told {
    pub(super) fn backends(&self) -> Vec<&str> {
        self.reached.iter().map(|(backend, _)| backend.as_str()).collect()
    }

    /// Whether it took as many milliseconds, neither less nor much more.
    pub(super) fn took_about(&self, millis: u64) -> bool {
        let least = Duration::from_millis(millis);
        self.took + EARLY >= least && self.took < least + LATE
    }

    pub(super) fn grpc(&self) -> Option<&str> {
        match &self.end {
            End::Answer { grpc, .. } => grpc.as_deref(),
            End::Broken => None,
        }
    }

    pub(super) fn status(&self) -> Option<u16> {
        match &self.end {
            End::Answer { status, .. } => Some(*status),
            End::Broken => None,
        }
    }
}

/// One request with a body, so that no proxy repeats it of its own accord, and what its backend does.
pub(super) fn post(plan: &str) -> Ask {
    Ask { method: http::Method::POST, body: Bytes::from_static(b"an order"), ..get(plan) }
}

pub(super) fn get(plan: &str) -> Ask {
    Ask::get("/orders/42", "orders.shop").header(PLAN, plan)
}

/// As a gRPC library would ask.
pub(super) fn grpc(plan: &str) -> Ask {
    let ask = Ask { path: "/shop.Orders/Get".to_owned(), h2: true, ..post(plan) };
    ask.header("content-type", "application/grpc").header("te", "trailers")
}

impl Scene {
    /// One request to one of the two.
    pub(super) async fn told(&self, side: Side, service: usize, ask: &Ask) -> anyhow::Result<Told> {
        let key = self.key(service, side);
        Ok(witness(&self.troupe, self.pair.address(side, service)?, &key, ask).await)
    }

    /// A key for a request, which no other one has.
    pub(super) fn key(&self, service: usize, side: Side) -> String {
        format!("{service}/{}/{side:?}", self.asked.fetch_add(1, Ordering::Relaxed))
    }

    /// One request to both: Envoy first.
    pub(super) async fn both(&self, service: usize, ask: &Ask) -> anyhow::Result<[Told; 2]> {
        let [envoy, weft] = Side::BOTH.map(|side| self.told(side, service, ask));
        let (envoy, weft) = tokio::join!(envoy, weft);
        Ok([envoy?, weft?])
    }

    /// Runs all cases, those of one service one after the other, and tells of all that failed.
    pub(super) async fn all<T: Debug>(
        &self,
        cases: impl IntoIterator<Item = (usize, T)>,
        run: impl AsyncFn(usize, &T) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut services: BTreeMap<usize, Vec<T>> = BTreeMap::new();
        for (service, case) in cases {
            services.entry(service).or_default().push(case);
        }
        let run = &run;
        let failures = futures_util::stream::iter(services)
            .map(async |(service, cases)| {
                let mut failures = Vec::new();
                for case in cases {
                    if let Err(error) = run(service, &case).await {
                        failures.push(format!("s{service}, {case:?}: {error:#}"));
                    }
                }
                failures
            })
            .buffer_unordered(TOGETHER)
            .concat()
            .await;
        ensure!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
        Ok(())
    }

    pub(super) async fn exit(self) -> anyhow::Result<()> {
        self.pair.stop().await
    }
}

/// What every answer of an app has.
const APP: &str = "x-internal";

/// One request to wherever, under this key.
pub(super) async fn witness(troupe: &Troupe, to: SocketAddr, key: &str, ask: &Ask) -> Told {
    let begun = Instant::now();
    let answer = client::once(to, &ask.clone().header(KEY, key)).await;
    let took = begun.elapsed();
    let (mut attempts, mut reached) = (Vec::new(), Vec::new());
    for (at, arrival) in troupe.timed(key) {
        reached.push((arrival.backend.clone(), at));
        attempts.push(Arrived::of(arrival).anywhere());
    }
    let reason = answer.as_ref().ok().and_then(|answer| answer.header("x-weft-reason"));
    let reason = reason.and_then(|reason| reason.split(';').next()).map(str::to_owned);
    let own = answer.as_ref().ok().filter(|answer| !answer.headers.contains_key(APP));
    let own = own.map(|answer| String::from_utf8_lossy(&answer.body).into_owned()).unwrap_or_default();
    let end = answer.map_or(End::Broken, |answer| End::Answer {
        status: answer.status.as_u16(),
        grpc: answer.grpc_status().map(str::to_owned),
        app: answer.headers.contains_key(APP),
        decorated: answer.header("x-by-rule").map(str::to_owned),
    });
    Told { key: key.to_owned(), end, attempts, reached, took, own, reason }
}

/// Whether both did the same, rows aside.
pub(super) fn compare([envoy, weft]: &[Told; 2]) -> anyhow::Result<()> {
    let mut end = envoy.end.clone();
    if let (End::Answer { status, grpc, app: false, .. }, Some(reason)) = (&mut end, &weft.reason) {
        if *status == 503 {
            *status = Row::Unreachable.status(reason).unwrap_or(*status);
        }
        if grpc.as_deref() == Some("14") && reason == "request_timeout" {
            *grpc = Row::GrpcTimeout.grpc_status();
        }
    }
    ensure!(end == weft.end, "Envoy ends with {:?}, Weft with {:?} {:?}", envoy.end, weft.end, weft.reason);
    ensure!(envoy.attempts == weft.attempts, "Envoy {:?}, Weft {:?}", envoy.attempts, weft.attempts);
    Ok(())
}
