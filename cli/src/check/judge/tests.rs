use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::facts::{
    Authority, Cluster, Crd, Deployment, DryRun, Fact, Injection, Installed, Lease, Mesh, Namespace, Pod,
    Replica, ServerVersion, Sidecars, Webhook,
};
use super::*;
use crate::proxies::Sidecar;
use crate::proxies::tests::sidecar;

fn now() -> Timestamp {
    "2026-11-28T18:00:00Z".parse().expect("a time")
}

/// PEM of a certificate that ends in a hundred years.
fn bundle() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::default();
    parameters.not_after = rcgen::date_time_ymd(2126, 1, 1);
    parameters.self_signed(&key).expect("a certificate").pem().into_bytes()
}

/// An installation in good health, with two pods in `shop`.
fn healthy() -> Facts {
    let crd = |name: &str| Crd {
        name: format!("{name}.weft.dev"),
        established: true,
        served: vec!["v1alpha1".into()],
        ours: Some(true),
    };
    let namespace = |name: &str, inject: Option<&str>| Namespace {
        name: name.into(),
        inject: inject.map(str::to_owned),
        others: Vec::new(),
    };
    let pod = |name: &str| Pod {
        namespace: "shop".into(),
        name: name.into(),
        runs: true,
        sidecar: Some(Some(env!("CARGO_PKG_VERSION").into())),
        sidecar_ready: true,
        wanted: true,
    };
    let replica =
        Replica { name: "weft-control-plane-a".into(), ready: true, leads: true, ..Replica::default() };
    let installed = Installed {
        crds: Ok(["accesspolicies", "circuitbreakers", "trafficpolicies"].map(crd).into()),
        deployment: Ok(Deployment { replicas: 1, image: Some("weft-control-plane:0.1.0".into()) }),
        pods: Ok(vec![replica]),
        lease: Ok(Lease {
            holder: Some("weft-control-plane-a_1b2c".into()),
            renewed: "2026-11-28T17:59:58Z".parse().ok(),
            seconds: 15,
        }),
        secret: Ok(()),
        missing_rights: Ok(Vec::new()),
        dry_run: Ok(DryRun::Injected),
    };
    let version = ServerVersion { major: 1, minor: 36, text: "v1.36.3".into(), now: Some(now()) };
    let webhook = Webhook {
        name: "weft-injector".into(),
        bundles: vec![bundle()],
        served_by: vec!["weft-system/weft-injector:443".into()],
    };
    let cluster = Cluster {
        server: "https://10.0.0.1:6443".into(),
        version: Ok(version),
        missing_rights: Some(Ok(Vec::new())),
        gateway: Ok(vec!["HTTPRoute v1".into(), "GRPCRoute v1".into()]),
        webhooks: Ok(vec![webhook]),
        namespaces: Ok(vec![namespace("weft-system", None), namespace("shop", Some("enabled"))]),
        installed: Some(installed),
        pods: Some(Ok(vec![pod("web-1"), pod("orders-1")])),
    };
    let counted = json!({ "reports": { "last_report_at": "2026-11-28T17:59:59Z", "detected": 40, "detect_timeouts": 0,
        "outbound": 500, "outbound_carried": 490, "outbound_own": 10 } });
    let mesh = Mesh {
        at: "pod weft-system/weft-control-plane-a".into(),
        version: Ok(env!("CARGO_PKG_VERSION").into()),
        authority: Ok(Some(Authority {
            at: now().as_second(),
            kept: true,
            certificates: vec![("the root CN=weft".into(), now().as_second() + 300 * 86_400)],
            rotation: None,
        })),
        problems: Ok(Vec::new()),
        objects: Ok(Vec::new()),
        sidecars: Some(Ok(Sidecars {
            at: now(),
            all: vec![sidecar("web-1", counted.clone()), sidecar("orders-1", counted)],
            silent: Vec::new(),
        })),
        injection: Some(Ok(Injection { taken: true, injected: 2, ..Injection::default() })),
    };
    Facts { cluster: Some(cluster), mesh: Some(mesh), namespace: None }
}

const AFTER: Plan = Plan { before: false, proxy: true, cluster: true };
const BEFORE: Plan = Plan { before: true, proxy: false, cluster: true };

fn found(facts: &Facts, check: Check) -> Outcome {
    let plan = if check.when() == When::Before { BEFORE } else { AFTER };
    let findings = judge(plan, facts);
    findings.into_iter().find(|finding| finding.check == check).expect("made").outcome
}

fn cluster(facts: &mut Facts) -> &mut Cluster {
    facts.cluster.as_mut().expect("there")
}

fn installed(facts: &mut Facts) -> &mut Installed {
    cluster(facts).installed.as_mut().expect("there")
}

fn mesh(facts: &mut Facts) -> &mut Mesh {
    facts.mesh.as_mut().expect("there")
}

/// The healthy mesh with one sidecar that differs by `fields`.
fn with_sidecar(fields: Value) -> Facts {
    let mut facts = healthy();
    let one: Sidecar = sidecar("web-1", fields);
    let Some(Ok(sidecars)) = &mut mesh(&mut facts).sidecars else { panic!("there") };
    sidecars.all[0] = one;
    facts
}

fn items(outcome: &Outcome) -> &[String] {
    match outcome {
        Outcome::Note { items, .. } | Outcome::Warn { items, .. } | Outcome::Fail { items, .. } => items,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_healthy_installation_passes_every_check() {
    for finding in judge(AFTER, &healthy()) {
        assert!(matches!(finding.outcome, Outcome::Pass { .. }), "{finding:?}");
    }
}

#[test]
fn what_one_check_needs_leaves_the_other_out_and_nothing_else() {
    let mut facts = healthy();
    installed(&mut facts).deployment = Err(Trouble::Missing);
    assert!(matches!(found(&facts, Check::Deployment), Outcome::Fail { .. }));
    let Outcome::Skip { why } = found(&facts, Check::Lease) else { panic!("left out") };
    assert_eq!(why, "needs deployment");
    for other in [Check::Injects, Check::Crds, Check::Api, Check::Nacked] {
        assert!(matches!(found(&facts, other), Outcome::Pass { .. }), "{other}");
    }
}

#[test]
fn a_cluster_that_does_not_answer_fails_once() {
    let mut facts = healthy();
    cluster(&mut facts).version = Err(Trouble::Unreachable("connection refused".into()));
    let findings = judge(AFTER, &facts);
    let failed: Vec<Check> = findings
        .iter()
        .filter(|finding| matches!(finding.outcome, Outcome::Fail { .. }))
        .map(|finding| finding.check)
        .collect();
    assert_eq!(failed, [Check::ApiServer]);
    // What the control plane says is known all the same.
    assert!(matches!(found(&facts, Check::Nacked), Outcome::Pass { .. }));
}

#[test]
fn what_one_may_not_know_is_neither_good_nor_bad() {
    let mut facts = healthy();
    installed(&mut facts).secret = Err(Trouble::Forbidden("secrets is forbidden".into()));
    assert!(matches!(found(&facts, Check::CaSecret), Outcome::Skip { .. }));
}

#[test]
fn kubernetes_may_be_too_old_or_just_old() {
    let at = |minor| {
        let mut facts = healthy();
        cluster(&mut facts).version.as_mut().expect("there").minor = minor;
        found(&facts, Check::Version)
    };
    assert!(matches!(at(24), Outcome::Fail { .. }));
    assert!(matches!(at(28), Outcome::Note { .. }));
    assert!(matches!(at(29), Outcome::Pass { .. }));
}

#[test]
fn two_meshes_in_one_namespace_are_a_failure_side_by_side_they_are_none() {
    let mut facts = healthy();
    let istio = Webhook { name: "istio-sidecar-injector".into(), ..Webhook::default() };
    cluster(&mut facts).webhooks.as_mut().expect("there").push(istio);
    assert!(matches!(found(&facts, Check::OtherMeshes), Outcome::Note { .. }));
    cluster(&mut facts).namespaces.as_mut().expect("there")[1].others = vec!["Istio"];
    let torn = found(&facts, Check::OtherMeshes);
    assert!(matches!(&torn, Outcome::Fail { .. }), "{torn:?}");
    assert_eq!(items(&torn), ["namespace shop: Istio too"]);
}

#[test]
fn before_an_installation_rights_are_told_and_what_is_there_already() {
    let mut facts = healthy();
    let there = found(&facts, Check::NotInstalled);
    assert!(matches!(&there, Outcome::Warn { items, .. } if items.len() == 5), "{there:?}");
    cluster(&mut facts).missing_rights = Some(Ok(vec!["create clusterroles".into()]));
    assert_eq!(items(&found(&facts, Check::Rights)), ["create clusterroles"]);
    cluster(&mut facts).webhooks = Ok(Vec::new());
    installed(&mut facts).crds = Ok(Vec::new());
    installed(&mut facts).deployment = Err(Trouble::Missing);
    assert!(matches!(found(&facts, Check::NotInstalled), Outcome::Pass { .. }));
}

#[test]
fn without_the_gateway_api_there_is_a_notice_and_no_failure() {
    let mut facts = healthy();
    for missing in [Err(Trouble::Missing), Ok(vec!["HTTPRoute v1beta1".into()])] {
        cluster(&mut facts).gateway = missing;
        assert!(matches!(found(&facts, Check::GatewayApi), Outcome::Note { .. }));
    }
}

#[test]
fn kinds_must_be_there_served_and_of_this_version() {
    let mut facts = healthy();
    installed(&mut facts).crds.as_mut().expect("there")[0].ours = Some(false);
    assert!(matches!(found(&facts, Check::Crds), Outcome::Warn { .. }));
    installed(&mut facts).crds.as_mut().expect("there")[1].established = false;
    installed(&mut facts).crds.as_mut().expect("there")[2].served = vec!["v1".into()];
    assert_eq!(items(&found(&facts, Check::Crds)).len(), 2);
}

#[test]
fn some_replicas_missing_is_a_warning_none_left_a_failure() {
    let mut facts = healthy();
    installed(&mut facts).deployment.as_mut().expect("there").replicas = 2;
    assert!(matches!(found(&facts, Check::Pods), Outcome::Warn { .. }));
    let pod = &mut installed(&mut facts).pods.as_mut().expect("there")[0];
    (pod.ready, pod.why) = (false, Some("ImagePullBackOff".into()));
    assert_eq!(items(&found(&facts, Check::Pods)), ["weft-control-plane-a: ImagePullBackOff"]);
    let pod = &mut installed(&mut facts).pods.as_mut().expect("there")[0];
    (pod.restarts, pod.restarted) = (7, "2026-11-28T17:30:00Z".parse().ok());
    assert!(matches!(found(&facts, Check::Restarts), Outcome::Warn { .. }));
}

#[test]
fn a_lease_must_be_held_and_fresh_and_its_holder_marked() {
    let mut facts = healthy();
    installed(&mut facts).pods.as_mut().expect("there")[0].leads = false;
    assert!(matches!(found(&facts, Check::Leader), Outcome::Fail { .. }));
    installed(&mut facts).lease.as_mut().expect("there").renewed = "2026-11-28T17:59:00Z".parse().ok();
    assert!(matches!(found(&facts, Check::Lease), Outcome::Fail { .. }));
    assert!(matches!(found(&facts, Check::Leader), Outcome::Skip { .. }));
    installed(&mut facts).lease.as_mut().expect("there").holder = None;
    assert!(matches!(found(&facts, Check::Lease), Outcome::Fail { .. }));
}

#[test]
fn a_webhook_must_be_there_trusted_and_at_work() {
    let mut facts = healthy();
    installed(&mut facts).dry_run = Ok(DryRun::Plain { namespace: "default".into(), warnings: Vec::new() });
    assert!(matches!(found(&facts, Check::Injects), Outcome::Fail { .. }));
    cluster(&mut facts).webhooks.as_mut().expect("there")[0].bundles = vec![Vec::new()];
    assert!(matches!(found(&facts, Check::CaBundle), Outcome::Fail { .. }));
    assert!(matches!(found(&facts, Check::Injects), Outcome::Skip { .. }));
    cluster(&mut facts).webhooks = Ok(Vec::new());
    assert!(matches!(found(&facts, Check::Webhook), Outcome::Fail { .. }));
}

#[test]
fn versions_that_differ_are_told() {
    let mut facts = with_sidecar(json!({ "agent_version": "0.0.9" }));
    assert_eq!(items(&found(&facts, Check::ProxyVersion)), ["shop/web-1: 0.0.9"]);
    mesh(&mut facts).version = Ok("9.9.9".into());
    assert!(matches!(found(&facts, Check::SameVersion), Outcome::Warn { .. }));
    let foreign = with_sidecar(json!({ "agent": "envoy", "agent_version": "1.40.0" }));
    assert!(matches!(found(&foreign, Check::ProxyVersion), Outcome::Pass { .. }), "of the other one");
    let mut foreign = foreign;
    let Some(Ok(sidecars)) = &mut mesh(&mut foreign).sidecars else { panic!("there") };
    sidecars.all.truncate(1);
    for check in [Check::ProxyVersion, Check::Reports] {
        assert!(matches!(found(&foreign, check), Outcome::Skip { .. }), "{check}: none of ours is there");
    }
}

#[test]
fn an_authority_may_have_ended_end_soon_or_be_forgotten_by_a_restart() {
    let with = |left: i64, kept| {
        let mut facts = healthy();
        let authority = mesh(&mut facts).authority.as_mut().expect("known").as_mut().expect("there");
        authority.certificates[0].1 = authority.at + left;
        authority.kept = kept;
        found(&facts, Check::Authority)
    };
    assert!(matches!(with(-1, true), Outcome::Fail { .. }));
    assert!(matches!(with(86_400, true), Outcome::Warn { .. }));
    assert!(matches!(with(300 * 86_400, false), Outcome::Note { .. }));
}

#[test]
fn configuration_that_refuses_or_lags_names_the_pods() {
    let refusing = with_sidecar(json!({ "rejected": "no such field" }));
    assert_eq!(items(&found(&refusing, Check::Nacked)), ["shop/web-1: no such field"]);
    let late = with_sidecar(json!({ "synced": false, "waiting_since": "2026-11-28T17:59:00Z" }));
    assert_eq!(items(&found(&late, Check::Stale)), ["shop/web-1: for 60s"]);
    let pending = with_sidecar(json!({ "synced": false, "waiting_since": "2026-11-28T17:59:59Z" }));
    assert!(matches!(found(&pending, Check::Stale), Outcome::Pass { .. }));
}

#[test]
fn certificates_end_or_are_not_renewed_or_are_not_there() {
    let until = |until: &str| {
        let certificate = json!({ "not_before": "2026-11-27T20:00:00Z", "not_after": until });
        found(&with_sidecar(json!({ "certificate": certificate })), Check::Certificates)
    };
    assert!(matches!(until("2026-11-28T17:00:00Z"), Outcome::Fail { .. }));
    assert_eq!(items(&until("2026-11-28T20:00:00Z")), ["shop/web-1: ends in 2h"]);
    assert!(matches!(until("2026-11-29T16:00:00Z"), Outcome::Pass { .. }));
    let none = with_sidecar(json!({ "certificate": null, "identity": null }));
    assert!(matches!(found(&none, Check::Certificates), Outcome::Warn { .. }));
}

#[test]
fn clocks_bundles_and_reports_that_are_behind_are_told() {
    let clock = with_sidecar(json!({ "clock": "web's clock is 7 s behind" }));
    assert_eq!(items(&found(&clock, Check::Clocks)), ["shop/web-1: web's clock is 7 s behind"]);
    let behind = with_sidecar(json!({ "trusts_bundle": false }));
    assert_eq!(items(&found(&behind, Check::TrustBundle)), ["shop/web-1"]);
    let silent = with_sidecar(json!({ "reports": { "last_report_at": "2026-11-28T17:50:00Z" } }));
    assert_eq!(items(&found(&silent, Check::Reports)), ["shop/web-1: silent for 10m"]);
    let new = with_sidecar(json!({ "reports": null, "connected_since": "2026-11-28T17:59:50Z" }));
    assert!(matches!(found(&new, Check::Reports), Outcome::Pass { .. }));
}

#[test]
fn stalls_and_broken_traces_name_those_who_cause_them() {
    let reports = |fields: Value| {
        let mut all = json!({ "last_report_at": "2026-11-28T17:59:59Z", "detected": 40, "detect_timeouts": 0,
            "outbound": 500, "outbound_carried": 490, "outbound_own": 10 });
        all.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        with_sidecar(json!({ "reports": all }))
    };
    let stalled = reports(json!({ "detect_timeouts": 3 }));
    assert_eq!(items(&found(&stalled, Check::Stalls)), ["shop/web-1: 3 of 40 connections"]);
    let broken = reports(json!({ "outbound_carried": 20, "outbound_own": 400 }));
    let broken = found(&broken, Check::Propagation);
    assert_eq!(items(&broken), ["shop/web: 4 % of 500 requests (80 without a trace, 400 in one of its own)"]);
    assert!(matches!(broken, Outcome::Note { why, .. } if why.contains("traceparent")));
    // An older control plane only says how many there were.
    let older = reports(json!({ "outbound_carried": null }));
    assert!(matches!(found(&older, Check::Propagation), Outcome::Pass { .. }), "the other one's");
}

#[test]
fn what_is_not_counted_is_left_out_and_said() {
    let mut facts = healthy();
    let Some(Ok(sidecars)) = &mut mesh(&mut facts).sidecars else { panic!("there") };
    for one in &mut sidecars.all {
        one.reports = None;
    }
    for check in [Check::Stalls, Check::Propagation] {
        assert!(matches!(found(&facts, check), Outcome::Skip { .. }), "{check}");
    }
}

#[test]
fn pods_without_a_sidecar_and_sidecars_without_a_control_plane_are_named() {
    let mut facts = healthy();
    let Some(Ok(pods)) = &mut cluster(&mut facts).pods else { panic!("there") };
    let pod = |name: &str, sidecar: bool, wanted| Pod {
        namespace: "shop".into(),
        name: name.into(),
        runs: true,
        sidecar: sidecar.then_some(None),
        sidecar_ready: false,
        wanted,
    };
    pods.extend([pod("cart-1", false, true), pod("batch-1", false, false), pod("lost-1", true, true)]);
    assert_eq!(items(&found(&facts, Check::Uninjected)), ["shop/cart-1"]);
    let lost = found(&facts, Check::InjectedConnected);
    assert_eq!(items(&lost), ["shop/lost-1: its sidecar is not ready"]);
    facts.namespace = Some("other".into());
    assert!(matches!(found(&facts, Check::Uninjected), Outcome::Skip { .. }));
    assert!(matches!(found(&facts, Check::InjectedConnected), Outcome::Skip { .. }));
}

#[test]
fn where_no_sidecar_is_there_is_no_tick_for_it() {
    let mut facts = healthy();
    let Some(Ok(sidecars)) = &mut mesh(&mut facts).sidecars else { panic!("there") };
    sidecars.all.clear();
    let Some(Ok(pods)) = &mut cluster(&mut facts).pods else { panic!("there") };
    for pod in pods {
        (pod.sidecar, pod.wanted) = (None, false);
    }
    let findings = judge(AFTER, &facts);
    let (first, rest) = findings
        .iter()
        .filter(|finding| finding.check.when() == When::Proxy)
        .partition::<Vec<_>, _>(|finding| finding.check == Check::Connected);
    let Outcome::Warn { why, .. } = &first[0].outcome else { panic!("{first:?}") };
    assert!(
        why.contains("no sidecar is connected: nothing to check") && why.contains("weft.dev/inject=enabled")
    );
    assert_eq!(rest.len(), 11);
    for finding in rest {
        assert!(
            matches!(&finding.outcome, Outcome::Skip { why } if why.contains("nothing to check")),
            "{finding:?}"
        );
    }
    let other = found(&healthy_but_of("other"), Check::Connected);
    assert!(
        matches!(&other, Outcome::Warn { why, .. } if why.contains("of namespace other is connected")),
        "{other:?}"
    );
}

fn healthy_but_of(namespace: &str) -> Facts {
    Facts { namespace: Some(namespace.into()), ..healthy() }
}

#[test]
fn without_a_cluster_the_control_plane_says_whom_it_missed() {
    let at = |injection: Fact<Injection>| {
        let mut facts = Facts { cluster: None, ..healthy() };
        mesh(&mut facts).injection = Some(injection);
        let findings = judge(Plan { cluster: false, ..AFTER }, &facts);
        findings.into_iter().find(|finding| finding.check == Check::Uninjected).expect("made").outcome
    };
    let some = Injection { taken: true, injected: 1, missed: vec!["shop/cart-1".into()], unlisted: 2 };
    assert_eq!(items(&at(Ok(some))), ["shop/cart-1", "2 more, which the control plane does not list"]);
    let files = at(Ok(Injection::default()));
    assert!(matches!(&files, Outcome::Skip { why } if why.contains("reads files")), "{files:?}");
    assert!(matches!(at(Err(Trouble::Missing)), Outcome::Skip { .. }));
    assert!(matches!(at(Err(Trouble::Refused("500".into()))), Outcome::Fail { .. }));
}

#[test]
fn replicas_that_are_silent_make_no_sidecar_lost() {
    let mut facts = healthy();
    let Some(Ok(sidecars)) = &mut mesh(&mut facts).sidecars else { panic!("there") };
    sidecars.all.clear();
    sidecars.silent = vec!["pod weft-system/weft-control-plane-b".into()];
    assert!(matches!(found(&facts, Check::Connected), Outcome::Warn { .. }));
    assert!(matches!(found(&facts, Check::InjectedConnected), Outcome::Skip { .. }));
}

#[test]
fn without_a_cluster_only_the_api_is_asked() {
    let facts = Facts { cluster: None, ..healthy() };
    let findings = judge(Plan { cluster: false, ..AFTER }, &facts);
    assert!(findings.iter().all(|finding| !finding.check.asks().needs_cluster()));
    assert!(findings.iter().any(|finding| finding.check == Check::Nacked));
    assert!(findings.iter().all(|finding| matches!(finding.outcome, Outcome::Pass { .. })));
}
