mod render;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::install::values::Rule;
use crate::install::{checked_in, objects, text};

/// Objects by kind and name, with fields in no order and the remembered wishes as what they say.
fn by_name(text: &str) -> BTreeMap<String, Value> {
    let mut objects = BTreeMap::new();
    for document in text.split("\n---\n") {
        let value: Option<Value> =
            serde_yaml::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
        let Some(mut value) = value else { continue };
        if let Some(wishes) = value["metadata"]["annotations"].get_mut(INSTALLED_WITH) {
            *wishes = serde_json::from_str(wishes.as_str().expect("text")).expect("JSON");
        }
        let name =
            format!("{} {}/{}", value["kind"], value["metadata"]["namespace"], value["metadata"]["name"]);
        assert!(objects.insert(name, value).is_none(), "twice: {document}");
    }
    objects
}

/// Made once: every combination of switches is rendered for it.
static FILES: LazyLock<Vec<(String, String)>> = LazyLock::new(files);

fn rendered(values: &Values) -> String {
    rendered_from(&serde_json::to_value(values).expect("JSON"))
}

fn rendered_from(values: &Value) -> String {
    let templates = FILES.iter().filter(|(name, _)| name.starts_with("templates/"));
    templates.map(|(_, text)| render::render(text, values)).collect::<Vec<_>>().join("\n---\n")
}

#[test]
fn the_chart_renders_what_weft_install_prints() {
    for wishes in [
        json!({}),
        json!({ "ha": true }),
        json!({ "image": { "registry": "registry.example/mesh", "tag": "1.2.3", "pullPolicy": "Always" } }),
        json!({ "image": { "pullSecrets": [{ "name": "a" }, { "name": "b" }] } }),
        json!({ "trustDomain": "example.org", "log": "info,weft_control_plane::xds=debug" }),
        json!({ "networkPolicy": { "enabled": false }, "namespace": { "create": false }, "crds": { "create": false } }),
        json!({ "injector": { "failurePolicy": "Fail", "mayRestart": true }, "ha": true }),
        json!({ "controlPlane": {
            "nodeSelector": { "disk": "ssd", "kubernetes.io/os": "linux" },
            "tolerations": [{ "key": "a", "operator": "Exists", "tolerationSeconds": 3 }],
            "priorityClassName": "system-cluster-critical",
            "resources": { "limits": { "memory": "2Gi", "cpu": "2" } },
        } }),
        json!({ "controlPlane": { "history": { "persistentVolumeClaim": "graph" } } }),
        json!({ "api": { "tokensSecret": "weft-api-tokens" } }),
        json!({ "api": { "tokensSecret": "weft-api-tokens", "expose": true, "publicUrl": "https://weft.example.com" }, "ha": true }),
        json!({ "api": { "expose": true, "publicUrl": "https://weft.example.com", "oidc": {
            "issuer": "https://login.example.com/realms/main", "clientId": "weft", "clientSecret": "weft-oidc",
            "operatorGroups": "sre,platform", "viewerGroups": "*",
        } } }),
        json!({ "api": { "publicUrl": "http://weft", "tokensSecret": "t" } }),
        json!({ "api": { "publicUrl": "http://localhost:8080", "tokensSecret": "t", "oidc": {
            "issuer": "https://login.example.com", "clientId": "weft", "viewerGroups": "system:authenticated,site reliability",
            "groupsClaim": "realm_access.roles", "scopes": "openid,groups",
        } }, "ha": true }),
        // Numbers, as `--set` makes them of texts.
        json!({ "sidecar": { "resources": {
            "requests": { "cpu": 0.5, "memory": 134217728 }, "limits": { "cpu": 2, "memory": 1000000000.0 },
        } } }),
        json!({ "sidecar": { "kind": "classic", "logLevel": "info,weft_proxy=debug", "resources": {
            "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "cpu": "2", "memory": "256Mi" },
        } } }),
        // Everything that goes together.
        json!({
            "controlPlane": { "history": { "persistentVolumeClaim": "graph" } },
            "api": { "expose": true, "publicUrl": "https://weft.example.com", "tokensSecret": "weft-api-tokens", "oidc": {
                "issuer": "https://login.example.com", "clientId": "weft", "clientSecret": "weft-oidc", "operatorGroups": "sre",
            } },
        }),
    ] {
        let values = Values::layered([wishes.clone()]).expect("possible wishes");
        let mut raw = serde_json::to_value(Values::default()).expect("JSON");
        crate::install::values::merge(&mut raw, wishes.clone());
        let (mut chart, mut printed) = (by_name(&rendered_from(&raw)), by_name(&text(&objects(&values))));
        // It may be remembered as it was written, if it is read alike.
        for one in [&mut chart, &mut printed] {
            let deployments = one.values_mut().filter(|one| one["kind"] == "Deployment");
            for wishes in deployments.map(|one| &mut one["metadata"]["annotations"][INSTALLED_WITH]) {
                let read = Values::layered([wishes.take()]).expect("what was possible is");
                *wishes = serde_json::to_value(read).expect("JSON");
            }
        }
        assert_eq!(chart.keys().collect::<Vec<_>>(), printed.keys().collect::<Vec<_>>(), "{wishes}");
        for (name, object) in &printed {
            assert_eq!(&chart[name], object, "{wishes}: {name}");
        }
    }
}

#[test]
fn every_value_changes_something() {
    let whole = rendered(&Values::default());
    for wish in [
        "ha=true",
        "image.registry=a",
        "image.tag=a",
        "image.pullPolicy=Never",
        "image.pullSecrets=[{name: a}]",
        "trustDomain=a",
        "log=a",
        "controlPlane.resources={limits: {cpu: '1'}}",
        "controlPlane.nodeSelector={a: b}",
        "controlPlane.tolerations=[{key: a}]",
        "controlPlane.priorityClassName=a",
        "controlPlane.history.persistentVolumeClaim=a",
        "api={tokensSecret: a}",
        "api.publicUrl=https://a",
        "api={tokensSecret: a, expose: true}",
        "api={publicUrl: 'https://a', oidc: {issuer: 'https://b', clientId: a, clientSecret: a, operatorGroups: a, viewerGroups: a}}",
        "sidecar.kind=classic",
        "sidecar.logLevel=debug",
        "sidecar.resources.requests.cpu=1m",
        "sidecar.resources.requests.memory=1Mi",
        "sidecar.resources.limits.cpu='1'",
        "sidecar.resources.limits.memory=1Gi",
        "injector.failurePolicy=Fail",
        "injector.mayRestart=true",
        "networkPolicy.enabled=false",
        "namespace.create=false",
        "crds.create=false",
    ] {
        let layer = crate::install::values::assignment(wish).expect("well-formed");
        assert_ne!(rendered(&Values::layered([layer]).expect(wish)), whole, "{wish}");
    }
    // The list above is complete.
    fn leaves(schema: &Value) -> usize {
        let fields = schema["properties"].as_object();
        fields.map_or(1, |fields| fields.values().map(leaves).sum())
    }
    assert_eq!(leaves(&schema()), 33);
    // Each on top of what it needs.
    let base = json!({ "publicUrl": "https://a", "oidc": { "issuer": "https://b", "clientId": "a", "operatorGroups": "a" } });
    let with = |wishes: &Value| {
        rendered(&Values::layered([json!({ "api": base }), json!({ "api": wishes })]).expect("possible"))
    };
    let whole = with(&json!({}));
    for more in [
        json!({ "oidc": { "issuer": "https://c" } }),
        json!({ "oidc": { "clientId": "b" } }),
        json!({ "oidc": { "clientSecret": "a" } }),
        json!({ "oidc": { "operatorGroups": "b" } }),
        json!({ "oidc": { "viewerGroups": "b" } }),
        json!({ "oidc": { "groupsClaim": "b" } }),
        json!({ "oidc": { "scopes": "b" } }),
        json!({ "publicUrl": "https://c" }),
        json!({ "tokensSecret": "a" }),
        json!({ "expose": true }),
    ] {
        assert_ne!(with(&more), whole, "{more}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_both_in_the_same_words() {
    let mut said = BTreeSet::new();
    let provider = |more: Value| {
        let mut all = json!({ "issuer": "https://b", "clientId": "w", "viewerGroups": "v" });
        crate::install::values::merge(&mut all, more);
        json!({ "api": { "publicUrl": "https://a", "oidc": all } })
    };
    let resources = |more: Value| json!({ "sidecar": { "resources": more } });
    let plain = |url: &str| json!({ "api": { "publicUrl": url, "oidc": { "issuer": "https://b", "clientId": "w", "viewerGroups": "v" } } });
    for (wishes, why) in [
        (json!({ "api": { "expose": true } }), "api.tokensSecret"),
        (
            json!({ "ha": true, "controlPlane": { "history": { "persistentVolumeClaim": "a" } } }),
            "one claim is not for several",
        ),
        (json!({ "api": { "oidc": { "clientId": "w" } } }), "api.oidc.clientId: 'w'"),
        (json!({ "api": { "oidc": { "clientSecret": "w" } } }), "api.oidc.clientSecret: 'w'"),
        (json!({ "api": { "oidc": { "operatorGroups": "w" } } }), "api.oidc.operatorGroups: 'w'"),
        (json!({ "api": { "oidc": { "viewerGroups": "*" } } }), "api.oidc.viewerGroups: '*'"),
        (json!({ "api": { "oidc": { "groupsClaim": "w" } } }), "api.oidc.groupsClaim: 'w'"),
        (json!({ "api": { "oidc": { "scopes": "w" } } }), "api.oidc.scopes: 'w'"),
        (provider(json!({ "clientId": "" })), "api.oidc.clientId: is missing"),
        (plain(""), "api.publicUrl: is missing: https://b"),
        (provider(json!({ "viewerGroups": "" })), "nobody could sign in"),
        (plain("http://weft.example.com"), "api.publicUrl: http://weft.example.com is plain HTTP"),
        (plain("http://localhost.example.com"), "is plain HTTP"),
        (
            resources(json!({ "limits": { "memory": "16Mi" } })),
            "sidecar.resources.limits.memory: 16Mi is less than sidecar.resources.requests.memory, 32Mi",
        ),
        (
            resources(json!({ "limits": { "cpu": "5m" } })),
            "sidecar.resources.limits.cpu: 5m is less than sidecar.resources.requests.cpu, 10m",
        ),
        (resources(json!({ "limits": { "cpu": 1 }, "requests": { "cpu": 1.5 } })), "1 is less than"),
    ] {
        let words = Values::layered([wishes.clone()]).expect_err("refused").to_string();
        assert!(words.contains(why), "{wishes}: {words}");
        let mut values = serde_json::to_value(Values::default()).expect("JSON");
        crate::install::values::merge(&mut values, wishes.clone());
        let (_, template) = FILES.iter().find(|(name, _)| name.ends_with("refuse.yaml")).expect("there");
        let refused = std::panic::catch_unwind(|| render::render(template, &values)).expect_err("refused");
        assert_eq!(refused.downcast_ref::<String>(), Some(&words), "{wishes}");
        let rule = |rule: &Rule| {
            words.starts_with(&rule.parts().0[0]) && words.ends_with(rule.parts().0.last().expect("words"))
        };
        said.extend(rules().iter().position(rule));
    }
    assert_eq!(said.len(), rules().len(), "each row has been said: {said:?}");
}

#[test]
fn what_the_schema_refuses_weft_install_refuses_and_the_other_way_round() {
    let schema = schema();
    for (path, bad) in [
        ("trustDomain", "a/b"),
        ("log", "info:"),
        ("image.registry", "a/"),
        ("image.tag", "a b"),
        ("image.pullPolicy", "Sometimes"),
        ("injector.failurePolicy", "Ask"),
        ("controlPlane.priorityClassName", "a..b"),
        ("controlPlane.history.persistentVolumeClaim", "Graph"),
        ("api.publicUrl", "https://a:b:c"),
        ("api.publicUrl", "https://x.y/weft"),
        ("api.tokensSecret", "-a"),
        ("api.oidc.issuer", "login.example.com"),
        ("api.oidc.clientId", "a:"),
        ("api.oidc.clientSecret", "a_b"),
        ("api.oidc.operatorGroups", "a#b"),
        ("api.oidc.viewerGroups", "a: b"),
        ("api.oidc.groupsClaim", ""),
        ("api.oidc.scopes", "a b"),
        ("sidecar.kind", "perhaps"),
        ("sidecar.logLevel", "loud"),
        ("sidecar.resources.requests.cpu", "1.2.3"),
        ("sidecar.resources.requests.memory", "64MB"),
        ("sidecar.resources.limits.cpu", "10000"),
        ("sidecar.resources.limits.memory", "0"),
    ] {
        let one = path.split('.').fold(&schema, |schema, field| &schema["properties"][field]);
        let by_pattern = one["pattern"]
            .as_str()
            .is_some_and(|pattern| !regex::Regex::new(pattern).expect("a pattern").is_match(bad));
        let by_words = one["enum"].as_array().is_some_and(|words| !words.contains(&bad.into()));
        assert!(by_pattern || by_words, "{path}: {bad:?}: {one}");
        let wish = path.rsplit('.').fold(Value::from(bad), |value, field| json!({ field: value }));
        let words = Values::layered([wish]).expect_err(bad).to_string();
        assert!(words.starts_with(path), "{bad:?}: {words}");
    }
    // What is taken away is named, and no template meets it.
    for path in ["", "/properties/sidecar", "/properties/api/properties/oidc"] {
        let one = schema.pointer(path).expect(path);
        let fields = one["properties"].as_object().expect("fields").len();
        assert_eq!(one["required"].as_array().map(Vec::len), Some(fields), "{path}");
    }
    for path in QUANTITIES {
        let one = path.split('.').fold(&schema, |schema, field| &schema["properties"][field]);
        assert_eq!(one["type"], json!(["string", "number"]), "{path}");
    }
}

#[test]
fn the_schema_knows_the_defaults_and_refuses_the_unknown() {
    let schema = schema();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["image"]["additionalProperties"], false);
    for (path, pattern) in
        [("/properties/trustDomain", "cluster.local"), ("/properties/image/properties/tag", "0.1.0")]
    {
        let found = schema.pointer(path).and_then(|one| one["pattern"].as_str()).expect("a pattern");
        assert!(regex::Regex::new(found).expect("a pattern").is_match(pattern), "{path}");
    }
}

#[test]
fn the_files_are_what_the_objects_say() {
    let texts: Vec<(String, String)> =
        FILES.iter().map(|(name, text)| (format!("chart/{name}"), text.clone())).collect();
    let files: Vec<_> = texts.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    checked_in::compare(&files, checked_in::OURS);
}
