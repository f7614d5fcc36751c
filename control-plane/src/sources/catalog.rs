//! What all files say together: the pure half of the file source.
//!
//! In: the text of a file, or word that it is gone. Out: events for what really changed, and all problems.
//!
//! Invariants: a broken file keeps the objects of its last good text; an object that two documents define is
//! the one of the first file by path (then the first document), whatever the order of reading, and the other
//! is reported; taking the first away brings the second in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::{Effect, Problem};
use crate::resources::{self, Content, Document, Flaw, Lines, Object, ObjectId};
use crate::world::Event;

/// A document's place: file path, then position. Ordered as precedence is.
type Place = (Arc<str>, usize);

/// The objects of all files.
#[derive(Default)]
pub(super) struct Catalog {
    files: BTreeMap<Arc<str>, File>,
    /// Who defines an object; the first one counts.
    definitions: HashMap<ObjectId, BTreeMap<Place, Definition>>,
}

struct Definition {
    object: Object,
    /// Where it is named, known if it came as a duplicate.
    line: Option<usize>,
}

#[derive(Default)]
struct File {
    objects: Vec<(usize, ObjectId)>,
    problems: Vec<Problem>,
}

impl Catalog {
    /// Takes in a file's text. Gives back what changed.
    pub(super) fn read(&mut self, path: &Arc<str>, text: &str) -> Vec<Event> {
        let documents = resources::parse(text);
        let broken = documents.iter().any(|document| matches!(document.content, Content::Broken(_)));
        let problems = documents.iter().flat_map(|document| problems(path, document)).collect();
        let file = self.files.entry(Arc::clone(path)).or_default();
        file.problems = problems;
        if broken { Vec::new() } else { self.replace(path, text, documents) }
    }

    /// Notes that a file is there but cannot be read. It keeps its last good state.
    pub(super) fn unreadable(&mut self, path: &Arc<str>, reason: String) {
        let problem = Problem {
            file: path.to_string(),
            line: None,
            document: None,
            object: None,
            field: None,
            reason,
            effect: Effect::FileKeptLastGood,
        };
        self.files.entry(Arc::clone(path)).or_default().problems = vec![problem];
    }

    /// Takes out a file that is gone.
    pub(super) fn remove(&mut self, path: &Arc<str>) -> Vec<Event> {
        let events = self.replace(path, "", Vec::new());
        self.files.remove(path);
        events
    }

    /// The files it holds.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// The file that counts, of every object.
    pub(super) fn origins(&self) -> HashMap<String, Arc<str>> {
        let first = |(id, definitions): (&ObjectId, &BTreeMap<Place, Definition>)| {
            let ((file, _), _) = definitions.first_key_value()?;
            Some((id.to_string(), Arc::clone(file)))
        };
        self.definitions.iter().filter_map(first).collect()
    }

    /// How many objects count.
    pub(super) fn objects(&self) -> usize {
        self.definitions.len()
    }

    /// Everything that is wrong, by file and line.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.files.values().flat_map(|file| file.problems.clone()).collect();
        for (id, definitions) in &self.definitions {
            let mut definitions = definitions.iter();
            let Some(((first, position), _)) = definitions.next() else { continue };
            problems.extend(definitions.map(|((file, document), definition)| Problem {
                file: file.to_string(),
                line: definition.line,
                document: Some(*document),
                object: Some(id.to_string()),
                field: Some("metadata.name".into()),
                reason: format!("already defined in {first}, document {position}"),
                effect: Effect::ObjectIgnored,
            }));
        }
        problems.sort_by(|a, b| (&a.file, a.line, a.document).cmp(&(&b.file, b.line, b.document)));
        problems
    }

    fn replace(&mut self, path: &Arc<str>, text: &str, documents: Vec<Document>) -> Vec<Event> {
        let file = self.files.entry(Arc::clone(path)).or_default();
        let old = std::mem::take(&mut file.objects);
        let mut touched: BTreeSet<ObjectId> = old.iter().map(|(_, id)| id.clone()).collect();
        let mut new = Vec::new();
        for document in documents {
            if let Content::Object(object) = document.content {
                new.push((document.position, object));
            }
        }
        touched.extend(new.iter().map(|(_, object)| object.id()));
        let before: Vec<Option<Object>> = touched.iter().map(|id| self.current(id).cloned()).collect();

        for (position, id) in old {
            if let Some(definitions) = self.definitions.get_mut(&id) {
                definitions.remove(&(Arc::clone(path), position));
                if definitions.is_empty() {
                    self.definitions.remove(&id);
                }
            }
        }
        let mut objects = Vec::with_capacity(new.len());
        let lines = Lines::of(text);
        for (position, object) in new {
            let id = object.id();
            objects.push((position, id.clone()));
            let definitions = self.definitions.entry(id).or_default();
            // Looked up only for a duplicate: it costs as much as reading the file.
            let line = if definitions.is_empty() { None } else { lines.name(position) };
            definitions.insert((Arc::clone(path), position), Definition { object, line });
        }
        self.files.entry(Arc::clone(path)).or_default().objects = objects;

        let changed = touched.into_iter().zip(before).filter_map(|(id, before)| {
            let now = self.current(&id);
            match now {
                _ if now == before.as_ref() => None,
                Some(object) => Some(object.clone().set()),
                None => Some(id.gone()),
            }
        });
        changed.collect()
    }

    fn current(&self, id: &ObjectId) -> Option<&Object> {
        self.definitions.get(id)?.values().next().map(|definition| &definition.object)
    }
}

fn problems(path: &Arc<str>, document: &Document) -> Vec<Problem> {
    let problem = |flaw: &Flaw, effect| Problem {
        file: path.to_string(),
        line: flaw.line,
        document: Some(document.position),
        object: document.label.clone(),
        field: Some(flaw.field.clone()).filter(|field| !field.is_empty()),
        reason: flaw.reason.clone(),
        effect,
    };
    match &document.content {
        Content::Broken(flaws) => flaws.iter().map(|flaw| problem(flaw, Effect::FileKeptLastGood)).collect(),
        Content::Unsupported { line, kind } => {
            let reason = format!("{kind} is not supported: {} are", resources::KINDS);
            let flaw = Flaw { line: *line, field: "kind".into(), reason };
            vec![problem(&flaw, Effect::ObjectIgnored)]
        }
        Content::Object { .. } | Content::Unneeded => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    }

    fn port_of(events: &[Event]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::ServiceSet(spec) => format!("{}:{}", spec.id, spec.ports[0].number),
            Event::ServiceGone(id) => format!("{id} gone"),
            other => format!("{other:?}"),
        };
        events.iter().map(name).collect()
    }

    #[test]
    fn only_what_changed_becomes_an_event() {
        let mut catalog = Catalog::default();
        let path: Arc<str> = "a.yaml".into();
        let both = format!("{}---\n{}", service("a", 1), service("b", 1));
        assert_eq!(port_of(&catalog.read(&path, &both)), ["a.default:1", "b.default:1"]);
        assert_eq!(port_of(&catalog.read(&path, &format!("# comment\n{both}"))), [""; 0]);
        let changed = format!("{}---\n{}", service("a", 1), service("b", 2));
        assert_eq!(port_of(&catalog.read(&path, &changed)), ["b.default:2"]);
        assert_eq!(port_of(&catalog.read(&path, &service("b", 2))), ["a.default gone"]);
        assert_eq!(port_of(&catalog.remove(&path)), ["b.default gone"]);
        assert_eq!(catalog.objects(), 0);
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_state_and_says_where() {
        let mut catalog = Catalog::default();
        let path: Arc<str> = "a.yaml".into();
        catalog.read(&path, &service("a", 1));
        let broken = service("a", 1).replace("ports", "prots");
        assert!(catalog.read(&path, &broken).is_empty());
        let problems = catalog.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].file, "a.yaml");
        assert_eq!(problems[0].line, Some(4));
        assert_eq!(problems[0].field.as_deref(), Some("spec.prots"));
        assert_eq!(problems[0].object.as_deref(), Some("Service default/a"));
        assert_eq!(problems[0].effect, Effect::FileKeptLastGood);
        assert!(catalog.read(&path, &service("a", 1)).is_empty());
        assert!(catalog.problems().is_empty());
    }

    #[test]
    fn the_first_definition_counts_and_the_next_takes_over() {
        let mut catalog = Catalog::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a.yaml".into(), "b.yaml".into());
        assert_eq!(port_of(&catalog.read(&b, &service("x", 2))), ["x.default:2"]);
        assert_eq!(port_of(&catalog.read(&a, &service("x", 1))), ["x.default:1"]);
        let problems = catalog.problems();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].file, "b.yaml");
        assert_eq!(problems[0].reason, "already defined in a.yaml, document 1");
        assert_eq!(&*catalog.origins()["Service default/x"], "a.yaml");
        assert_eq!(port_of(&catalog.remove(&a)), ["x.default:2"]);
        assert!(catalog.problems().is_empty());
    }

    #[test]
    fn unsupported_kinds_do_not_stop_a_file() {
        let mut catalog = Catalog::default();
        let text =
            format!("apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: x}}\n---\n{}", service("a", 1));
        assert_eq!(catalog.read(&"a.yaml".into(), &text).len(), 1);
        assert_eq!(catalog.problems()[0].effect, Effect::ObjectIgnored);
    }
}
