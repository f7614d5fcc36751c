//! The Helm chart, made from the same objects as everything else.
//!
//! In: nothing but the objects. Out: the chart's files. A template is the text of objects that were made of *marks* in place of
//! values, with each mark replaced by an expression; and where three replicas differ from one, both texts stand in it, line
//! by line.
//!
//! Invariant: whatever the values, the chart renders the objects of [`super::objects`] (a test renders it; so does `helm`).
//! Surprise: few expressions are enough: `if`, `with`, a value, `toYaml … | nindent`, and `toJson … | quote`.

use schemars::generate::SchemaSettings;
use serde_json::Value;
use similar::{DiffOp, capture_diff_slices};

use super::values::{SecretName, Values};
use super::{INSTALLED_WITH, everything};

/// Values that are maps or lists, with the field that holds them.
const BLOCKS: [(&str, &str); 4] = [
    ("controlPlane.nodeSelector", "nodeSelector"),
    ("controlPlane.resources", "resources"),
    ("controlPlane.tolerations", "tolerations"),
    ("image.pullSecrets", "imagePullSecrets"),
];
/// Values that may be empty, and whose line is not there then.
const OPTIONAL: [&str; 1] = ["controlPlane.priorityClassName"];
/// The value that stands before a slash, or neither.
const REGISTRY: &str = "image.registry";

/// The chart's files: name below the chart's directory, and text.
#[must_use]
pub fn files() -> Vec<(String, String)> {
    let mut files = vec![
        ("Chart.yaml".to_owned(), about()),
        ("values.yaml".to_owned(), commented()),
        ("values.schema.json".to_owned(), format!("{:#}\n", schema())),
    ];
    let (one, three) = (everything(&marked(false)), everything(&marked(true)));
    for (one, three) in one.iter().zip(&three) {
        let text = choice(&expressions(&one.text()), &expressions(&three.text()));
        let text = match one.condition {
            Some(path) => format!("{{{{- if .Values.{path} }}}}\n{text}{{{{- end }}}}\n"),
            None => text,
        };
        let name = format!("templates/{}.yaml", one.file);
        match files.iter_mut().find(|(other, _)| *other == name) {
            Some((_, before)) => before.push_str(&format!("---\n{text}")),
            None => files.push((name, text)),
        }
    }
    files
}

fn about() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "apiVersion: v2\nname: weft\ndescription: A service mesh that shows its work\ntype: application\nversion: {version}\n\
         appVersion: {version}\nkubeVersion: '>=1.27.0-0'\n"
    )
}

/// How a mark begins; a bracket ends it.
const MARK: &str = "VALUE(";

fn mark(path: &str) -> String {
    format!("{MARK}{path})")
}

/// Values that are marks of themselves.
fn marked(ha: bool) -> Values {
    let mut values = Values { ha, ..Values::default() };
    for (path, value) in [
        (REGISTRY, &mut values.image.registry),
        ("image.tag", &mut values.image.tag),
        ("image.pullPolicy", &mut values.image.pull_policy),
        ("trustDomain", &mut values.trust_domain),
        ("log", &mut values.log),
        ("controlPlane.priorityClassName", &mut values.control_plane.priority_class_name),
        ("injector.failurePolicy", &mut values.injector.failure_policy),
    ] {
        *value = mark(path);
    }
    values.image.pull_secrets = vec![SecretName { name: mark("image.pullSecrets") }];
    let pod = &mut values.control_plane;
    pod.node_selector = [(mark("controlPlane.nodeSelector"), String::new())].into();
    pod.resources = Default::default();
    pod.resources.limits = Some([(mark("controlPlane.resources"), Default::default())].into());
    pod.tolerations = vec![Default::default()];
    pod.tolerations[0].key = Some(mark("controlPlane.tolerations"));
    values
}

/// A text with expressions instead of marks.
fn expressions(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with(INSTALLED_WITH) {
            let indent = indent(line);
            lines.push(format!("{}{INSTALLED_WITH}: {{{{ .Values | toJson | quote }}}}", " ".repeat(indent)));
        } else if let Some((path, field)) = BLOCKS.iter().find(|(path, _)| line.contains(&mark(path))) {
            let owner = |line: &String| line.trim_start().trim_start_matches("- ") == format!("{field}:");
            let at = lines.iter().rposition(owner).expect("a block stands below its field");
            let indent = indent(&lines[at]);
            lines.truncate(at);
            let space = " ".repeat(indent);
            lines.push(format!("{space}{{{{- with .Values.{path} }}}}"));
            lines.push(format!("{space}{field}:"));
            lines.push(format!("{space}  {{{{- toYaml . | nindent {} }}}}", indent + 2));
            lines.push(format!("{space}{{{{- end }}}}"));
        } else if let Some(path) = OPTIONAL.iter().find(|path| line.contains(&mark(path))) {
            let space = " ".repeat(indent(line));
            lines.push(format!("{space}{{{{- with .Values.{path} }}}}"));
            lines.push(line.replace(&mark(path), "{{ . | quote }}"));
            lines.push(format!("{space}{{{{- end }}}}"));
        } else {
            lines.push(values_in(line));
        }
    }
    lines
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// A line with its plain values.
fn values_in(line: &str) -> String {
    let registry = format!("{{{{ with .Values.{REGISTRY} }}}}{{{{ . }}}}/{{{{ end }}}}");
    let line = line.replace(&format!("{}/", mark(REGISTRY)), &registry);
    let mut parts = line.split(MARK);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (path, rest) = part.split_once(')').expect("a mark ends");
        out.push_str(&format!("{{{{ .Values.{path} }}}}{rest}"));
    }
    out
}

/// One text or the other, line by line, by whether there are three replicas.
fn choice(one: &[String], three: &[String]) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for operation in capture_diff_slices(similar::Algorithm::Myers, one, three) {
        if let DiffOp::Equal { .. } = operation {
            lines.extend(one[operation.old_range()].iter().map(String::as_str));
            continue;
        }
        let (without, with) = (&one[operation.old_range()], &three[operation.new_range()]);
        lines.push(if with.is_empty() { "{{- if not .Values.ha }}" } else { "{{- if .Values.ha }}" });
        lines.extend(with.iter().map(String::as_str));
        if !with.is_empty() && !without.is_empty() {
            lines.push("{{- else }}");
        }
        lines.extend(without.iter().map(String::as_str));
        lines.push("{{- end }}");
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The schema of the values, as Helm checks them.
fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Values>().to_value()
}

/// The default values, each with what its type says of it.
fn commented() -> String {
    let values = serde_yaml::to_value(Values::default()).expect("values are YAML");
    let mut out = "# Generated: what can be wished of Weft, and what is without a wish.\n".to_owned();
    comment(&values, &schema(), 0, &mut out);
    out
}

fn comment(values: &serde_yaml::Value, schema: &Value, depth: usize, out: &mut String) {
    let serde_yaml::Value::Mapping(fields) = values else { return };
    for (field, value) in fields {
        let field = field.as_str().unwrap_or_default();
        let schema = &schema["properties"][field];
        let space = "  ".repeat(depth);
        if depth == 0 {
            out.push('\n');
        }
        if let Some(about) = schema["description"].as_str() {
            out.push_str(&format!("{space}# {}\n", about.replace('\n', " ")));
        }
        if schema["properties"].is_object() {
            out.push_str(&format!("{space}{field}:\n"));
            comment(value, schema, depth + 1, out);
        } else {
            let one: serde_yaml::Mapping = [(field.into(), value.clone())].into_iter().collect();
            let text = crate::yaml::text(&one).expect("values are YAML");
            out.extend(text.lines().map(|line| format!("{space}{line}\n")));
        }
    }
}

#[cfg(test)]
mod tests;
