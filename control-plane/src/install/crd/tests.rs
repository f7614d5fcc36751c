mod verdict;

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;
use crate::install::{checked_in, yaml};
use crate::resources::policy::fixtures::*;
use crate::resources::{Content, parse};

#[test]
fn the_files_are_what_the_types_say() {
    let texts: Vec<(String, String)> = definitions()
        .iter()
        .map(|one| (format!("crds/{}.yaml", one.spec.names.plural), yaml::document(one)))
        .collect();
    let files: Vec<_> = texts.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
    checked_in::compare(&files, checked_in::OURS);
}

/// The schema of a kind, as an API server has it.
fn schema(kind: &str) -> Value {
    let definitions = definitions();
    let found = definitions.iter().find(|one| one.spec.names.kind == kind).expect("a kind of ours");
    let version = &found.spec.versions[0];
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    serde_json::to_value(schema.expect("there")).expect("JSON")
}

/// What the schema of its kind says of a document.
fn schema_refuses(document: &Value) -> Vec<String> {
    let kind = document["kind"].as_str().expect("a kind");
    verdict::refusals(&schema(kind), document)
}

/// What the reader says of a document.
fn reader_refuses(text: &str) -> Option<String> {
    let documents = parse(text);
    assert_eq!(documents.len(), 1, "{text}");
    match &documents[0].content {
        Content::Object(_) => None,
        Content::Broken(flaws) => Some(format!("{}: {}", flaws[0].field, flaws[0].reason)),
        other => panic!("{other:?}: {text}"),
    }
}

fn json_of(text: &str) -> Value {
    serde_yaml::from_str(text).expect("YAML")
}

#[test]
fn nothing_of_a_schema_is_lost_on_the_way_to_the_api() {
    for kind in &KINDS {
        let spec = (kind.spec)();
        let carried = &schema(kind.kind)["properties"]["spec"];
        similar(&spec, carried, "spec");
    }
}

/// Equal, but for how numbers are written.
fn similar(one: &Value, other: &Value, at: &str) {
    match (one, other) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{at}");
            a.iter().for_each(|(key, value)| similar(value, &b[key], &format!("{at}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{at}");
            a.iter().zip(b).for_each(|(a, b)| similar(a, b, at));
        }
        (Value::Number(a), Value::Number(b)) => assert_eq!(a.as_f64(), b.as_f64(), "{at}"),
        _ => assert_eq!(one, other, "{at}"),
    }
}

#[test]
fn schemas_are_structural_and_have_no_defaults() {
    fn look(schema: &Value, at: &str) {
        let words = schema.as_object().expect("a schema is an object");
        for word in ["$ref", "anyOf", "oneOf", "allOf", "not", "default", "nullable", "const", "title"] {
            assert!(!words.contains_key(word), "{at} has {word}");
        }
        assert!(words.contains_key("type"), "{at} has no type");
        if at.starts_with("spec") {
            let item = at.ends_with("[]") || at.ends_with("{}");
            assert!(item || words.contains_key("description"), "{at} is not described");
        }
        for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
            look(schema, format!("{at}.{field}").trim_start_matches('.'));
        }
        for (word, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
            words.get(word).into_iter().for_each(|schema| look(schema, &format!("{at}{mark}")));
        }
    }
    for kind in &KINDS {
        look(&schema(kind.kind), "");
    }
}

#[test]
fn what_the_reader_takes_the_schema_takes() {
    for text in [BREAKER, POLICY, ACCESS] {
        assert_eq!(reader_refuses(text), None);
        assert_eq!(schema_refuses(&json_of(text)), [""; 0], "{text}");
    }
}

#[test]
fn what_the_reader_refuses_the_schema_refuses() {
    for (right, mistakes) in
        [(BREAKER, BREAKER_MISTAKES), (POLICY, POLICY_MISTAKES), (ACCESS, ACCESS_MISTAKES)]
    {
        for (from, to, field, _) in mistakes {
            let text = right.replacen(from, to, 1);
            let refusals = schema_refuses(&json_of(&text));
            assert!(!refusals.is_empty(), "{field} by {to}");
        }
    }
}

#[test]
fn examples_in_the_documentation_are_taken_by_both() {
    let mut seen = 0;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for entry in std::fs::read_dir(directory).expect("docs") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let blocks = text.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next());
        for document in blocks.flat_map(|block| block.split("\n---\n")) {
            if document.contains("weft.dev/v1alpha1") {
                seen += 1;
                assert_eq!(reader_refuses(document), None, "{}: {document}", path.display());
                assert_eq!(schema_refuses(&json_of(document)), [""; 0], "{}: {document}", path.display());
            }
        }
    }
    assert!(seen > 0, "the documentation shows no policy");
}

/// What only a program can tell, in words of the reader's reasons.
const BEYOND_SCHEMAS: [&str; 3] = ["is not a regular expression", "is not a host", "would take more than"];

/// Values that are right somewhere, and wrong elsewhere.
fn anything() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "0s",
        "1ms",
        "10ms",
        "1s",
        "5m",
        "2h",
        "9000h",
        "1h1h",
        "10",
        "-1s",
        "soon",
        "/",
        "/a",
        "/a/../b",
        "//",
        "a b",
        "/a?b",
        "GET",
        "x-team",
        "X Team",
        "orders",
        "Orders",
        "shop.Orders",
        "GRPC",
        "HTTP",
        "TCP",
        "HTTPRoute",
        "Service",
        "gateway.networking.k8s.io",
        "RingHash",
        "Random",
        "PeakEwma",
        "5xx",
        "service",
        "caller",
        "strict",
        "Deny",
        "Audit",
        "Allow",
        "RegularExpression",
        "Exact",
        "a(",
    ];
    prop_oneof![
        select(texts.map(Value::from).to_vec()),
        select(
            [-1i64, 0, 1, 2, 16, 63, 64, 99, 100, 101, 200, 404, 503, 600, 8080, 65535, 65536, 1 << 32]
                .map(Value::from)
                .to_vec()
        ),
        select([0.0001f64, 0.5, 99.9, 100.5].map(Value::from).to_vec()),
        select(vec![json!(true), json!(false), json!([]), json!({})]),
    ]
}

/// Places of a value: every field and every item.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                let at = format!("{at}/{}", field.replace('/', "~1"));
                found.push(at.clone());
                places(value, &at, found);
            }
        }
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| {
            let at = format!("{at}/{index}");
            found.push(at.clone());
            places(item, &at, found);
        }),
        _ => {}
    }
}

/// Something else at a place, something twice, or nothing.
#[derive(Debug, Clone)]
enum Change {
    Replace(Value),
    Remove,
    Again,
}

fn change() -> impl Strategy<Value = (Index, Change)> {
    let change = prop_oneof![
        5 => anything().prop_map(Change::Replace),
        2 => Just(Change::Remove),
        1 => Just(Change::Again),
    ];
    (any::<Index>(), change)
}

fn changed(mut document: Value, changes: &[(Index, Change)]) -> Value {
    for (index, change) in changes {
        let mut all = Vec::new();
        places(&document["spec"], "/spec", &mut all);
        if all.is_empty() {
            break;
        }
        let place = index.get(&all);
        let (parent, key) = place.rsplit_once('/').expect("below the document");
        let parent = document.pointer_mut(parent).expect("it was found");
        match (parent, change) {
            (Value::Object(fields), Change::Replace(value)) => {
                fields.insert(key.replace("~1", "/"), value.clone());
            }
            (Value::Object(fields), Change::Remove) => drop(fields.remove(&key.replace("~1", "/"))),
            (Value::Array(items), change) => {
                let at: usize = key.parse().expect("a number");
                match change {
                    Change::Replace(value) => items[at] = value.clone(),
                    Change::Remove => drop(items.remove(at)),
                    Change::Again => items.push(items[at].clone()),
                }
            }
            _ => {}
        }
    }
    document
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn reader_and_schema_agree(
        base in select(vec![BREAKER, POLICY, ACCESS]),
        changes in prop::collection::vec(change(), 1..4),
    ) {
        let document = changed(json_of(base), &changes);
        let reader = reader_refuses(&serde_json::to_string(&document).expect("JSON"));
        let schema = schema_refuses(&document);
        match (&reader, schema.is_empty()) {
            (None, true) | (Some(_), false) => {}
            (Some(reason), true) => {
                let excused = BEYOND_SCHEMAS.iter().any(|words| reason.contains(words));
                prop_assert!(excused, "only the reader refuses: {reason}: {document}");
            }
            // In YAML what has no quotes may be a text, and the reader knows what it wants; JSON has types.
            (None, false) if schema.iter().all(|one| one.ends_with("has the wrong type")) => {}
            (None, false) => prop_assert!(false, "only the schema refuses: {schema:?}: {document}"),
        }
    }
}
