//! What an API server says of an object, as far as a structural schema and rules in CEL decide it.
//!
//! In: a schema and a value. Out: every refusal with its place; none if the object is taken. As an API server does it,
//! rules are asked only of what has the right shape, and unknown fields are refused (`kubectl` asks for that).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use cel::{Context, Program};
use regex::Regex;
use serde_json::{Map, Value, json};

/// Words of CEL that cannot be names of fields: they are written with underscores around them.
const RESERVED: [&str; 4] = ["namespace", "function", "package", "var"];

pub(super) fn refusals(schema: &Value, value: &Value) -> Vec<String> {
    let mut refusals = Vec::new();
    shape(schema, value, "", &mut refusals);
    if refusals.is_empty() {
        rules(schema, value, "", &mut refusals);
    }
    refusals
}

fn shape(schema: &Value, value: &Value, at: &str, refusals: &mut Vec<String>) {
    let mut refuse = |reason: &str| refusals.push(format!("{at}: {reason}"));
    let fits = match schema["type"].as_str().expect("every node has a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        other => panic!("{at}: no such type: {other}"),
    };
    if !fits {
        return refuse("has the wrong type");
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        refuse("is not one of the words");
    }
    if let Some(text) = value.as_str() {
        let matches = |pattern| Regex::new(pattern).expect("patterns compile").is_match(text);
        if schema["pattern"].as_str().is_some_and(|pattern| !matches(pattern)) {
            refuse("does not match the pattern");
        }
    }
    let size = match value {
        Value::String(text) => Some((text.chars().count(), "minLength", "maxLength")),
        Value::Array(items) => Some((items.len(), "minItems", "maxItems")),
        Value::Object(fields) => Some((fields.len(), "minProperties", "maxProperties")),
        _ => None,
    };
    let number = size.map(|(size, min, max)| (size as f64, min, max));
    let number = number.or_else(|| Some((value.as_f64()?, "minimum", "maximum")));
    if let Some((number, min, max)) = number {
        if schema[min].as_f64().is_some_and(|min| number < min) {
            refuse("is too small");
        }
        if schema[max].as_f64().is_some_and(|max| number > max) {
            refuse("is too large");
        }
    }
    for field in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if value.get(field).is_none() {
            refuse(&format!("{field} is missing"));
        }
    }
    // An object without properties or a rule for more of them takes anything: metadata.
    if let Value::Object(fields) = value
        && (schema["properties"].is_object() || schema["additionalProperties"].is_object())
    {
        for field in fields.keys().filter(|field| below(schema, field).is_none()) {
            refuse(&format!("unknown field {field}"));
        }
    }
    for (schema, value, at) in children(schema, value, at) {
        shape(schema, value, &at, refusals);
    }
}

/// The schema of a field.
fn below<'a>(schema: &'a Value, field: &str) -> Option<&'a Value> {
    let named = schema.get("properties").and_then(|properties| properties.get(field));
    named.or_else(|| schema.get("additionalProperties"))
}

fn children<'a>(
    schema: &'a Value,
    value: &'a Value,
    at: &'a str,
) -> Box<dyn Iterator<Item = (&'a Value, &'a Value, String)> + 'a> {
    match value {
        Value::Object(fields) => Box::new(fields.iter().filter_map(move |(field, value)| {
            let dot = if at.is_empty() { "" } else { "." };
            Some((below(schema, field)?, value, format!("{at}{dot}{field}")))
        })),
        Value::Array(items) => Box::new(
            items.iter().enumerate().map(move |(i, item)| (&schema["items"], item, format!("{at}[{i}]"))),
        ),
        _ => Box::new(std::iter::empty()),
    }
}

fn rules(schema: &Value, value: &Value, at: &str, refusals: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().expect("a rule says what must hold");
        let program = compiled(text);
        let mut context = Context::default();
        context.add_variable("self", escaped(value)).expect("JSON is something in CEL");
        match program.execute(&context) {
            Ok(cel::Value::Bool(true)) => {}
            Ok(cel::Value::Bool(false)) => {
                let field = rule["fieldPath"].as_str().unwrap_or_default();
                refusals.push(format!("{at}{field}: {}", rule["message"].as_str().expect("a rule says why")));
            }
            other => panic!("{at}: {text} is {other:?} of {value}"),
        }
    }
    for (schema, value, at) in children(schema, value, at) {
        rules(schema, value, &at, refusals);
    }
}

/// A rule's program. Each is compiled once: that takes longer than all the rest.
fn compiled(text: &str) -> Rc<Program> {
    thread_local! {
        static PROGRAMS: RefCell<HashMap<String, Rc<Program>>> = RefCell::default();
    }
    PROGRAMS.with_borrow_mut(|programs| {
        let compile = || Rc::new(Program::compile(text).unwrap_or_else(|error| panic!("{text}: {error}")));
        Rc::clone(programs.entry(text.to_owned()).or_insert_with(compile))
    })
}

/// A value with the names that its fields have in CEL.
fn escaped(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(field, value)| {
                    let reserved = RESERVED.contains(&field.as_str());
                    (if reserved { format!("__{field}__") } else { field.clone() }, escaped(value))
                })
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => items.iter().map(escaped).collect(),
        other => other.clone(),
    }
}

#[test]
fn it_refuses_what_an_api_server_refuses() {
    let schema = json!({
        "type": "object",
        "required": ["a"],
        "properties": {
            "a": { "type": "integer", "minimum": 1 },
            "namespace": { "type": "string", "maxLength": 2, "pattern": "^x" },
            "list": { "type": "array", "minItems": 1, "items": { "type": "string", "enum": ["b"] } },
            "map": { "type": "object", "additionalProperties": { "type": "boolean" } },
        },
        "x-kubernetes-validations": [{ "rule": "self.a < 5 || has(self.__namespace__)", "message": "no", "fieldPath": ".a" }],
    });
    let of = |value: Value| refusals(&schema, &value);
    assert_eq!(of(json!({ "a": 2, "namespace": "xy", "list": ["b"], "map": { "c": true } })), [""; 0]);
    assert_eq!(of(json!({ "a": 7 })), [".a: no"]);
    assert_eq!(of(json!({ "a": 7, "namespace": "x" })), [""; 0]);
    for wrong in [
        json!({}),
        json!({ "a": 0 }),
        json!({ "a": 1.5 }),
        json!({ "a": null }),
        json!({ "a": 1, "b": 2 }),
        json!({ "a": 1, "namespace": "xyz" }),
        json!({ "a": 1, "namespace": "y" }),
        json!({ "a": 1, "list": [] }),
        json!({ "a": 1, "list": ["c"] }),
        json!({ "a": 1, "map": { "c": 1 } }),
    ] {
        assert_eq!(of(wrong.clone()).len(), 1, "{wrong}: {:?}", of(wrong.clone()));
    }
}
