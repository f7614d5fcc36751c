//! `weft get`: the mesh's objects and what became of them.
//!
//! In: `GET /api/objects`, `GET /api/config/errors`. Out: one row per object with its conditions, as `kubectl get` would
//! show them: whether it was accepted, whether what it refers to exists, on how many sidecars it works, and what is
//! wrong; below them what could not be read. Surprise: an object whose newest text cannot be read is shown as it is in
//! force, so the table alone would look well.

use console::style;
use serde::Deserialize;

use crate::api::query;
use crate::args::Format;
use crate::{output, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft get                         every object
  weft get httproutes              of one kind; httproute and HTTPRoute are the same
  weft get trafficpolicy orders    one object
  weft get -n shop -o wide         of one namespace, with targets and files
  weft get -o json | jq '.objects[] | select(any(.conditions[]; .type == \"Accepted\" and .status != \"True\"))'

ACCEPTED: it is valid. REFS: what it names exists. PROGRAMMED: on how many sidecars it works.
CONFLICTED: a field of it lost against another object.")]
pub(crate) struct GetArgs {
    /// Only this kind
    #[arg(value_parser = kind)]
    kind: Option<&'static str>,
    /// Only the object of this name
    name: Option<String>,
    /// Only of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

/// What stays in force with a problem, by what the API calls it.
const KEPT: [(&str, &str); 3] = [
    ("file_kept_last_good", "what was in these files before stays in force"),
    ("object_kept_last_good", "what these objects said before stays in force"),
    ("state_kept", "what is known stays in force"),
];

/// Kinds with what else people call them.
const KINDS: [(&str, &[&str]); 6] = [
    ("Service", &["service", "services", "svc"]),
    ("HTTPRoute", &["httproute", "httproutes"]),
    ("GRPCRoute", &["grpcroute", "grpcroutes"]),
    ("AccessPolicy", &["accesspolicy", "accesspolicies", "ap"]),
    ("CircuitBreaker", &["circuitbreaker", "circuitbreakers", "cb"]),
    ("TrafficPolicy", &["trafficpolicy", "trafficpolicies", "tp"]),
];

fn kind(text: &str) -> Result<&'static str, String> {
    let lower = text.to_lowercase();
    let known = KINDS.iter().find(|(_, words)| words.contains(&lower.as_str()));
    known.map(|(kind, _)| *kind).ok_or_else(|| {
        let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
        format!("it is one of {}", kinds.join(", "))
    })
}

/// `GET /api/objects`.
#[derive(Debug, Deserialize)]
struct Objects {
    /// How many there are, also those that did not fit into the answer.
    #[serde(default)]
    objects_total: usize,
    objects: Vec<Object>,
}

#[derive(Debug, Deserialize)]
struct Object {
    kind: String,
    #[serde(default)]
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    targets: Vec<String>,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
struct Condition {
    r#type: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

/// `GET /api/config/errors`.
#[derive(Debug, Deserialize)]
struct Problems {
    #[serde(default)]
    errors: Vec<Problem>,
    /// What is worth knowing although nothing is wrong.
    #[serde(default)]
    notices: Vec<String>,
}

/// Something that could not be read.
#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(default)]
    file: Option<String>,
    #[serde(default)]
    line: Option<usize>,
    /// `Kind namespace/name`, as far as it could be read.
    #[serde(default)]
    object: Option<String>,
    #[serde(default)]
    field: Option<String>,
    #[serde(default)]
    effect: Option<String>,
    message: String,
}

pub(crate) async fn run(arguments: GetArgs) -> anyhow::Result<()> {
    let GetArgs { kind, name, namespace, output: format, api } = arguments;
    let api = api.open().await?;
    let filter = Filter { kind, name, namespace };
    let mut body = api.get(&filter.path(filter.name.as_deref())).await?;
    let mut objects: Objects = api.read(&body)?;
    if objects.objects.is_empty() && filter.name.is_some() {
        // To say what there is instead.
        body = api.get(&filter.path(None)).await?;
        objects = api.read(&body)?;
    }
    let shown = filter.objects(&objects)?;
    match format {
        Format::Json => {
            let mut document: serde_json::Value = serde_json::from_slice(&body)?;
            if let Some(all) = document["objects"].as_array_mut() {
                all.retain(|one| shown.iter().any(|object| object.is(one)));
            }
            output::line(format_args!("{document:#}"));
        }
        Format::Table | Format::Wide if shown.is_empty() => {
            output::line(format_args!(
                "no object{}: write YAML into the source directory, or apply it to the cluster",
                filter.words()
            ));
        }
        Format::Table => output::text(&show(&shown, false)),
        Format::Wide => output::text(&show(&shown, true)),
    }
    if !matches!(format, Format::Json) {
        output::text(&more(&objects));
        let problems: Problems = api.json("/api/config/errors").await?;
        output::text(&trouble(&problems, &filter));
    }
    Ok(())
}

struct Filter {
    kind: Option<&'static str>,
    name: Option<String>,
    namespace: Option<String>,
}

impl Filter {
    /// What the API is asked for.
    fn path(&self, name: Option<&str>) -> String {
        let wanted = [("kind", self.kind), ("namespace", self.namespace.as_deref()), ("name", name)];
        format!("/api/objects{}", query(&wanted))
    }

    fn objects<'a>(&self, objects: &'a Objects) -> anyhow::Result<Vec<&'a Object>> {
        let around: Vec<&Object> = objects
            .objects
            .iter()
            .filter(|object| self.kind.is_none_or(|kind| object.kind == kind))
            .filter(|object| self.namespace.is_none() || object.namespace == self.namespace)
            .collect();
        let Some(name) = &self.name else { return Ok(around) };
        let named: Vec<&Object> = around.iter().copied().filter(|object| object.name == *name).collect();
        if named.is_empty() {
            let mut names: Vec<&str> = around.iter().map(|object| object.name.as_str()).collect();
            names.dedup();
            let there = if names.is_empty() { "none".into() } else { names.join(", ") };
            let kind = self.kind.unwrap_or("object");
            anyhow::bail!("there is no {kind} {name:?}\n  there are: {there}");
        }
        Ok(named)
    }

    /// Whether a problem may be with one of the objects that were asked for.
    fn concerns(&self, problem: &Problem) -> bool {
        let Some((kind, rest)) = problem.object.as_deref().and_then(|label| label.split_once(' ')) else {
            // Nobody knows whose it is.
            return true;
        };
        let (namespace, name) = match rest.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, rest),
        };
        self.kind.is_none_or(|wanted| kind == wanted)
            && self.name.as_deref().is_none_or(|wanted| name == wanted)
            && (self.namespace.is_none() || self.namespace.as_deref() == namespace)
    }

    fn words(&self) -> String {
        let kind = self.kind.map(|kind| format!(" of kind {kind}")).unwrap_or_default();
        let namespace = self.namespace.as_ref().map(|name| format!(" in {name}")).unwrap_or_default();
        kind + &namespace
    }
}

/// That there are more than the API tells at once.
fn more(objects: &Objects) -> String {
    match objects.objects_total.saturating_sub(objects.objects.len()) {
        0 => String::new(),
        more => format!("… and {more} more: ask for one kind, or one namespace with -n\n"),
    }
}

impl Object {
    fn is(&self, value: &serde_json::Value) -> bool {
        value["kind"] == self.kind.as_str()
            && value["name"] == self.name.as_str()
            && value["namespace"].as_str() == self.namespace.as_deref()
    }

    fn condition(&self, wanted: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.r#type == wanted)
    }

    /// The first thing that is wrong, in words; else the first that is not known.
    fn trouble(&self) -> Option<&Condition> {
        let bad = self.conditions.iter().find(|condition| condition.is_bad());
        bad.or_else(|| self.conditions.iter().find(|condition| !condition.is_good()))
    }
}

impl Condition {
    fn is_good(&self) -> bool {
        // Of all conditions only this one is good news when it is absent or false.
        let wanted = if self.r#type == "Conflicted" { "False" } else { "True" };
        self.status == wanted
    }

    /// What nobody knows yet is neither good nor bad.
    fn is_bad(&self) -> bool {
        !self.is_good() && self.status != "Unknown"
    }

    /// `True`, in red where that is bad.
    fn cell(&self) -> String {
        let text = style(self.status.as_str());
        if self.is_bad() { text.red().bold().to_string() } else { text.to_string() }
    }

    /// `3 of 3`, where the message says on how many sidecars.
    fn progress(&self) -> Option<String> {
        let words: Vec<&str> = self.message.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "of")?;
        let (done, all) = (words.get(at.checked_sub(1)?)?, words.get(at + 1)?);
        let number = |word: &str| word.parse::<u32>().is_ok();
        (number(done) && number(all)).then(|| format!("{done} of {all}"))
    }
}

/// What could not be read, one a line, and what became of it.
fn trouble(problems: &Problems, filter: &Filter) -> String {
    let concerned: Vec<&Problem> =
        problems.errors.iter().filter(|problem| filter.concerns(problem)).collect();
    let lines: Vec<String> = concerned.iter().map(|problem| problem.line()).collect();
    let kept = KEPT
        .into_iter()
        .filter(|(effect, _)| concerned.iter().any(|problem| problem.effect.as_deref() == Some(*effect)));
    let kept: String = kept.map(|(_, words)| format!("{words}\n")).collect();
    let notes: String = problems.notices.iter().map(|notice| format!("note {notice}\n")).collect();
    let lines = if lines.is_empty() { String::new() } else { format!("\n{}\n{kept}", lines.join("\n")) };
    if notes.is_empty() { lines } else { format!("{lines}\n{notes}") }
}

impl Problem {
    fn line(&self) -> String {
        let place = match (&self.file, self.line) {
            (Some(file), Some(line)) => Some(format!("{file}:{line}")),
            (file, _) => file.clone(),
        };
        let parts = [place.as_ref(), self.object.as_ref(), self.field.as_ref()];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        format!("{} {}: {}", style("problem").red().bold(), parts.join(" "), self.message)
    }
}

fn show(objects: &[&Object], wide: bool) -> String {
    let mut header = vec!["NAMESPACE", "KIND", "NAME", "ACCEPTED", "REFS", "PROGRAMMED", "CONFLICTED"];
    if wide {
        header.extend(["TARGETS", "FILE"]);
    }
    header.push("REASON");
    let rows: Vec<Vec<String>> = objects.iter().map(|object| row(object, wide)).collect();
    table::render(&header, &rows)
}

fn row(object: &Object, wide: bool) -> Vec<String> {
    let cell = |wanted: &str| object.condition(wanted).map_or_else(|| "-".into(), Condition::cell);
    let programmed = object.condition("Programmed").map(|condition| {
        let text = condition.progress().unwrap_or_else(|| condition.status.clone());
        if condition.is_bad() { style(text).red().bold().to_string() } else { text }
    });
    let mut row = vec![
        object.namespace.clone().unwrap_or_else(|| "-".into()),
        object.kind.clone(),
        object.name.clone(),
        cell("Accepted"),
        cell("ResolvedRefs"),
        programmed.unwrap_or_else(|| "-".into()),
        cell("Conflicted"),
    ];
    if wide {
        let targets = object.targets.join(", ");
        row.push(if targets.is_empty() { "-".into() } else { targets });
        row.push(object.file.clone().unwrap_or_else(|| "-".into()));
    }
    row.push(match object.trouble() {
        None => "-".into(),
        Some(trouble) if trouble.message.is_empty() => trouble.reason.clone(),
        Some(trouble) => format!("{}: {}", trouble.reason, trouble.message),
    });
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Objects {
        console::set_colors_enabled(false);
        serde_json::from_str(include_str!("get/shop.json")).expect("the API's JSON")
    }

    fn filter(kind: Option<&'static str>, name: Option<&str>, namespace: Option<&str>) -> Filter {
        Filter { kind, name: name.map(str::to_owned), namespace: namespace.map(str::to_owned) }
    }

    #[test]
    fn every_object_says_what_became_of_it() {
        let objects = shop();
        insta::assert_snapshot!(show(&filter(None, None, None).objects(&objects).expect("all"), false));
    }

    #[test]
    fn wide_rows_name_targets_and_files() {
        let objects = shop();
        let routes = filter(Some("HTTPRoute"), None, Some("shop")).objects(&objects).expect("some");
        insta::assert_snapshot!(show(&routes, true));
    }

    #[test]
    fn what_could_not_be_read_is_below_what_is_in_force() {
        console::set_colors_enabled(false);
        let problems = r#"{"errors": [
            {"file": "orders.yaml", "line": 24, "object": "TrafficPolicy shop/orders", "field": "spec.timeouts.reqest",
             "effect": "file_kept_last_good", "message": "unknown field"},
            {"file": "broken.yaml", "line": 1, "effect": "object_ignored", "message": "is not YAML"}]}"#;
        let problems: Problems = serde_json::from_str(problems).expect("the API's JSON");
        assert_eq!(
            trouble(&problems, &filter(Some("TrafficPolicy"), None, Some("shop"))),
            "\nproblem orders.yaml:24 TrafficPolicy shop/orders spec.timeouts.reqest: unknown field\n\
             problem broken.yaml:1: is not YAML\nwhat was in these files before stays in force\n"
        );
        let other = trouble(&problems, &filter(Some("HTTPRoute"), None, None));
        assert_eq!(other, "\nproblem broken.yaml:1: is not YAML\n");
        let away = r#"{"errors": [{"file": "kubernetes", "effect": "state_kept", "message": "Pod cannot be followed"}],
                       "notices": ["HTTPRoute is not installed in this cluster"]}"#;
        let away: Problems = serde_json::from_str(away).expect("the API's JSON");
        assert_eq!(
            trouble(&away, &filter(None, None, None)),
            "\nproblem kubernetes: Pod cannot be followed\nwhat is known stays in force\n\n\
             note HTTPRoute is not installed in this cluster\n"
        );
    }

    #[test]
    fn what_is_not_known_yet_is_no_trouble_and_hides_none() {
        let object = r#"{"kind": "HTTPRoute", "name": "orders", "conditions": [
            {"type": "Programmed", "status": "Unknown", "reason": "NotAskedFor"},
            {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound"}]}"#;
        let object: Object = serde_json::from_str(object).expect("the API's JSON");
        assert!(!object.conditions[0].is_bad());
        assert_eq!(object.trouble().map(|trouble| trouble.reason.as_str()), Some("BackendNotFound"));
    }

    #[test]
    fn what_the_api_leaves_out_is_told() {
        let objects = Objects { objects_total: 2_007, ..shop() };
        assert!(more(&objects).starts_with("… and 2002 more"), "{}", more(&objects));
        assert_eq!(more(&shop()), "", "an older control plane does not say");
    }

    #[test]
    fn kinds_have_short_names() {
        for text in ["httproute", "HTTPRoutes", "HTTPRoute"] {
            assert_eq!(kind(text), Ok("HTTPRoute"));
        }
        assert_eq!(kind("cb"), Ok("CircuitBreaker"));
        assert!(kind("ingress").expect_err("not ours").contains("TrafficPolicy"));
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_is() {
        let objects = shop();
        let error =
            filter(Some("TrafficPolicy"), Some("ordres"), None).objects(&objects).expect_err("typing");
        assert!(error.to_string().contains("orders"), "{error}");
    }
}
