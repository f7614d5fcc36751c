//! What the server keeps: objects as text, and for each kind the changes that a watch may still ask for.
//!
//! In: objects as JSON. Out: objects with the marks that a server sets (uid, resourceVersion, generation, times), and a
//! history in order of resourceVersion. Invariants: one counter for everything, as in etcd; a change is in the history
//! before anybody is told; what was compacted away cannot be watched from (410). Texts, not trees of values, because a
//! bench keeps tens of thousands of Pods in it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::resource::{Resource, built_in};
use super::selector::Selector;

/// Changes kept for each kind; older ones are compacted away, as a server's watch cache does.
const HISTORY_MAX: usize = 4096;
/// What a server says of an object, whatever a client writes.
const MARKS: [&str; 7] =
    ["uid", "creationTimestamp", "deletionTimestamp", "generation", "namespace", "name", "resourceVersion"];
/// Lists that are read page by page at one time; the oldest expires.
const SNAPSHOTS_MAX: usize = 16;

/// Namespace and name; the namespace of an object without one is empty.
pub(super) type Name = (String, String);

/// One state of an object.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: Name,
    pub(super) version: u64,
    pub(super) labels: BTreeMap<String, String>,
    /// What field selectors ask for.
    pub(super) fields: BTreeMap<&'static str, String>,
    /// The object without `apiVersion` and `kind`.
    pub(super) text: Arc<str>,
    /// Its metadata alone.
    pub(super) metadata: Arc<str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Added,
    Deleted,
    Modified,
}

/// A change as the history keeps it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) verb: Verb,
    pub(super) version: u64,
    pub(super) before: Option<Arc<Stored>>,
    pub(super) now: Arc<Stored>,
}

/// The objects of one kind.
pub(super) struct Table {
    pub(super) resource: Resource,
    objects: BTreeMap<Name, Arc<Stored>>,
    history: VecDeque<Change>,
    /// From here on, changes are known.
    floor: u64,
    /// The newest version, for watchers; gone with the table.
    told: watch::Sender<u64>,
}

/// All of it.
pub(super) struct Store {
    tables: BTreeMap<(String, String), Table>,
    version: u64,
    snapshots: VecDeque<(u64, Arc<Vec<Arc<Stored>>>)>,
}

/// Why something cannot be done, in the words and codes of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// `NotFound`, `Conflict` …
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

pub(super) fn refusal(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
    Refusal { code, reason, message: message.into() }
}

/// What a write is meant to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but the status, where there is one.
    Main,
    Status,
    /// Both at once, as only a test can.
    Whole,
}

/// Objects, the version of the list, and what to go on with.
pub(super) type Page = (Vec<Arc<Stored>>, u64, Option<(u64, usize)>);

impl Store {
    pub(super) fn new() -> Self {
        let mut store = Self { tables: BTreeMap::new(), version: 1, snapshots: VecDeque::new() };
        for resource in built_in() {
            store.install(resource);
        }
        for name in ["default", "kube-system"] {
            let object = json!({ "metadata": { "name": name } });
            store.create("", "namespaces", "", Part::Main, object).expect("a new namespace");
        }
        store
    }

    pub(super) fn install(&mut self, resource: Resource) {
        let key = (resource.group.clone(), resource.plural.clone());
        let (told, _) = watch::channel(self.version);
        let (objects, history, floor) = (BTreeMap::new(), VecDeque::new(), self.version);
        match self.tables.get_mut(&key) {
            Some(known) => known.resource = resource,
            None => drop(self.tables.insert(key, Table { resource, objects, history, floor, told })),
        }
    }

    pub(super) fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.tables.values().map(|table| &table.resource)
    }

    pub(super) fn table(&self, group: &str, plural: &str) -> Option<&Table> {
        self.tables.get(&(group.to_owned(), plural.to_owned()))
    }

    /// The table of a kind, by its name.
    pub(super) fn of_kind(&self, kind: &str) -> Option<&Table> {
        self.tables.values().find(|table| table.resource.kind == kind)
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Forgets every change so far.
    pub(super) fn compact(&mut self) {
        self.snapshots.clear();
        for table in self.tables.values_mut() {
            table.history.clear();
            table.floor = self.version;
        }
    }

    /// One page: the objects, and what to go on with.
    pub(super) fn page(
        &mut self,
        (group, plural): (&str, &str),
        namespace: Option<&str>,
        selector: &Selector,
        limit: Option<usize>,
        from: Option<(u64, usize)>,
    ) -> Result<Page, Refusal> {
        let (version, objects, start) = match from {
            Some((version, start)) => {
                let known = self.snapshots.iter().find(|(known, _)| *known == version);
                let (_, objects) = known.ok_or_else(expired)?;
                (version, Arc::clone(objects), start)
            }
            None => {
                let table = self.table(group, plural).ok_or_else(no_such_resource)?;
                let objects = table.select(namespace, selector).cloned().collect();
                (self.version, Arc::new(objects), 0)
            }
        };
        let end = limit.map_or(objects.len(), |limit| objects.len().min(start.saturating_add(limit.max(1))));
        let page = objects.get(start..end).unwrap_or_default().to_vec();
        let more = end < objects.len();
        if more && from.is_none() {
            // Lists that begin in the same moment are told apart by a version of their own.
            self.version += 1;
            self.snapshots.push_back((self.version, objects));
            if self.snapshots.len() > SNAPSHOTS_MAX {
                self.snapshots.pop_front();
            }
            return Ok((page, self.version, Some((self.version, end))));
        }
        Ok((page, version, more.then_some((version, end))))
    }

    pub(super) fn create(
        &mut self,
        group: &str,
        plural: &str,
        namespace: &str,
        part: Part,
        mut object: Value,
    ) -> Result<Arc<Stored>, Refusal> {
        let table = self.table(group, plural).ok_or_else(no_such_resource)?;
        let (kind, status) = (table.resource.kind.clone(), table.resource.status);
        let metadata = &mut object["metadata"];
        if metadata["name"].as_str().is_none_or(str::is_empty) {
            let prefix = metadata["generateName"].as_str().map(str::to_owned);
            let prefix = prefix.ok_or_else(|| refusal(422, "Invalid", "metadata.name is required"))?;
            metadata["name"] = json!(format!("{prefix}{:05x}", self.version));
        }
        let name = (namespace.to_owned(), metadata["name"].as_str().unwrap_or_default().to_owned());
        if let Some(known) = table.objects.get(&name) {
            let message = format!("{plural} {:?} already exists", known.name.1);
            return Err(refusal(409, "AlreadyExists", message));
        }
        if !namespace.is_empty() {
            let spaces = self.table("", "namespaces").expect("built in");
            if !spaces.objects.contains_key(&(String::new(), namespace.to_owned())) {
                return Err(refusal(404, "NotFound", format!("namespaces {namespace:?} not found")));
            }
            object["metadata"]["namespace"] = json!(namespace);
        }
        // Whoever creates does not say how it fares.
        if let (true, Part::Main, Some(object)) = (status, part, object.as_object_mut()) {
            object.remove("status");
        }
        let metadata = &mut object["metadata"];
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.version + 1));
        metadata["generation"] = json!(1);
        if metadata["creationTimestamp"].is_null() {
            metadata["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        if kind == "CustomResourceDefinition" {
            self.define(&mut object)?;
        }
        Ok(self.put(group, plural, name, object, Verb::Added))
    }

    /// Replaces an object. With a resourceVersion only if nobody else has changed it since.
    pub(super) fn replace(
        &mut self,
        group: &str,
        plural: &str,
        name: &Name,
        part: Part,
        mut object: Value,
    ) -> Result<Arc<Stored>, Refusal> {
        let table = self.table(group, plural).ok_or_else(no_such_resource)?;
        let has_status = table.resource.status;
        let known = table.objects.get(name).cloned().ok_or_else(|| not_found(plural, &name.1))?;
        let before = value(&known.text);
        let expected = object["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty());
        if expected.is_some_and(|expected| *expected != known.version.to_string()) {
            let message = format!(
                "Operation cannot be fulfilled on {plural} {:?}: the object has been modified; please apply your changes \
                 to the latest version and try again",
                name.1
            );
            return Err(refusal(409, "Conflict", message));
        }
        if let Some(object) = object.as_object_mut() {
            object.retain(|key, _| key != "apiVersion" && key != "kind");
        }
        match part {
            Part::Status => {
                let status = object["status"].take();
                object = before.clone();
                object["status"] = status;
            }
            Part::Main if has_status => object["status"] = before["status"].clone(),
            Part::Main | Part::Whole => {}
        }
        if let Some(object) = object.as_object_mut() {
            object.retain(|key, value| key != "status" || !value.is_null());
        }
        for mark in MARKS {
            object["metadata"][mark] = before["metadata"][mark].clone();
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|_, mark| !mark.is_null());
        }
        if object == before {
            return Ok(known);
        }
        let metadata = &object["metadata"];
        if !metadata["deletionTimestamp"].is_null()
            && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
        {
            return Ok(self.put(group, plural, name.clone(), object, Verb::Deleted));
        }
        let meaning = |object: &Value| {
            let mut object = object.clone();
            if let Some(object) = object.as_object_mut() {
                object.retain(|key, _| key != "metadata" && key != "status");
            }
            object
        };
        if meaning(&object) != meaning(&before) {
            let generation = before["metadata"]["generation"].as_i64().unwrap_or_default();
            object["metadata"]["generation"] = json!(generation + 1);
        }
        if plural == "customresourcedefinitions" {
            self.define(&mut object)?;
        }
        Ok(self.put(group, plural, name.clone(), object, Verb::Modified))
    }

    pub(super) fn delete(&mut self, group: &str, plural: &str, name: &Name) -> Result<Arc<Stored>, Refusal> {
        let table = self.table(group, plural).ok_or_else(no_such_resource)?;
        let known = table.objects.get(name).cloned().ok_or_else(|| not_found(plural, &name.1))?;
        let mut object = value(&known.text);
        if object["metadata"]["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) {
            // Gone when the last of them is.
            if !object["metadata"]["deletionTimestamp"].is_null() {
                return Ok(known);
            }
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return Ok(self.put(group, plural, name.clone(), object, Verb::Modified));
        }
        match plural {
            "namespaces" if group.is_empty() => {
                let all = Selector::default();
                let inside = self.tables.iter().flat_map(|(key, table)| {
                    table.select(Some(&name.1), &all).map(move |object| (key.clone(), object.name.clone()))
                });
                // Collected: what is looked through is changed.
                let inside: Vec<_> = inside.collect();
                for ((group, plural), name) in inside {
                    self.delete(&group, &plural, &name)?;
                }
            }
            "customresourcedefinitions" => {
                if let Some(resource) = Resource::defined_by(&value(&known.text)) {
                    let key = (resource.group, resource.plural);
                    let objects: Vec<Name> = self
                        .tables
                        .get(&key)
                        .map(|table| table.objects.keys().cloned().collect())
                        .unwrap_or_default();
                    for name in objects {
                        self.delete(&key.0, &key.1, &name)?;
                    }
                    // Ends the watches, too.
                    self.tables.remove(&key);
                }
            }
            _ => {}
        }
        Ok(self.put(group, plural, name.clone(), object, Verb::Deleted))
    }

    /// Takes a definition into force, and says so in it.
    fn define(&mut self, definition: &mut Value) -> Result<(), Refusal> {
        let resource = Resource::defined_by(definition)
            .ok_or_else(|| refusal(422, "Invalid", "the definition has no names or versions"))?;
        self.install(resource);
        definition["status"]["conditions"] = json!([
            { "type": "NamesAccepted", "status": "True", "reason": "NoConflicts" },
            { "type": "Established", "status": "True", "reason": "InitialNamesAccepted" },
        ]);
        Ok(())
    }

    fn put(&mut self, group: &str, plural: &str, name: Name, mut object: Value, verb: Verb) -> Arc<Stored> {
        self.version += 1;
        let version = self.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if let Some(object) = object.as_object_mut() {
            object.retain(|key, _| key != "apiVersion" && key != "kind");
        }
        let stored = Arc::new(Stored::new(name.clone(), version, &object));
        let table = self.tables.get_mut(&(group.to_owned(), plural.to_owned())).expect("asked for before");
        let before = match verb {
            Verb::Deleted => table.objects.remove(&name),
            Verb::Added | Verb::Modified => table.objects.insert(name, Arc::clone(&stored)),
        };
        table.history.push_back(Change { verb, version, before, now: Arc::clone(&stored) });
        if table.history.len() > HISTORY_MAX {
            table.floor = table.history.pop_front().map_or(table.floor, |change| change.version);
        }
        table.told.send_replace(version);
        stored
    }
}

impl Table {
    /// The objects in a namespace, or in all, that are meant.
    pub(super) fn select<'a>(
        &'a self,
        namespace: Option<&str>,
        selector: &'a Selector,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + use<'a> {
        let start = namespace
            .map_or(Bound::Unbounded, |namespace| Bound::Included((namespace.to_owned(), String::new())));
        let namespace = namespace.map(str::to_owned);
        let range = self.objects.range((start, Bound::Unbounded)).map(|(_, object)| object);
        range
            .take_while(move |object| namespace.as_ref().is_none_or(|namespace| object.name.0 == *namespace))
            .filter(|object| selector.matches(&object.labels, &object.fields))
    }

    pub(super) fn get(&self, name: &Name) -> Option<&Arc<Stored>> {
        self.objects.get(name)
    }

    /// The changes after a version; those too old to know are a 410.
    pub(super) fn since(&self, version: u64) -> Result<Vec<Change>, Refusal> {
        if version < self.floor {
            return Err(expired());
        }
        let start = self.history.partition_point(|change| change.version <= version);
        Ok(self.history.range(start..).cloned().collect())
    }

    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }
}

impl Stored {
    fn new(name: Name, version: u64, object: &Value) -> Self {
        let metadata = &object["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        let labels = labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        let mut fields =
            BTreeMap::from([("metadata.name", name.1.clone()), ("metadata.namespace", name.0.clone())]);
        for (field, at) in
            [("status.phase", "/status/phase"), ("spec.nodeName", "/spec/nodeName"), ("type", "/type")]
        {
            if let Some(text) = object.pointer(at).and_then(Value::as_str) {
                fields.insert(field, text.to_owned());
            }
        }
        Self {
            name,
            version,
            labels,
            fields,
            text: object.to_string().into(),
            metadata: metadata.to_string().into(),
        }
    }
}

pub(super) fn value(text: &str) -> Value {
    serde_json::from_str(text).expect("what the store wrote")
}

pub(super) fn not_found(plural: &str, name: &str) -> Refusal {
    refusal(404, "NotFound", format!("{plural} {name:?} not found"))
}

pub(super) fn no_such_resource() -> Refusal {
    refusal(404, "NotFound", "the server could not find the requested resource")
}

pub(super) fn expired() -> Refusal {
    refusal(410, "Expired", "too old resource version")
}
