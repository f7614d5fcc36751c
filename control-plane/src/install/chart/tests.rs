mod render;

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
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

fn rendered(values: &Values) -> String {
    let values = serde_json::to_value(values).expect("JSON");
    let templates = files().into_iter().filter(|(name, _)| name.starts_with("templates/"));
    templates.map(|(_, text)| render::render(&text, &values)).collect::<Vec<_>>().join("\n---\n")
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
    ] {
        let values = Values::layered([wishes.clone()]).expect("possible wishes");
        let (chart, printed) = (by_name(&rendered(&values)), by_name(&text(&objects(&values))));
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
    assert_eq!(leaves(&schema()), 16);
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
        files().into_iter().map(|(name, text)| (format!("chart/{name}"), text)).collect();
    let files: Vec<_> = texts.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    checked_in::compare(&files, checked_in::OURS);
}
