//! How many requests are let in to an app: at the callee, whose sidecar stands against an Envoy with the same table.
//!
//! In: services whose one endpoint is a sidecar's inbound port, with a rate limit each. Out: nothing, or the request of a
//! sequence that one of the two let in and the other did not. Surprise: the objects come after the sidecars, because
//! an endpoint's address is known when its sidecar listens.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use weft_tests::backend::Troupe;
use weft_tests::client::Ask;
use weft_tests::embedded::{Plane, Sidecar};
use weft_tests::envoy::{self, Envoy, Follow};

use super::super::objects;
use super::super::pair::Side;
use super::scene::{Told, compare, get, grpc, policy, post, route, witness};

/// Callees of each kind, in the order of their services.
struct Callees {
    troupe: Troupe,
    plane: Plane,
    envoy: Envoy,
    sidecars: Vec<Sidecar>,
    _directory: tempfile::TempDir,
}

impl Callees {
    /// One callee for each TrafficPolicy, for a service `s<index>`, and what else there shall be.
    async fn start(binary: &Path, policies: &[&str], further: Vec<Value>) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let plane = Plane::start("").await?;
        let troupe = Troupe::start(policies.len())?;
        let (mut sidecars, mut follow, mut all) = (Vec::new(), Vec::new(), further);
        for (index, (spec, app)) in policies.iter().zip(&troupe.backends).enumerate() {
            let forward = format!("--inbound-forward={}", app.address);
            let flags = [forward.as_str(), "--discovery-timeout=20s"];
            let callee =
                Sidecar::start(directory.path(), plane.control, &format!("callee{index}"), &flags).await?;
            let address = callee.address("/inbound")?;
            let name = format!("inbound/{address}");
            follow.push(Follow { routes: name.clone(), clusters: vec![(name, app.address)] });
            let service = format!("s{index}");
            all.extend(objects::service(&service, &[address]));
            if !spec.is_empty() {
                let targets = json!([{"kind": "Service", "name": service}]);
                all.push(policy("TrafficPolicy", &service, &targets, spec)?);
            }
            sidecars.push(callee);
        }
        plane.apply(&objects::yaml(&all)?)?;
        // It has what it follows once the control plane has the objects; then the sidecars are answered likewise.
        let envoy = Envoy::start(binary, plane.control, &follow).await?;
        envoy.accepted().await?;
        Ok(Self { troupe, plane, envoy, sidecars, _directory: directory })
    }

    fn address(&self, side: Side, callee: usize) -> anyhow::Result<SocketAddr> {
        match side {
            Side::Envoy => Ok(self.envoy.listener(callee)),
            Side::Weft => self.sidecars[callee].address("/inbound"),
        }
    }

    /// One request to both, the `number`th.
    async fn both(&self, callee: usize, number: usize, ask: &Ask) -> anyhow::Result<[Told; 2]> {
        let mut told = Vec::new();
        for side in Side::BOTH {
            let key = format!("{callee}/{number}/{side:?}");
            told.push(witness(&self.troupe, self.address(side, callee)?, &key, ask).await);
        }
        told.try_into().map_err(|_| anyhow::anyhow!("two sides"))
    }

    /// A sequence of requests; of those with `true`, and no others, the app hears.
    async fn sequence(&self, callee: usize, asks: &[(Ask, bool)]) -> anyhow::Result<()> {
        for (number, (ask, passes)) in asks.iter().enumerate() {
            let told = self.both(callee, number, ask).await?;
            compare(&told)?;
            for told in &told {
                ensure!(told.attempts.len() == usize::from(*passes), "request {number}, {ask:?}: {told:?}");
            }
        }
        Ok(())
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.envoy.accepted().await?;
        for sidecar in self.sidecars {
            sidecar.stop().await?;
        }
        self.plane.stop().await;
        Ok(())
    }
}

/// The first `passing` of these requests, all alike, pass.
fn first(passing: usize, asks: impl IntoIterator<Item = Ask>) -> Vec<(Ask, bool)> {
    asks.into_iter().enumerate().map(|(number, ask)| (ask, number < passing)).collect()
}

fn at(path: &str) -> Ask {
    Ask { path: path.to_owned(), ..get("200") }
}

fn from(last: u8) -> Ask {
    Ask { from: Some(IpAddr::from([127, 0, 0, last])), ..get("200") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_let_in_and_no_more() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let policies = [
        "rateLimit: {requests: 6, per: 1h}",
        "rateLimit: {requests: 1, per: 1h, burst: 4}",
        "rateLimit: {requests: 100, per: 1h, burst: 2}",
        "rateLimit: {requests: 3, per: 1h, by: [caller]}",
        "rateLimit: {requests: 3, per: 1h, by: [route]}",
        "",
    ];
    let rules = |service: usize, names: &[&str]| -> String {
        let rule = |name: &&str| {
            format!(
                "- name: {name}\n  matches: [{{path: {{value: /{name}}}}}]\n  backendRefs: [{{name: s{service}, port: 80}}]\n"
            )
        };
        names.iter().map(rule).collect()
    };
    let mut further = vec![route(4, &rules(4, &["a", "b"]))?, route(5, &rules(5, &["a", "b", "c"]))?];
    for (rule, requests) in [("a", 2), ("b", 4)] {
        let route = "gateway.networking.k8s.io";
        let targets = json!([{"group": route, "kind": "HTTPRoute", "name": "r5", "sectionName": rule}]);
        let spec = format!("rateLimit: {{requests: {requests}, per: 1h}}");
        further.push(policy("TrafficPolicy", &format!("limit-{rule}"), &targets, &spec)?);
    }
    let callees = Callees::start(binary, &policies, further).await?;
    let kinds =
        [get("200"), post("503"), Ask { h2: true, ..get("200") }, grpc("200"), post("200"), grpc("grpc=5")];
    callees.sequence(0, &first(6, kinds.iter().cycle().take(14).cloned())).await?;
    callees.sequence(1, &first(4, vec![get("200"); 8])).await?;
    callees.sequence(2, &first(2, vec![grpc("200"); 6])).await?;
    // Each caller has its own, in whatever order they come.
    let mut callers = vec![];
    for turn in 0..5 {
        callers.extend([1, 2, 3].map(|last| (from(last), turn < 3)));
    }
    callees.sequence(3, &callers).await?;
    // Each route has its own, and so has what no route is for.
    let mut routes = vec![];
    for turn in 0..5 {
        routes.extend(["/a", "/b/c", "/nobody"].map(|path| (at(path), turn < 3)));
    }
    callees.sequence(4, &routes).await?;
    let mut routes = vec![];
    for turn in 0..6 {
        routes.extend([(at("/a"), turn < 2), (at("/b"), turn < 4), (at("/c"), true), (at("/nobody"), true)]);
    }
    callees.sequence(5, &routes).await?;
    callees.stop().await
}

/// A rate per second, and for how long it is watched.
const RATE: f64 = 20.0;
const WATCHED: Duration = Duration::from_secs(4);
/// How often leave is asked for: four times as often as it is given.
const PACE: Duration = Duration::from_millis(12);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn afterwards_the_rate_is_let_in() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let callees =
        Callees::start(binary, &["rateLimit: {requests: 20, per: 1s, burst: 5}"], Vec::new()).await?;
    let watch = async |side: Side| {
        let to = callees.address(side, 0)?;
        // What the burst allows is spent first.
        let mut begun: Option<Instant> = None;
        let (mut number, mut passed) = (0, 0);
        let mut pace = tokio::time::interval(PACE);
        while begun.is_none_or(|begun| begun.elapsed() < WATCHED) {
            pace.tick().await;
            let told = witness(&callees.troupe, to, &format!("rate/{side:?}/{number}"), &get("200")).await;
            number += 1;
            match (told.status(), &begun) {
                (Some(200), Some(_)) => passed += 1,
                (Some(200), None) => ensure!(number < 1000, "{side:?}: nothing is ever refused"),
                (Some(429), Some(_)) => {}
                (Some(429), None) => begun = Some(Instant::now()),
                other => anyhow::bail!("{side:?}: {other:?}: {told:?}"),
            }
        }
        let seconds = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        let rate = f64::from(passed) / seconds;
        // Less when this machine is too busy to ask in time, and then the burst; never more.
        ensure!(rate > RATE * 0.8 && rate < RATE * 1.1, "{side:?}: {rate} a second");
        anyhow::Ok(())
    };
    let (envoy, weft) = tokio::join!(watch(Side::Envoy), watch(Side::Weft));
    envoy.and(weft)?;
    callees.stop().await
}
