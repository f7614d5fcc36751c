//! Goldens of every shape in `shapes/`, and what must hold for all pods.

use std::path::Path;

use proptest::prelude::*;
use serde::Deserialize as _;
use serde_json::json;

use super::manifest::{Note, Outcome, Work, transform};
use super::*;
use crate::pod_security;

/// Name and text of each shape.
fn shapes() -> Vec<(String, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/shapes");
    let mut shapes: Vec<_> = std::fs::read_dir(directory)
        .expect("shapes")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .map(|path| {
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).expect("a text"))
        })
        .collect();
    shapes.sort();
    shapes
}

/// Settings that no release changes.
fn settings() -> Settings {
    Settings { image: "weft-proxy:test".into(), ..Settings::default() }
}

fn work(text: &str) -> (String, Vec<Note>) {
    transform(text, None, Work::Inject(&settings())).expect("YAML")
}

fn strip_all(text: &str) -> (String, Vec<Note>) {
    transform(text, None, Work::Strip).expect("YAML")
}

fn documents(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).expect("JSON"))
        .collect()
}

fn shown(note: &Note) -> String {
    let mut text = match &note.outcome {
        Outcome::Answered(Ok(Verdict::Injected { .. })) => format!("{}: injected\n", note.object),
        Outcome::Answered(Ok(Verdict::Unchanged)) => format!("{}: unchanged\n", note.object),
        Outcome::Answered(Ok(Verdict::LeftAlone(reason))) => {
            format!("{}: left alone ({}): {reason}\n", note.object, reason.word())
        }
        Outcome::Answered(Err(refusal)) => format!("{}: refused: {refusal}\n", note.object),
        Outcome::Stripped(had) => format!("{}: stripped: {had}\n", note.object),
    };
    for warning in &note.warnings {
        text.push_str(&format!("  warning: {warning}\n"));
    }
    text
}

#[test]
fn every_shape_becomes_what_its_golden_says() {
    let shapes = shapes();
    assert!(shapes.len() >= 25, "{}", shapes.len());
    for (name, text) in shapes {
        let (out, notes) = work(&text);
        let mut golden: String = notes.iter().map(shown).collect();
        for (before, after) in documents(&text).iter().zip(documents(&out)) {
            let patch = patch::diff(before, &after);
            if !patch.0.is_empty() {
                golden.push_str(&serde_yaml::to_string(&patch).expect("YAML"));
            }
        }
        let golden = golden.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        insta::with_settings!({ snapshot_path => "shapes", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, golden);
        });
    }
}

#[test]
fn every_shape_can_be_injected_again_and_stripped() {
    for (name, text) in shapes() {
        let (once, notes) = work(&text);
        let (twice, again) = work(&once);
        assert_eq!(documents(&twice), documents(&once), "{name}");
        let was_injected =
            |note: &Note| matches!(note.outcome, Outcome::Answered(Ok(Verdict::Injected { .. })));
        for (first, second) in notes.iter().zip(&again) {
            if was_injected(first) {
                assert_eq!(second.outcome, Outcome::Answered(Ok(Verdict::Unchanged)), "{name}");
            } else {
                assert_eq!(second.outcome, first.outcome, "{name}");
            }
        }
        let (bare, stripped) = strip_all(&once);
        assert_eq!(documents(&bare), documents(&text), "{name}");
        for (first, last) in notes.iter().zip(&stripped) {
            assert_eq!(last.outcome, Outcome::Stripped(was_injected(first)), "{name}");
        }
    }
}

#[test]
fn an_older_sidecar_is_replaced_by_the_same_as_in_a_new_pod() {
    // One of them asks for the impossible only of the newer.
    for (name, text) in shapes().into_iter().filter(|(name, _)| name != "impossible") {
        let (new, _) = work(&text);
        let older = Settings { image: "weft-proxy:old".into(), cpu_request: None, ..settings() };
        let (old, _) = transform(&text, None, Work::Inject(&older)).expect("YAML");
        let old =
            old.replace(&format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION")), "\"version\":\"0.0.1\"");
        let (updated, notes) = work(&old);
        assert_eq!(documents(&updated), documents(&new), "{name}");
        for note in notes {
            if let Outcome::Answered(Ok(Verdict::Injected { replaced, .. })) = note.outcome {
                assert_eq!(replaced.as_deref(), Some("0.0.1"), "{name}");
            }
        }
    }
}

#[test]
fn what_is_added_passes_the_restricted_standard_but_for_the_intercept_container() {
    for kind in [Sidecar::Native, Sidecar::Classic] {
        let namespace = Namespace { name: "shop".into(), ..Namespace::default() };
        let text = shapes().into_iter().find(|(name, _)| name == "restricted").expect("there").1;
        let pod = documents(&text).remove(0);
        let before: Pod = serde_json::from_value(pod.clone()).expect("a pod");
        assert_eq!(pod_security::restricted(&before.spec.expect("a spec")), Vec::<String>::new());
        let settings = Settings { sidecar: kind, ..settings() };
        let subject = Subject { pod: &pod, namespace: &namespace, owner: None, asked: true };
        let answer = inject(subject, &settings).expect("injected");
        let after: Pod = serde_json::from_value(answer.pod().expect("injected").clone()).expect("a pod");
        let broken = pod_security::restricted(&after.spec.expect("a spec"));
        let expected = ["runAsNonRoot is not true", "runAsUser is 0", "capabilities.add has NET_ADMIN"];
        assert_eq!(
            broken,
            expected.map(|what| format!("container {}: {what}", names::INTERCEPT)),
            "{kind:?}"
        );
    }
}

#[test]
fn every_shape_is_a_pod_that_kubernetes_can_read() {
    for (name, text) in shapes().into_iter().filter(|(name, _)| name != "newer-fields") {
        let (out, _) = work(&text);
        for document in documents(&out) {
            let kind = document["kind"].as_str().unwrap_or_default().to_owned();
            let Some(pod) = manifest::template(&kind).and_then(|place| document.pointer(place)) else {
                continue;
            };
            let mut unknown = Vec::new();
            let read: Result<Pod, _> =
                serde_ignored::deserialize(pod.clone(), |path| unknown.push(path.to_string()));
            // What was refused stays as wrong as it was.
            assert!(read.is_ok() || name == "impossible", "{name}: {:?}", read.err());
            assert_eq!(unknown, Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn a_status_that_nobody_wrote_is_refused_and_removes_nothing() {
    let pod = json!({
        "metadata": { "annotations": { "weft.dev/status": "{}" } },
        "spec": { "containers": [{ "name": "app" }] },
    });
    let refusal = strip(&pod).expect_err("refused");
    assert_eq!(refusal.place, "metadata.annotations[weft.dev/status]");
    // Anybody can write annotations; the app's own containers are out of their reach.
    let status =
        r#"{"version":"1","sidecar":"native","containers":["app"],"annotations":["example.org/own"]}"#;
    let pod = json!({
        "metadata": { "annotations": { "weft.dev/status": status, "example.org/own": "1" } },
        "spec": { "containers": [{ "name": "app" }] },
    });
    let bare = strip(&pod).expect("stripped");
    assert_eq!(bare["spec"]["containers"][0]["name"], "app");
    assert_eq!(bare["metadata"]["annotations"], json!({ "example.org/own": "1" }));
}

#[test]
fn only_whoever_asks_gets_a_sidecar_from_the_webhook() {
    let pod =
        json!({ "metadata": { "name": "a" }, "spec": { "containers": [{ "name": "app", "image": "a" }] } });
    let verdict = |labels: &[(&str, &str)], namespace: &str| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let namespace = Namespace { name: namespace.into(), labels, ..Namespace::default() };
        let answer =
            inject(Subject { pod: &pod, namespace: &namespace, owner: None, asked: false }, &settings());
        answer.expect("no refusal")
    };
    let silent = verdict(&[], "shop");
    assert_eq!(silent, Answer { verdict: Verdict::LeftAlone(Reason::NotAsked), warnings: vec![] });
    assert!(verdict(&[("weft.dev/inject", "enabled")], "shop").pod().is_some());
    let system = verdict(&[("weft.dev/inject", "enabled")], "kube-system");
    assert_eq!(system.verdict, Verdict::LeftAlone(Reason::Namespace("kube-system".into())));
    let typo = verdict(&[("weft.dev/inject", "yes")], "shop");
    assert_eq!(typo.verdict, Verdict::LeftAlone(Reason::NotAsked));
    assert!(typo.warnings[0].contains("enabled or disabled"), "{:?}", typo.warnings);
}

#[test]
fn a_pod_that_stays_without_a_sidecar_is_let_in_whatever_it_says_of_one() {
    let ask = |annotations: Value| {
        let pod = json!({ "metadata": { "annotations": annotations }, "spec": { "containers": [{ "name": "app" }] } });
        let labels = [("weft.dev/inject".to_owned(), "enabled".to_owned())].into();
        let namespace = Namespace { name: "shop".into(), labels, ..Namespace::default() };
        inject(Subject { pod: &pod, namespace: &namespace, owner: None, asked: false }, &settings())
    };
    for key in ["weft.dev/cpu-limit", "weft.dev/status", "weft.dev/drain-deadline"] {
        let answer = ask(json!({ "weft.dev/inject": "disabled", (key): "banana" })).expect("let in");
        assert_eq!(answer.verdict, Verdict::LeftAlone(Reason::OptedOut("pod")), "{key}");
        assert!(answer.warnings.iter().any(|warning| warning.contains(key)), "{:?}", answer.warnings);
        assert!(ask(json!({ (key): "banana" })).is_err_and(|refusal| refusal.place.contains(key)), "{key}");
    }
    // What it wants nobody knows.
    assert!(ask(json!({ "weft.dev/inject": "false" })).is_err());
    let all = json!({ "weft.dev/inject": "disabled", "weft.dev/cpu-limit": "a", "weft.dev/workers": "b" });
    let warnings = ask(all).expect("let in").warnings;
    for key in ["weft.dev/cpu-limit", "weft.dev/workers"] {
        assert!(warnings.iter().any(|warning| warning.contains(key)), "{key}: {warnings:?}");
    }
}

#[test]
fn a_request_that_nobody_wrote_is_no_reason_to_refuse_a_pod() {
    let ask = |of_pod: Value, of_namespace: &[(&str, &str)], limit: Option<&str>| {
        let pod =
            json!({ "metadata": { "annotations": of_pod }, "spec": { "containers": [{ "name": "app" }] } });
        let annotations = of_namespace.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let namespace =
            Namespace { name: "shop".into(), annotations: annotations.collect(), ..Namespace::default() };
        let settings = Settings { memory_limit: limit.map(str::to_owned), ..settings() };
        inject(Subject { pod: &pod, namespace: &namespace, owner: None, asked: true }, &settings)
    };
    let (request, limit) = ("weft.dev/memory-request", "weft.dev/memory-limit");
    for (of_pod, of_namespace, default, said) in [
        (json!({ (limit): "16Mi" }), &[][..], None, "annotation weft.dev/memory-limit of the pod"),
        (json!({}), &[(limit, "16Mi")], None, "annotation weft.dev/memory-limit of namespace shop"),
        (json!({}), &[], Some("16Mi"), "the control plane's default"),
        // It is ignored, so nobody said it.
        (json!({}), &[(request, "lots")], Some("16Mi"), "the control plane's default"),
    ] {
        let answer = ask(of_pod, of_namespace, default).expect("let in");
        let pod = answer.pod().expect("injected").to_string();
        assert!(pod.contains(r#""requests":{"cpu":"10m","memory":"16Mi"}"#), "{pod}");
        let warned = |warning: &String| warning.contains(request) && warning.contains(said);
        assert!(answer.warnings.iter().any(warned), "{said}: {:?}", answer.warnings);
    }
    for (of_pod, of_namespace, default, place, said) in [
        (json!({ (request): "1Gi" }), &[][..], Some("64Mi"), request, "64Mi (the control plane's default)"),
        (
            json!({ (request): "1Gi", (limit): "1Mi" }),
            &[],
            None,
            limit,
            "1Gi (annotation weft.dev/memory-request of the pod)",
        ),
        (
            json!({ (limit): "1Mi" }),
            &[(request, "2Mi")],
            None,
            limit,
            "2Mi (annotation weft.dev/memory-request of namespace shop)",
        ),
        (
            json!({}),
            &[(request, "2Mi"), (limit, "1Mi")],
            None,
            "namespace shop",
            "1Mi (annotation weft.dev/memory-limit of namespace shop)",
        ),
    ] {
        let refusal = ask(of_pod, of_namespace, default).expect_err("refused");
        assert!(refusal.place.contains(place) && refusal.fix.contains(said), "{refusal}");
    }
}

#[test]
fn options_that_no_sidecar_could_have_are_named() {
    let mut options = Options::default();
    assert!(options.check().is_ok());
    options.proxy_memory_limit = Some("16Mi".into());
    let words = options.check().expect_err("less than 32Mi").to_string();
    assert!(
        words.contains("--proxy-memory-limit 16Mi") && words.contains("--proxy-memory-request 32Mi"),
        "{words}"
    );
    options.proxy_memory_request = "16Mi".into();
    assert!(options.check().is_ok());
    options.proxy_cpu_limit = Some("5m".into());
    assert!(options.check().expect_err("less than 10m").to_string().contains("--proxy-cpu-request 10m"));
}

#[test]
fn more_probes_than_a_sidecar_asks_are_refused_by_pod_and_limit() {
    let probe = |path: &str| json!({ "httpGet": { "path": path, "port": 80 } });
    let pod = |containers: usize, path: &str| {
        let container = |index: usize| json!({ "name": format!("c{index}"), "livenessProbe": probe(path), "readinessProbe": probe(path) });
        json!({ "metadata": { "name": "web" }, "spec": { "containers": (0..containers).map(container).collect::<Vec<_>>() } })
    };
    let ask = |pod: &Value| {
        let namespace = Namespace { name: "shop".into(), ..Namespace::default() };
        inject(Subject { pod, namespace: &namespace, owner: None, asked: true }, &settings())
    };
    assert!(ask(&pod(names::PROBES_MAX / 2, "/")).is_ok());
    let said = ask(&pod(names::PROBES_MAX / 2 + 1, "/")).expect_err("too many").to_string();
    assert!(said.contains("pod web has 258 ") && said.contains("256"), "{said}");
    let said = ask(&pod(2, &"/a".repeat(20_000))).expect_err("too long").to_string();
    assert!(said.contains("pod web") && said.contains("122880"), "{said}");
    let mut quiet = pod(names::PROBES_MAX, "/");
    quiet["metadata"]["annotations"] = json!({ "weft.dev/probes": "disabled" });
    assert!(ask(&quiet).is_ok(), "as the refusal advises");
}

#[test]
fn where_policies_close_a_namespace_its_pods_start_closed() {
    let access = |closed: bool, of_namespace: Option<&str>, of_pod: Option<&str>| {
        let annotations = |value: Option<&str>| {
            value
                .map(|value| ("weft.dev/default-access".to_owned(), value.to_owned()))
                .into_iter()
                .collect::<BTreeMap<_, _>>()
        };
        let namespace = Namespace {
            name: "shop".into(),
            annotations: annotations(of_namespace),
            closed,
            ..Namespace::default()
        };
        let pod = json!({ "metadata": { "annotations": annotations(of_pod) }, "spec": { "containers": [{ "name": "app" }] } });
        let ask = |pod: &Value| {
            inject(Subject { pod, namespace: &namespace, owner: None, asked: true }, &settings())
                .expect("injected")
        };
        let injected = ask(&pod).pod().expect("injected").clone();
        assert_eq!(ask(&injected).verdict, Verdict::Unchanged);
        let environment = injected["spec"]["initContainers"][1]["env"].as_array().expect("variables").clone();
        let variable = environment.into_iter().find(|variable| variable["name"] == "WEFT_DEFAULT_ACCESS");
        variable.map(|variable| variable["value"].as_str().expect("a text").to_owned())
    };
    let deny = Some("deny".to_owned());
    assert_eq!(access(false, None, None), None);
    assert_eq!(access(true, None, None), deny);
    assert_eq!(access(true, Some("allow"), None), deny, "that is where no policy speaks");
    assert_eq!(access(true, None, Some("allow")).as_deref(), Some("allow"));
    assert_eq!(access(false, Some("deny"), None), deny);
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        (1_u16..9000).prop_map(|port| json!(port)),
        Just(json!("http")),
        Just(json!("none")),
        Just(json!("8080"))
    ]
}

fn handler() -> impl Strategy<Value = Value> {
    prop_oneof![
        (port(), proptest::option::of("/[a-z]{0,5}"), proptest::bool::ANY).prop_map(|(port, path, tls)| {
            let mut get = json!({ "port": port });
            if let Some(path) = path {
                get["path"] = json!(path);
            }
            if tls {
                get["scheme"] = json!("HTTPS");
            }
            json!({ "httpGet": get })
        }),
        port().prop_map(|port| json!({ "tcpSocket": { "port": port } })),
        (1_u16..9000).prop_map(|port| json!({ "grpc": { "port": port } })),
        Just(json!({ "exec": { "command": ["true"] } })),
    ]
}

fn container() -> impl Strategy<Value = Value> {
    let probe = || proptest::option::of((handler(), 1..9_u8));
    (probe(), probe(), probe(), proptest::option::of(handler()), proptest::option::of(1_u16..9000)).prop_map(
        |(liveness, readiness, startup, hook, port)| {
            let mut container = json!({ "image": "app" });
            for (name, probe) in
                [("livenessProbe", liveness), ("readinessProbe", readiness), ("startupProbe", startup)]
            {
                if let Some((mut handler, period)) = probe {
                    handler["periodSeconds"] = json!(period);
                    container[name] = handler;
                }
            }
            if let Some(hook) = hook.filter(|hook| hook.get("grpc").is_none()) {
                container["lifecycle"] = json!({ "preStop": hook });
            }
            if let Some(port) = port {
                container["ports"] = json!([{ "name": "http", "containerPort": port }]);
            }
            container
        },
    )
}

fn pod() -> impl Strategy<Value = Value> {
    let containers = |from| proptest::collection::vec(container(), from..4);
    let annotations = proptest::collection::btree_map(
        prop_oneof![
            Just("example.org/a".to_owned()),
            Just("weft.dev/cpu-limit".to_owned()),
            Just("weft.dev/nothing".to_owned())
        ],
        prop_oneof![Just("1".to_owned()), Just("2500m".to_owned())],
        0..3,
    );
    (containers(1), containers(0), annotations, 0..200_i64, proptest::bool::ANY).prop_map(
        |(containers, init, annotations, grace, volumes)| {
            let named = |mut list: Vec<Value>, name: &str| {
                for (index, container) in list.iter_mut().enumerate() {
                    container["name"] = json!(format!("{name}-{index}"));
                }
                list
            };
            let mut pod = json!({
                "metadata": { "name": "a" },
                "spec": { "containers": named(containers, "app"), "terminationGracePeriodSeconds": grace },
            });
            if !init.is_empty() {
                pod["spec"]["initContainers"] = json!(named(init, "init"));
            }
            if !annotations.is_empty() {
                pod["metadata"]["annotations"] = json!(annotations);
            }
            if volumes {
                pod["spec"]["volumes"] = json!([{ "name": "data", "emptyDir": {} }]);
            }
            pod
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn injecting_is_idempotent_reversible_and_what_its_patch_says(pod in pod(), classic in proptest::bool::ANY) {
        let sidecar = if classic { Sidecar::Classic } else { Sidecar::Native };
        let settings = Settings { sidecar, ..settings() };
        let namespace = Namespace { name: "shop".into(), ..Namespace::default() };
        let ask = |pod: &Value| inject(Subject { pod, namespace: &namespace, owner: None, asked: true }, &settings);
        let answer = ask(&pod).expect("nothing impossible");
        let injected = answer.pod().expect("injected").clone();
        prop_assert_eq!(ask(&injected).expect("again").verdict, Verdict::Unchanged);
        prop_assert_eq!(&strip(&injected).expect("stripped"), &pod);
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &patch::diff(&pod, &injected)).expect("applies");
        prop_assert_eq!(&patched, &injected);
        prop_assert_eq!(sidecar_of(&injected), Some(sidecar));
        // No probe that needs the network reaches the app but by the sidecar, unless its port is unknown.
        let text = injected["spec"]["containers"].to_string();
        let direct = text.contains(r#""livenessProbe":{"grpc""#);
        prop_assert!(!direct, "{}", text);
    }

    #[test]
    fn no_text_breaks_a_manifest(text in "(kind: Pod|metadata:|spec: |---|\n| |containers: \\[|\\]|\\{|\\}|name: a|weft.dev/status: '\\{'|,){0,12}") {
        drop(transform(&text, None, Work::Inject(&settings())));
        drop(transform(&text, None, Work::Strip));
    }
}

/// The rows of the documentation's table.
fn rows() -> String {
    use weft_wire::annotation::{Place, TABLE};
    let mut rows = String::from("| key | on | values | meaning |\n|---|---|---|---|\n");
    for row in TABLE {
        let place = match row.place {
            Place::Both => "pod, namespace",
            Place::BothAndLabel => "pod, namespace; annotation or label",
            Place::Namespace => "namespace",
            Place::Written => "written by the control plane",
        };
        rows.push_str(&format!("| `{}` | {place} | {} | {} |\n", row.key, row.values, row.meaning));
    }
    rows
}

#[test]
fn the_documentation_has_the_table_of_annotations() {
    const BEGIN: &str = "<!-- table: wire/src/annotation.rs -->\n";
    const END: &str = "<!-- end of table -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/injection.md");
    let text = std::fs::read_to_string(&path).expect("docs/injection.md");
    let (before, rest) = text.split_once(BEGIN).expect("where the table begins");
    let (table, after) = rest.split_once(END).expect("where it ends");
    if table != rows() {
        // As with snapshots: what is right is written down beside the failure.
        let right = format!("{before}{BEGIN}{}{END}{after}", rows());
        std::fs::write(path.with_extension("md.new"), right).expect("a file beside it");
        panic!("docs/injection.md is not what the table says; docs/injection.md.new is");
    }
}

#[test]
fn the_documentation_names_every_reason() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/injection.md");
    let text = std::fs::read_to_string(path).expect("docs/injection.md");
    for word in review::words().filter(|word| !review::WORDS.contains(word)) {
        assert!(text.contains(&format!("| `{word}` |")), "{word}");
    }
}
