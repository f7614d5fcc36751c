use std::collections::BTreeMap;
use std::time::Duration;

use super::{Checked, Question, Unclear, check, overview};
use crate::fixture::world;
use crate::graph::{Histogram, Window};
use crate::rules::{Figures, Series};

const MESH: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 80}, {name: db, port: 5432}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: browser}
status: {podIP: 10.0.0.9}
";

const WEB: &str =
    "{action: Allow, rules: [{from: [{serviceAccount: browser}], to: [{paths: [{value: /a}]}]}]}";

fn asked(policies: &[(&str, &str)], trusted: bool, question: &Question) -> Result<Checked, Unclear> {
    let policies = policies.iter().map(|(name, spec)| {
        format!("---\napiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
    });
    let mut world = world(&format!("{MESH}{}", policies.collect::<String>()));
    if trusted {
        let trust = crate::world::Trust { domain: "cluster.local".into(), roots: "PEM".into() };
        world.apply(crate::world::Event::TrustSet(trust), std::time::Instant::now());
    }
    check(&world, question)
}

fn question(from: &str, to: &str, path: &str) -> Question {
    Question { from: from.into(), to: to.into(), path: Some(path.into()), ..Question::default() }
}

#[test]
fn a_caller_is_known_by_its_workloads_service_account() {
    let checked = asked(&[("p", WEB)], true, &question("shop/web", "orders.shop:8080", "/a/b")).unwrap();
    assert_eq!(checked.from.as_deref(), Some("spiffe://cluster.local/ns/shop/sa/browser"));
    assert!(checked.allowed);
    assert_eq!(checked.endpoints[0].rule.as_deref(), Some("AccessPolicy/shop/p/0"));
    assert_eq!(checked.endpoints[0].why, "rule 0 of AccessPolicy shop/p allows it");
    let checked = asked(&[("p", WEB)], true, &question("shop/other", "shop/orders:8080", "/a")).unwrap();
    assert_eq!(
        checked.endpoints[0].why,
        "no rule allows it, and there is AccessPolicy shop/p, which allows others"
    );
}

#[test]
fn paths_are_judged_as_sidecars_judge_them() {
    let may = |path| asked(&[("p", WEB)], true, &question("shop/web", "orders.shop:8080", path)).unwrap();
    assert!(may("/x/..//a").allowed && !may("/a/../b").allowed);
    assert!(may("/a%2fb").endpoints[0].why.contains("escaped slash"));
}

#[test]
fn who_cannot_prove_who_he_is_is_nobody() {
    let ask = question("shop/web", "orders.shop:8080", "/a");
    let checked = asked(&[("p", WEB)], false, &ask).unwrap();
    assert!(!checked.allowed && checked.endpoints[0].why.contains("nobody issues certificates"));
    let checked = asked(&[("p", WEB), ("m", "{mtls: {mode: disabled}}")], true, &ask).unwrap();
    assert!(!checked.allowed && checked.endpoints[0].why.contains("takes no mutual TLS"));
    let strict = [("m", "{mtls: {mode: strict}}")];
    let checked = asked(&strict, true, &question("-", "orders.shop:8080", "/a")).unwrap();
    assert!(!checked.allowed && checked.endpoints[0].why.contains("has no certificate"));
}

#[test]
fn what_is_audited_is_told_beside_the_decision() {
    let audited = [("p", "{mode: Audit, rules: [{from: [{serviceAccount: browser}]}]}")];
    let checked = asked(&audited, true, &question("shop/other", "orders.shop:5432", "/")).unwrap();
    assert_eq!((checked.speaks, checked.allowed), ("bytes", true));
    assert_eq!(checked.endpoints[0].audits[0].verdict, "would_deny");
    assert_eq!(
        checked.endpoints[0].audits[0].why,
        "no rule would allow it if AccessPolicy shop/p were in force"
    );
}

#[test]
fn a_question_that_is_not_clear_says_what_is_missing() {
    let unclear = |to: &str, path: &str| asked(&[], true, &question("shop/web", to, path)).unwrap_err();
    assert!(matches!(unclear("nobody.shop:80", "/"), Unclear::NotFound(_)));
    assert!(matches!(unclear("orders.shop:81", "/"), Unclear::NotFound(_)));
    assert!(
        matches!(unclear("orders-v1.shop", "/"), Unclear::NotFound(ref why) if why.contains("nobody serves"))
    );
    let Unclear::Malformed(why) = unclear("orders.shop", "/") else { panic!("no port") };
    assert_eq!(why, "which port of orders.shop? It has 5432, 8080, 9000");
    assert!(matches!(unclear("orders.shop:8080", "a"), Unclear::Malformed(_)));
}

#[test]
fn rates_are_of_rules_and_of_none() {
    let world = world(&format!(
        "{MESH}---\napiVersion: weft.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {WEB}\n"
    ));
    let figure = |rule: &str, said: &str, requests| {
        let series = Series { service: "orders.shop:8080".into(), rule: rule.into(), backend: said.into() };
        (series, Figures { requests, failed: 0, durations: Histogram::default() })
    };
    let figures = BTreeMap::from([
        figure("AccessPolicy/shop/p/0", "allowed", 20),
        figure("AccessPolicy/shop/p/0", "would_deny", 10),
        figure("AccessPolicy/shop/p2/0", "denied", 10),
        figure("none", "denied", 5),
    ]);
    let seen = overview(&world, &figures, Duration::from_secs(10), Window::Minute);
    assert_eq!((seen.policies.len(), seen.unmatched.len()), (1, 1));
    let said = &seen.policies[0].said;
    assert_eq!(said.len(), 1, "another policy's rules are not its own");
    assert_eq!((said[0].allowed_per_second, said[0].would_deny_per_second), (2.0, 1.0));
    assert_eq!((seen.unmatched[0].denied_per_second, seen.unmatched[0].rule.as_deref()), (0.5, None));
}
