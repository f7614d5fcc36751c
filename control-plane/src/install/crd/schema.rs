//! From the schema of a Rust type to a structural one, which is all that an API server takes.
//!
//! In: what `schemars` says of a type. Out: the same without references, alternatives and defaults. Surprise: there are
//! no defaults on purpose. An API server would write them into people's objects, and policies are laid over each other by
//! what they leave out.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

/// The structural schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
        settings.transforms = Vec::new();
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    structural(&mut schema);
    schema
}

fn structural(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    not_null(schema);
    for word in ["$schema", "title", "default"] {
        schema.remove(word);
    }
    // Unknown fields are the API server's to refuse; it does so without being told.
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    if let Some(Value::String(text)) = schema.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    for word in ["items", "additionalProperties"] {
        schema.get_mut(word).into_iter().for_each(structural);
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
}

/// What may be absent need not be null as well.
fn not_null(schema: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|one| one != "null");
        if let [one] = types.as_slice() {
            let one = one.clone();
            schema.insert("type".into(), one);
        }
    }
    if let Some(Value::Array(words)) = schema.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    if let Some(Value::Array(mut either)) = schema.remove("anyOf") {
        either.retain(|one| one.get("type").is_none_or(|kind| kind != "null"));
        if let [Value::Object(one)] = either.as_mut_slice() {
            for (word, value) in std::mem::take(one) {
                // The field's own description is nearer than its type's.
                schema.entry(word).or_insert(value);
            }
        }
    }
}
