mod verdict;

use std::path::Path;

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
    checked_in::compare(&files);
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
