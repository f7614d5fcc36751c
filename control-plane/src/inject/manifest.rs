//! Whole manifests: where in an object the pod is, and what a stream of documents becomes.
//!
//! In: YAML with any number of documents of any kind. Out: the same, with every pod and every template of pods injected (or
//! stripped), and a [`Note`] for each object that could have a sidecar. Invariant: a document that does not change is given
//! back letter by letter; one that does is written anew, without its comments. Surprise: Namespaces in the stream count, so a
//! file that opts a namespace out opts out what it holds.

use std::collections::BTreeMap;

use serde::Deserialize as _;
use serde_json::Value;

use super::{Answer, Namespace, Refusal, Settings, Subject, Verdict, inject, strip};
use crate::yaml;

/// What is done to every pod.
#[derive(Debug, Clone, Copy)]
pub enum Work<'a> {
    /// A sidecar in.
    Inject(&'a Settings),
    /// And out.
    Strip,
}

/// What became of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// `Deployment shop/orders`.
    pub object: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Injected, refused, left alone.
    Answered(Result<Verdict, Refusal>),
    /// It had a sidecar, or not.
    Stripped(bool),
}

impl Outcome {
    /// Whether somebody must do something.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Answered(Err(_)))
    }
}

/// The text is no YAML.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A document cannot be read.
    #[error("document {position} cannot be read")]
    Read {
        /// From 1.
        position: usize,
        /// The cause.
        source: serde_yaml::Error,
    },
    /// It cannot be written.
    #[error("document {position} cannot be written")]
    Write {
        /// From 1.
        position: usize,
        /// The cause.
        source: serde_yaml::Error,
    },
}

/// Lists in lists at most; Kubernetes has none.
const DEPTH_MAX: usize = 4;

/// Namespace of objects that name none.
const NAMESPACE_DEFAULT: &str = "default";

/// Does `work` to every pod of a stream. `namespace` is that of objects that name none.
///
/// # Errors
/// When a document is no YAML.
pub fn transform(text: &str, namespace: Option<&str>, work: Work<'_>) -> Result<(String, Vec<Note>), Error> {
    let documents = split(text);
    let mut parsed = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let value = read(document).map_err(|source| Error::Read { position: index + 1, source })?;
        parsed.push(value);
    }
    let mut stream = Stream {
        namespaces: namespaces(&parsed),
        default: namespace.unwrap_or(NAMESPACE_DEFAULT),
        work,
        notes: Vec::new(),
    };
    let mut out = String::with_capacity(text.len() * 2);
    for (index, (document, mut value)) in documents.into_iter().zip(parsed).enumerate() {
        if index > 0 {
            out.push_str("---\n");
        }
        let before = value.clone();
        stream.object(&mut value, 0);
        if value == before {
            out.push_str(document);
            if !document.is_empty() && !document.ends_with('\n') {
                out.push('\n');
            }
        } else {
            let written = yaml::text(&value);
            out.push_str(&written.map_err(|source| Error::Write { position: index + 1, source })?);
        }
    }
    Ok((out, stream.notes))
}

/// The documents of a stream, without the lines between them.
fn split(text: &str) -> Vec<&str> {
    let mut documents = Vec::new();
    let (mut start, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        // `--- # comment` ends a document too; anything else behind it would begin the next on the same line.
        let rest = line.strip_prefix("---").map(str::trim);
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('#')) {
            documents.push(&text[start..at]);
            start = at + line.len();
        }
        at += line.len();
    }
    documents.push(&text[start..]);
    // What stands before the first line of dashes is a document only if it says something.
    if documents.len() > 1 && documents[0].lines().all(is_silent) {
        documents.remove(0);
    }
    documents
}

fn is_silent(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#') || line.starts_with('%')
}

/// One document as JSON. Several, where they are separated in a way that [`split`] does not know, are an error of YAML's.
fn read(document: &str) -> Result<Value, serde_yaml::Error> {
    if document.lines().all(is_silent) {
        return Ok(Value::Null);
    }
    let mut value = Value::deserialize(serde_yaml::Deserializer::from_str(document))?;
    modes(&mut value);
    Ok(value)
}

/// `defaultMode: 0644` is a number in octal to Kubernetes, whose YAML is 1.1, and a text in 1.2.
fn modes(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "defaultMode" || key == "mode" => {
                        let octal =
                            text.starts_with('0').then(|| u32::from_str_radix(text, 8).ok()).flatten();
                        if let Some(mode) = octal {
                            *value = mode.into();
                        }
                    }
                    _ => modes(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(modes),
        _ => {}
    }
}

/// What the Namespaces among the documents say.
fn namespaces(documents: &[Value]) -> BTreeMap<String, Namespace> {
    let items = documents.iter().flat_map(|document| {
        let items = document.get("items").and_then(Value::as_array);
        items.map_or_else(|| std::slice::from_ref(document), Vec::as_slice)
    });
    let found = items.filter(|item| item.get("kind").and_then(Value::as_str) == Some("Namespace"));
    let found = found.filter_map(|item| {
        let metadata = item.get("metadata")?;
        let name = metadata.get("name")?.as_str()?.to_owned();
        let map = |key: &str| -> BTreeMap<String, String> {
            let texts = metadata.get(key).and_then(Value::as_object).into_iter().flatten();
            texts.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        };
        let (labels, annotations) = (map("labels"), map("annotations"));
        Some((name.clone(), Namespace { name, labels, annotations, closed: false }))
    });
    found.collect()
}

/// Where the pod's template is in an object of a kind; empty for a pod itself.
#[must_use]
pub fn template(kind: &str) -> Option<&'static str> {
    match kind {
        "Pod" => Some(""),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicationController" => {
            Some("/spec/template")
        }
        "CronJob" => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// What a template's pods will say that they are of.
fn owner_kind(kind: &str) -> &'static str {
    match kind {
        "Job" => "Job",
        // Their pods' controllers are named after them, and something more that is cut off again.
        _ => "StatefulSet",
    }
}

struct Stream<'a> {
    namespaces: BTreeMap<String, Namespace>,
    default: &'a str,
    work: Work<'a>,
    notes: Vec<Note>,
}

impl Stream<'_> {
    fn object(&mut self, object: &mut Value, depth: usize) {
        let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        if kind.ends_with("List") && depth < DEPTH_MAX {
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            for item in items.into_iter().flatten() {
                self.object(item, depth + 1);
            }
            return;
        }
        let Some(place) = template(&kind) else { return };
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let namespace = text("/metadata/namespace").unwrap_or_else(|| self.default.to_owned());
        let name = text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or_default();
        let Some(pod) = object.pointer_mut(place) else { return };
        let label = format!("{kind} {namespace}/{name}");
        let (outcome, warnings) = match self.work {
            Work::Strip => match strip(pod) {
                Ok(bare) => {
                    let had = *pod != bare;
                    *pod = bare;
                    (Outcome::Stripped(had), Vec::new())
                }
                Err(refusal) => (Outcome::Answered(Err(refusal)), Vec::new()),
            },
            Work::Inject(settings) => {
                let unknown = Namespace { name: namespace.clone(), ..Namespace::default() };
                let namespace = self.namespaces.get(&namespace).unwrap_or(&unknown);
                let owner = (!place.is_empty()).then(|| (owner_kind(&kind), name.as_str()));
                match inject(Subject { pod, namespace, owner, asked: true }, settings) {
                    Ok(Answer { verdict, warnings }) => {
                        if let Verdict::Injected { pod: injected, .. } = &verdict {
                            *pod = injected.clone();
                        }
                        (Outcome::Answered(Ok(verdict)), warnings)
                    }
                    Err(Refusal { place: below, fix }) => {
                        let place = format!("{}{below}", dotted(place));
                        (Outcome::Answered(Err(Refusal { place, fix })), Vec::new())
                    }
                }
            }
        };
        self.notes.push(Note { object: label, outcome, warnings });
    }
}

/// `/spec/template` as `spec.template.`.
fn dotted(pointer: &str) -> String {
    pointer.split('/').skip(1).map(|segment| format!("{segment}.")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_split_at_dashes_only() {
        assert_eq!(split("a: 1\n---\nb: 2\n"), ["a: 1\n", "b: 2\n"]);
        assert_eq!(split("# who\n--- # first\na: |\n  --- no\n---\n"), ["a: |\n  --- no\n", ""]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn what_is_no_pod_comes_back_letter_by_letter() {
        let text = "# kept\napiVersion: v1\nkind: Service   # as it is\nmetadata: {name: a}\n---\n---\nkind: ConfigMap\ndata: {a: \"yes\"}\n";
        let (out, notes) = transform(text, None, Work::Inject(&Settings::default())).expect("YAML");
        assert_eq!(out, text);
        assert_eq!(notes, []);
    }

    #[test]
    fn a_text_stays_one_to_kubectl() {
        let text = "kind: Pod\nspec: {containers: [{name: app, env: [{name: A, value: \"on\"}, {name: B, value: \"1_000\"}]}]}\n";
        let (out, _) = transform(text, None, Work::Inject(&Settings::default())).expect("YAML");
        assert!(out.contains("value: 'on'\n") && out.contains("value: '1_000'\n"), "{out}");
    }

    #[test]
    fn octal_modes_stay_numbers() {
        let value = read(
            "spec: {volumes: [{name: a, configMap: {name: a, defaultMode: 0644, items: [{mode: 0400}]}}]}",
        )
        .expect("YAML");
        assert_eq!(value.pointer("/spec/volumes/0/configMap/defaultMode"), Some(&Value::from(0o644)));
        assert_eq!(value.pointer("/spec/volumes/0/configMap/items/0/mode"), Some(&Value::from(0o400)));
    }

    #[test]
    fn text_that_is_no_yaml_is_named_by_position() {
        let error = transform("a: 1\n---\n{", None, Work::Strip).expect_err("broken");
        assert_eq!(error.to_string(), "document 2 cannot be read");
    }
}
