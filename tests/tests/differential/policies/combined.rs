//! Several policies at once, on requests of every kind, drawn from a seed: what each does must not depend on the others.
//!
//! In: `WEFT_SEED`, or a seed of the moment. Out: nothing, or what the two did not do alike, and the seed. Surprise: copies
//! go to backends of another troupe, so that they do not count as attempts.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use fastrand::Rng;
use http::Method;
use weft_tests::backend::Troupe;
use weft_tests::client::Ask;
use weft_tests::embedded::PATIENCE;
use weft_tests::{envoy, poll};

use super::super::differences::Arrived;
use super::generated::{retry, seed};
use super::scene::{Cast, compare, get, grpc, route};

const SERVICES: usize = 40;
const REQUESTS: usize = 6;
const ENDPOINTS: usize = 3;

/// What is kept of a body, more or less: above it nothing is copied.
const KEPT: usize = 65_000;

const STEPS: [&str; 9] = ["200", "404", "425", "500", "503", "delay=100", "slow=100", "broken", "hang"];
const GRPC_STEPS: [&str; 9] =
    ["200", "503", "delay=100", "broken", "grpc=4", "grpc=8", "grpc=14", "trailed=14", "hang"];

/// What a service's policy says; whether it soon ends what hangs.
fn policy(random: &mut Rng, mirror: usize) -> (String, bool) {
    let mut fields = Vec::new();
    // Far from each other, and from where several tries of one second end.
    let request = [None, Some("1500ms"), Some("9500ms")][random.usize(..3)];
    let each = [None, None, Some("1s")][random.usize(..3)];
    let ends = request == Some("1500ms") || each.is_some();
    let times =
        [request.map(|time| format!("request: {time}")), each.map(|time| format!("backendRequest: {time}"))];
    let times: Vec<String> = times.into_iter().flatten().collect();
    if !times.is_empty() {
        fields.push(format!("timeouts: {{{}}}", times.join(", ")));
    }
    if random.u8(..4) > 0 {
        fields.push(format!("retry: {{{}}}", retry(random)));
    }
    if random.bool() {
        fields.push(format!("mirror: {{backendRef: {{name: s{mirror}, port: 80}}}}"));
    }
    let fault = random.u8(..6);
    if fault < 3 {
        let abort = "abort: {httpStatus: 418, percent: 100}, headers: [{name: x-team, value: red}]";
        let delay = "delay: {fixed: 100ms, percent: 100}";
        let both = format!("{delay}, {abort}");
        fields.push(format!("fault: {{{}}}", [abort, delay, both.as_str()][usize::from(fault)]));
    }
    let kind = ["RoundRobin", "Maglev, hashOn: {header: x-user}", "RingHash, hashOn: {header: x-user}"];
    fields.push(format!("loadBalancer: {{type: {}}}", kind[random.usize(..kind.len())]));
    (format!("{{{}}}", fields.join(", ")), ends)
}

/// Rules that change what is sent: once, however often it is sent.
fn rules(random: &mut Rng, service: usize) -> String {
    let backend = format!("backendRefs: [{{name: s{service}, port: 80}}]");
    let path = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /orders/v2}";
    let rewrite = ["", ", hostname: other.example"][random.usize(..2)];
    let headers = "add: [{name: x-added, value: more}], set: [{name: x-user, value: all}], remove: [x-team]";
    let filters = [
        format!("{{type: URLRewrite, urlRewrite: {{{path}{rewrite}}}}}"),
        format!("{{type: RequestHeaderModifier, requestHeaderModifier: {{{headers}}}}}"),
        "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-by-rule, value: here}]}}"
            .to_owned(),
    ];
    let filters =
        super::generated::some(random, &[0, 1, 2], 3).into_iter().map(|index| filters[index].clone());
    let filters: Vec<String> = filters.collect();
    format!(
        "- matches: [{{path: {{value: /orders}}}}]\n  filters: [{}]\n  {backend}\n- {backend}\n",
        filters.join(", ")
    )
}

fn ask(random: &mut Rng, ends: bool) -> Ask {
    let in_grpc = random.u8(..4) == 0;
    let steps = if in_grpc { GRPC_STEPS } else { STEPS };
    // Without anything that ends it, nothing may hang.
    let steps = if ends { &steps[..] } else { &steps[..steps.len() - 1] };
    let plan: Vec<&str> = (0..random.usize(1..=4)).map(|_| steps[random.usize(..steps.len())]).collect();
    let mut ask = if in_grpc { grpc(&plan.join(",")) } else { get(&plan.join(",")) };
    if in_grpc || random.u8(..3) > 0 {
        let size = [1, 3000, 60_000, 70_000][random.usize(..4)];
        ask.body = Bytes::from(vec![b'x'; size]);
        ask.method = Method::POST;
        ask.pause = Duration::from_millis([0, 0, 120][random.usize(..3)]);
    }
    ask.h2 |= random.bool();
    ask = ask.header("x-user", random.u8(..20).to_string());
    if random.u8(..3) == 0 {
        ask = ask.header("x-team", "red");
    }
    ask
}

/// A case that does not print its body.
struct Case {
    spec: String,
    rules: String,
    ask: Ask,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { spec, rules, ask } = self;
        let Ask { method, path, headers, body, pause, h2, .. } = ask;
        write!(
            f,
            "{method} {path} {headers:?}, {} bytes, pause {pause:?}, h2 {h2}, {spec}\n{rules}",
            body.len()
        )
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_do_not_get_into_each_others_way() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let mirrors = Troupe::start(1)?;
    let mut cast = Cast::new(ENDPOINTS)?;
    let endpoints = cast.backends(ENDPOINTS);
    let mirror = cast.service(&[mirrors.backends[0].address], "")?;
    let mut cases = Vec::new();
    for _ in 0..SERVICES {
        let (spec, ends) = policy(&mut random, mirror);
        let service = cast.service(&endpoints, &spec)?;
        let rules = if random.bool() { rules(&mut random, service) } else { String::new() };
        if !rules.is_empty() {
            cast.add(route(service, &rules)?);
        }
        let case = || (spec.clone(), rules.clone());
        for _ in 0..REQUESTS {
            let ((spec, rules), ask) = (case(), ask(&mut random, ends));
            cases.push((service, Case { spec, rules, ask }));
        }
    }
    let scene = cast.enter(binary).await?;
    let keys = Mutex::new(Vec::new());
    let compared = scene.all(cases, async |service, Case { ask, .. }| {
        let told = scene.both(service, ask).await?;
        let keys = &mut *keys.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // `Copies of requests`: not of such.
        if ask.body.len() < KEPT {
            keys.push(told.each_ref().map(|told| told.key.clone()));
        }
        compare(&told)
    });
    compared.await.with_context(|| format!("WEFT_SEED={seed} makes it again"))?;
    let keys = keys.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let copies = |key: &str| mirrors.arrivals(key).into_iter().map(Arrived::of).collect::<Vec<_>>();
    let alike = poll::until("the same copies arrive", PATIENCE, async || {
        for [envoy, weft] in &keys {
            let [of_envoy, of_weft] = [envoy, weft].map(|key| copies(key));
            ensure!(of_envoy == of_weft, "{envoy}: {of_envoy:?}\n{weft}: {of_weft:?}");
        }
        anyhow::Ok(())
    });
    alike.await.with_context(|| format!("WEFT_SEED={seed} makes it again"))?;
    scene.exit().await
}
