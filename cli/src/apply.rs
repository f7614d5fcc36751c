//! `weft apply --dry-run`: what would change if these objects were applied.
//!
//! In: YAML files, directories or standard input. Out: what is wrong, with file, line and field; else which
//! objects change, which xDS resources follow, and on which sidecars. Invariant: nothing is ever applied from
//! here: the source directory, or the cluster, is the only truth. Surprise: an object that the mesh has no use for (a
//! Deployment) is a problem that stops nothing, so problems and a plan may come together.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use console::style;
use serde::Deserialize;

use crate::output;

/// What misuse ends with, as clap does it.
const MISUSE: u8 = 2;
/// The largest input: the API takes no more, and no hand-written manifest comes near it.
const INPUT_MAX: usize = weft_control_plane::api::DRY_RUN_BYTES_MAX;
/// Directories below directories; links may form a circle.
const DEPTH_MAX: usize = 16;
/// Lines of one resource's difference that are shown.
const DIFF_MAX: usize = 40;
/// What the API calls it when an object is there already, as it is.
const UNCHANGED: &str = "unchanged";
/// Sidecars that are named; the others are counted.
const SIDECARS_MAX: usize = 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft apply --dry-run orders.yaml              what these objects would change, and where
  weft apply --dry-run routes/ policies/        all *.yaml, *.yml and *.json below directories
  kustomize build . | weft apply --dry-run -    from standard input

Exit code: 0 if all of them could be applied, 1 if there are problems, 2 without --dry-run.
To apply them, put the files into the control plane's source directory, or use kubectl.")]
pub(crate) struct ApplyArgs {
    /// Only say what would happen
    #[arg(long)]
    dry_run: bool,
    /// YAML files or directories of them; - for standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

/// The answer of `POST /api/dry-run`.
#[derive(Debug, Deserialize)]
struct Plan {
    #[serde(default)]
    problems: Vec<Problem>,
    #[serde(default)]
    objects: Vec<ObjectChange>,
    #[serde(default)]
    resources: Vec<ResourceChange>,
    #[serde(default)]
    resources_left_out: usize,
    #[serde(default)]
    sidecars: Vec<Sidecar>,
    #[serde(default)]
    sidecars_left_out: usize,
}

#[derive(Debug, Deserialize)]
struct Problem {
    #[serde(default)]
    line: Option<usize>,
    #[serde(default)]
    object: Option<String>,
    #[serde(default)]
    field: Option<String>,
    message: String,
}

#[derive(Debug, Deserialize)]
struct ObjectChange {
    object: String,
    change: String,
}

#[derive(Debug, Deserialize)]
struct ResourceChange {
    kind: String,
    name: String,
    change: String,
    #[serde(default)]
    diff: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Sidecar {
    instance: String,
    /// Absent where a client of another kind asks for configuration.
    #[serde(default)]
    workload: Option<String>,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    resources: Vec<String>,
}

pub(crate) async fn run(arguments: ApplyArgs) -> anyhow::Result<ExitCode> {
    let ApplyArgs { dry_run, files, api } = arguments;
    if !dry_run {
        output::error(&anyhow::anyhow!(
            "weft applies nothing by itself: the source directory, or the cluster, is the only truth\n  \
             without Kubernetes: copy the files into the directory that `weft control-plane --source DIR` reads\n  \
             with Kubernetes: kubectl apply -f FILE\n  \
             to see what would change: weft apply --dry-run FILE"
        ));
        return Ok(ExitCode::from(MISUSE));
    }
    let api = api.open().await?;
    let input = Input::read(&files)?;
    let body = api.post("/api/dry-run", "application/yaml", input.text.clone()).await?;
    let plan: Plan = api.read(&body)?;
    output::text(&show(&plan, &input));
    Ok(if plan.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Several files as one stream of YAML documents, and the way back from its lines to theirs.
#[derive(Debug, Default)]
struct Input {
    text: String,
    /// Name and first line (from 0) of each file, in order.
    files: Vec<(String, usize)>,
}

impl Input {
    fn read(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut input = Self::default();
        for path in paths {
            if path == Path::new("-") {
                input.add(
                    "standard input",
                    &text_of(std::io::stdin()).context("cannot read standard input")?,
                )?;
            } else if path.is_dir() {
                let mut files = Vec::new();
                directory(path, 0, &mut files)?;
                for file in files {
                    input.add(&file.display().to_string(), &read(&file)?)?;
                }
            } else {
                input.add(&path.display().to_string(), &read(path)?)?;
            }
        }
        anyhow::ensure!(!input.files.is_empty(), "there is no *.yaml, *.yml or *.json in there");
        Ok(input)
    }

    fn add(&mut self, name: &str, text: &str) -> anyhow::Result<()> {
        if !self.text.is_empty() {
            self.text.push_str("---\n");
        }
        self.files.push((name.to_owned(), self.text.lines().count()));
        self.text.push_str(text);
        if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        let size = self.text.len();
        anyhow::ensure!(size <= INPUT_MAX, "that is more than {} MiB at a time", INPUT_MAX / 1024 / 1024);
        Ok(())
    }

    /// `orders.yaml:14` of a line (from 1) of the stream.
    fn place(&self, line: usize) -> Option<String> {
        let line = line.checked_sub(1)?;
        let (name, first) = self.files.iter().rev().find(|(_, first)| *first <= line)?;
        Some(format!("{name}:{}", line - first + 1))
    }
}

/// The YAML files below a directory, as the control plane reads it: in order, without what begins with a dot.
fn directory(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", path.display());
    let entries = std::fs::read_dir(path).with_context(cannot)?;
    let mut entries: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .with_context(cannot)?;
    entries.retain(|entry| !entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            anyhow::ensure!(
                depth < DEPTH_MAX,
                "{} is more than {DEPTH_MAX} directories deep",
                entry.display()
            );
            directory(&entry, depth + 1, files)?;
        } else if entry.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            files.push(entry);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::File::open(path).and_then(text_of);
    text.with_context(|| format!("cannot read {}", path.display()))
}

/// All of it, or so much more than is taken that it is refused.
fn text_of(source: impl Read) -> std::io::Result<String> {
    let mut text = String::new();
    source.take(INPUT_MAX as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

fn show(plan: &Plan, input: &Input) -> String {
    let mut text = String::new();
    for problem in &plan.problems {
        let place = problem.line.and_then(|line| input.place(line));
        let parts = [place.as_ref(), problem.object.as_ref(), problem.field.as_ref()];
        let place: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        let gap = if place.is_empty() { "" } else { ": " };
        text.push_str(&format!(
            "{} {}{gap}{}\n",
            style("problem").red().bold(),
            place.join(" "),
            problem.message
        ));
    }
    match (plan.problems.is_empty(), plan.objects.is_empty()) {
        (true, _) => {}
        (false, true) => return text + "nothing was applied, and nothing of this could be\n",
        (false, false) => text.push_str("without that:\n\n"),
    }
    text.push_str("objects\n");
    let (same, changed): (Vec<_>, Vec<_>) =
        plan.objects.iter().partition(|object| object.change == UNCHANGED);
    for ObjectChange { object, change } in changed {
        text.push_str(&format!("  {} {object}\n", verb(change)));
    }
    match same.as_slice() {
        [] => {}
        [one] => text.push_str(&format!("  {} {}\n", verb(UNCHANGED), one.object)),
        many => text.push_str(&format!("  {} {} objects\n", verb(UNCHANGED), many.len())),
    }
    if plan.resources.is_empty() {
        text.push_str("no sidecar would get anything else than now\nnothing was applied\n");
        return text;
    }
    text.push_str("\nwhat sidecars are told\n");
    for resource in &plan.resources {
        text.push_str(&format!("  {} {} {}\n", verb(&resource.change), resource.kind, resource.name));
        for line in resource.diff.iter().take(DIFF_MAX) {
            text.push_str(&format!("      {}\n", tinted(line)));
        }
        let hidden = resource.diff.len().saturating_sub(DIFF_MAX);
        if hidden > 0 {
            text.push_str(&format!("      … and {hidden} more lines\n"));
        }
    }
    if plan.resources_left_out > 0 {
        text.push_str(&format!("  … and {} more\n", plan.resources_left_out));
    }
    let sidecars = plan.sidecars.len() + plan.sidecars_left_out;
    text.push_str(&format!("\nwhich sidecars: {sidecars}\n"));
    for Sidecar { instance, workload, namespace, resources } in plan.sidecars.iter().take(SIDECARS_MAX) {
        let namespace = namespace.as_ref().map(|name| format!("{name}/")).unwrap_or_default();
        let name = match workload {
            Some(workload) => format!("{namespace}{workload} {}", style(format!("({instance})")).dim()),
            None => instance.clone(),
        };
        text.push_str(&format!("  {name}: {}\n", resources.join(", ")));
    }
    let hidden = sidecars.saturating_sub(SIDECARS_MAX);
    if hidden > 0 {
        text.push_str(&format!("  … and {hidden} more\n"));
    }
    text.push_str("nothing was applied\n");
    text
}

/// The kind of change in a column of its own; the word stays when the colour does not.
fn verb(change: &str) -> String {
    let text = style(format!("{change:<9}"));
    match change {
        "create" | "add" => text.green(),
        "update" => text.yellow(),
        "remove" => text.red(),
        _ => text.dim(),
    }
    .to_string()
}

fn tinted(line: &str) -> String {
    match line.as_bytes().first() {
        Some(b'+') => style(line).green().to_string(),
        Some(b'-') => style(line).red().to_string(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input() -> Input {
        console::set_colors_enabled(false);
        let mut input = Input::default();
        input.add("route.yaml", "kind: HTTPRoute\nspec: {}\n").expect("small");
        input.add("policy.yaml", "kind: TrafficPolicy\nspec:\n  retry: {}").expect("small");
        input
    }

    fn plan(text: &str) -> Plan {
        serde_json::from_str(text).expect("the API's JSON")
    }

    #[test]
    fn lines_lead_back_to_their_files() {
        let input = input();
        assert_eq!(input.place(1).as_deref(), Some("route.yaml:1"));
        assert_eq!(input.place(4).as_deref(), Some("policy.yaml:1"));
        assert_eq!(input.place(6).as_deref(), Some("policy.yaml:3"));
        assert_eq!(input.place(0), None);
    }

    #[test]
    fn problems_name_file_line_object_and_field() {
        insta::assert_snapshot!(show(&plan(include_str!("apply/problems.json")), &input()));
    }

    #[test]
    fn a_plan_says_what_changes_and_where() {
        insta::assert_snapshot!(show(&plan(include_str!("apply/plan.json")), &input()));
    }

    #[test]
    fn a_plan_without_consequences_says_so() {
        let plan = plan(r#"{"objects":[{"object":"Service shop/orders","change":"unchanged"}]}"#);
        assert!(show(&plan, &input()).contains("no sidecar would get anything else"));
    }

    #[test]
    fn what_stops_nothing_is_told_beside_the_plan() {
        let plan = plan(
            r#"{"problems":[{"line":1,"message":"apps/v1 Deployment is not supported, and is left alone"}],
                "objects":[{"object":"Service shop/orders","change":"create"}],
                "resources":[{"kind":"Cluster","name":"orders.shop:8080","change":"add"}],"resources_left_out":7,
                "sidecars":[{"instance":"edge","workload":null,"namespace":null,"resources":[]}],"sidecars_left_out":40}"#,
        );
        let text = show(&plan, &input());
        for part in [
            "left alone",
            "create    Service shop/orders",
            "… and 7 more",
            "which sidecars: 41",
            "\n  edge: ",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("nothing of this could be"), "{text}");
    }

    #[test]
    fn more_than_the_api_takes_is_refused_and_never_cut() {
        let text = text_of(std::io::repeat(b'#')).expect("read");
        assert!(Input::default().add("standard input", &text).is_err());
    }

    #[test]
    fn directories_give_their_yaml_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("c")).expect("made");
        for (name, text) in [
            ("b.yml", "kind: B\n"),
            ("a.yaml", "kind: A\n"),
            ("c.txt", "no\n"),
            (".d.yaml", "no\n"),
            ("c/d.json", "{}"),
        ] {
            std::fs::write(directory.path().join(name), text).expect("written");
        }
        let input = Input::read(&[directory.path().to_owned()]).expect("read");
        assert_eq!(input.text, "kind: A\n---\nkind: B\n---\n{}\n");
        assert!(Input::read(&[directory.path().join("none.yaml")]).is_err());
    }
}
