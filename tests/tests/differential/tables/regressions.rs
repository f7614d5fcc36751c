//! Tables on which the two once disagreed, each as small as it could be made.
//!
//! Whoever fixes a disagreement adds the table and the request that [`shrink`](super::shrink) printed, under a name that says
//! what was wrong; a seed alone would become another table with the next change of the generator.

use http::Method;
use serde_json::{Value, json};
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::{Table, trial, verdict};
use crate::differential::objects::NAMESPACE;

/// A name, the rules of one or two routes of which the first is older, and requests:
/// method, path, perhaps `h2`, headers.
type Case = (&'static str, &'static [&'static str], &'static [&'static str]);

const CASES: &[Case] = &[
    (
        "each-line-of-a-header-is-a-value",
        &["[{matches: [{headers: [{name: x-a, value: one}]}], backendRefs: [{name: b0, port: 80}]},
            {matches: [{headers: [{name: x-a, value: 'one,two'}]}], backendRefs: [{name: b1, port: 80}]}]"],
        &["GET / x-a:one x-a:two", "GET / h2 x-a:two x-a:one", "GET / x-a:one,two", "GET / x-a:one,two x-a:x"],
    ),
    (
        "an-older-route-wins-though-the-other-has-a-better-match-elsewhere",
        // The proxies cannot disagree here; the oracle can.
        &[
            "[{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: older}]}}]}]",
            "[{filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-rule, value: younger}]}}],
               matches: [{path: {type: Exact, value: /a}}, {}]}]",
        ],
        &["GET /", "GET /a", "GET /b"],
    ),
    (
        "a-preflight-hears-of-exposed-headers-if-it-is-allowed",
        &["[{filters: [{type: CORS, cors: {allowOrigins: ['https://a.example'], exposeHeaders: [x-a]}}],
            backendRefs: [{name: b0, port: 80}]}]"],
        &[
            "OPTIONS / origin:https://a.example access-control-request-method:GET",
            "OPTIONS / origin:https://b.example access-control-request-method:GET",
        ],
    ),
    (
        "an-answer-to-head-has-no-body",
        &["[{matches: [{path: {value: /none}}]}, {matches: [{path: {value: /some}}], backendRefs: [{name: b4, port: 80}]},
            {matches: [{path: {value: /else}}], filters: [{type: RequestRedirect, requestRedirect: {port: 8443}}]}]"],
        &["HEAD / h2", "HEAD /", "HEAD /none h2", "HEAD /none", "HEAD /some h2", "HEAD /some", "HEAD /else h2", "HEAD /else"],
    ),
    (
        "no-body-is-said-where-one-could-be",
        &["[{backendRefs: [{name: b0, port: 80}]}]"],
        &["POST /", "PUT /", "PATCH /", "OPTIONS /", "DELETE /", "GET /", "HEAD /"],
    ),
];

impl Table {
    fn of_case((name, routes, asks): &Case) -> anyhow::Result<Self> {
        let route = |(index, rules): (usize, &&str)| {
            let rules: Value = serde_yaml::from_str(rules)?;
            let created = format!("2026-01-01T00:00:0{index}Z");
            anyhow::Ok(json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "HTTPRoute",
                // The younger one is first by name.
                "metadata": {"name": format!("{}-{name}", 9 - index), "namespace": NAMESPACE, "creationTimestamp": created},
                "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": name}], "rules": rules},
            }))
        };
        Ok(Self {
            service: (*name).to_owned(),
            speaks: "http",
            routes: routes.iter().enumerate().map(route).collect::<anyhow::Result<_>>()?,
            asks: asks.iter().map(|text| ask(text)).collect::<anyhow::Result<_>>()?,
            origin: (*name).to_owned(),
        })
    }
}

fn ask(text: &str) -> anyhow::Result<Ask> {
    let mut words = text.split(' ');
    let method = Method::from_bytes(words.next().unwrap_or_default().as_bytes())?;
    let mut ask = Ask { method, ..Ask::get(words.next().unwrap_or_default(), "a.example") };
    for word in words {
        match word.split_once(':') {
            None => ask.h2 = word == "h2",
            Some((name, value)) => ask = ask.header(name, value),
        }
    }
    Ok(ask)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_once_differed_does_not() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let tables = CASES.iter().map(Table::of_case).collect::<anyhow::Result<Vec<_>>>()?;
    let tried = trial::run(binary, &tables).await?;
    verdict(binary, tried.disagreements).await
}
