//! The Helm chart, made from the same objects as everything else.
//!
//! In: nothing but the objects. Out: the chart's files. A template is the text of objects that were made of *marks* in place of
//! values, with each mark replaced by an expression; and where a switch makes a difference, both texts stand in it, line by
//! line.
//!
//! Invariant: whatever the values, the chart renders the objects of [`super::objects`] (a test renders it; so does `helm`).
//! Surprise: few expressions are enough: `if`, `with`, a value, `toYaml … | nindent`, `toJson … | quote`, and for wishes that do not go
//! together `fail`, `regexMatch` and a template that reads quantities.

use serde_json::Value;
use similar::{DiffOp, capture_diff_slices};

use super::values::{If, SecretName, Values, rules, schema};
use super::{INSTALLED_WITH, Object, everything};
use crate::cluster::version::OLDEST;

/// Values that are maps or lists, with the field that holds them.
const BLOCKS: [(&str, &str); 4] = [
    ("controlPlane.nodeSelector", "nodeSelector"),
    ("controlPlane.resources", "resources"),
    ("controlPlane.tolerations", "tolerations"),
    ("image.pullSecrets", "imagePullSecrets"),
];
/// Values that may be empty, and whose line is not there then.
const OPTIONAL: [&str; 8] = [
    "api.oidc.operatorGroups",
    "api.oidc.viewerGroups",
    "api.publicUrl",
    "controlPlane.priorityClassName",
    "sidecar.kind",
    "sidecar.logLevel",
    "sidecar.resources.limits.cpu",
    "sidecar.resources.limits.memory",
];
/// Values that change more than a line, or another one than theirs: the innermost first, if one matters only while another is off.
const SWITCHES: [&str; 6] = [
    "controlPlane.history.persistentVolumeClaim",
    "api.oidc.clientSecret",
    "api.oidc.issuer",
    "api.tokensSecret",
    "api.expose",
    "ha",
];
/// Values that may be numbers too, which Go would write as 1.28e+08.
const QUANTITIES: [&str; 4] = [
    "sidecar.resources.limits.cpu",
    "sidecar.resources.limits.memory",
    "sidecar.resources.requests.cpu",
    "sidecar.resources.requests.memory",
];
/// How they are written.
const AS_TEXT: &str = r#" | toJson | trimAll "\"""#;
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
    files.push(("templates/refuse.yaml".to_owned(), refusals()));
    // By which switches are on, a bit for each.
    let all: Vec<Vec<Object>> = (0..1 << SWITCHES.len()).map(|on| everything(&marked(on))).collect();
    for (index, one) in all[0].iter().enumerate() {
        let texts: Vec<Vec<String>> = all.iter().map(|some| expressions(&some[index].text())).collect();
        let text: String = folded(&texts, &SWITCHES).iter().map(|line| format!("{line}\n")).collect();
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
    let (major, minor) = OLDEST;
    format!(
        "apiVersion: v2\nname: weft\ndescription: A service mesh that shows its work\ntype: application\nversion: {version}\n\
         appVersion: {version}\nkubeVersion: '>={major}.{minor}.0-0'\n"
    )
}

/// How a mark begins; a bracket ends it.
const MARK: &str = "VALUE(";

fn mark(path: &str) -> String {
    format!("{MARK}{path})")
}

/// Reads a quantity, as `weft_wire::annotation::quantity` does.
const AMOUNT: &str = r#"{{- define "weft.amount" }}
{{- $units := dict "" "1" "n" "1e-9" "u" "1e-6" "m" "1e-3" "k" "1e3" "M" "1e6" "G" "1e9" "T" "1e12" "P" "1e15" }}
{{- $units = merge $units (dict "Ki" "1024" "Mi" "1048576" "Gi" "1073741824" "Ti" "1099511627776") }}
{{- $text := . | toJson | trimAll "\"" }}
{{- $unit := regexFind "[A-Za-z]*$" $text }}
{{- mulf (float64 (trimSuffix $unit $text)) (float64 (get $units $unit)) }}
{{- end }}
"#;

/// What must not be wished together, in the words of `weft install`.
fn refusals() -> String {
    let mut out = AMOUNT.to_owned();
    for rule in rules() {
        let amount = |path: &str| format!(r#"(include "weft.amount" .Values.{path} | float64)"#);
        for condition in &rule.when {
            let condition = match *condition {
                If::Set(path) => format!(".Values.{path}"),
                If::Unset(path) => format!("not .Values.{path}"),
                If::Like(path, pattern) => format!("regexMatch {pattern:?} .Values.{path}"),
                If::Unlike(path, pattern) => format!("not (regexMatch {pattern:?} .Values.{path})"),
                If::Above(more, less) => format!("gt {} {}", amount(more), amount(less)),
            };
            out.push_str(&format!("{{{{- if {condition} }}}}\n"));
        }
        let (words, paths) = rule.parts();
        let values: String = paths.iter().map(|path| format!(" .Values.{path}")).collect();
        let words = words.join("%v");
        out.push_str(&match paths.is_empty() {
            true => format!("{{{{- fail {words:?} }}}}\n"),
            false => format!("{{{{- fail (printf {words:?}{values}) }}}}\n"),
        });
        out.push_str(&"{{- end }}\n".repeat(rule.when.len()));
    }
    out
}

/// Values that are marks of themselves, with those switches on whose bits are set.
fn marked(on: usize) -> Values {
    let is_on =
        |path: &str| SWITCHES.iter().position(|switch| *switch == path).is_some_and(|at| on >> at & 1 == 1);
    let mut values = Values { ha: is_on("ha"), ..Values::default() };
    values.api.expose = is_on("api.expose");
    let claim = &mut values.control_plane.history.persistent_volume_claim;
    for (path, value) in [
        ("controlPlane.history.persistentVolumeClaim", claim),
        ("api.oidc.clientSecret", &mut values.api.oidc.client_secret),
        ("api.oidc.issuer", &mut values.api.oidc.issuer),
        ("api.tokensSecret", &mut values.api.tokens_secret),
    ] {
        *value = if is_on(path) { mark(path) } else { String::new() };
    }
    let (oidc, sidecar) = (&mut values.api.oidc, &mut values.sidecar);
    for (path, value) in [
        (REGISTRY, &mut values.image.registry),
        ("image.tag", &mut values.image.tag),
        ("image.pullPolicy", &mut values.image.pull_policy),
        ("trustDomain", &mut values.trust_domain),
        ("log", &mut values.log),
        ("controlPlane.priorityClassName", &mut values.control_plane.priority_class_name),
        ("injector.failurePolicy", &mut values.injector.failure_policy),
        ("api.publicUrl", &mut values.api.public_url),
        ("api.oidc.clientId", &mut oidc.client_id),
        ("api.oidc.groupsClaim", &mut oidc.groups_claim),
        ("api.oidc.scopes", &mut oidc.scopes),
        ("api.oidc.operatorGroups", &mut oidc.operator_groups),
        ("api.oidc.viewerGroups", &mut oidc.viewer_groups),
        ("sidecar.kind", &mut sidecar.kind),
        ("sidecar.logLevel", &mut sidecar.log_level),
        ("sidecar.resources.requests.cpu", &mut sidecar.resources.requests.cpu),
        ("sidecar.resources.requests.memory", &mut sidecar.resources.requests.memory),
        ("sidecar.resources.limits.cpu", &mut sidecar.resources.limits.cpu),
        ("sidecar.resources.limits.memory", &mut sidecar.resources.limits.memory),
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
        } else if let Some((path, mark)) = optional(line) {
            let space = " ".repeat(indent(line));
            lines.push(format!("{space}{{{{- with .Values.{path} }}}}"));
            // An option of a command line is no text of its own, and has no character that needs quotes.
            let dot = match line.ends_with(&format!("={mark}")) {
                true => format!("{{{{ .{} }}}}", as_text(path)),
                false => "{{ . | quote }}".to_owned(),
            };
            lines.push(line.replace(&mark, &dot));
            lines.push(format!("{space}{{{{- end }}}}"));
        } else {
            lines.push(values_in(line));
        }
    }
    lines
}

/// The value that may be empty, if the line ends with one: then the line is there for it alone.
fn optional(line: &str) -> Option<(&'static str, String)> {
    let marks = OPTIONAL.iter().map(|path| (*path, mark(path)));
    marks.into_iter().find(|(_, mark)| line.ends_with(mark.as_str()))
}

/// One text of those with a switch off (the first half) and on (the second), for each switch.
fn folded(texts: &[Vec<String>], switches: &[&str]) -> Vec<String> {
    let Some((last, rest)) = switches.split_last() else { return texts[0].clone() };
    let (off, on) = texts.split_at(texts.len() / 2);
    choice(last, &folded(off, rest), &folded(on, rest))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn as_text(path: &str) -> &'static str {
    if QUANTITIES.contains(&path) { AS_TEXT } else { "" }
}

/// A line with its plain values.
fn values_in(line: &str) -> String {
    let registry = format!("{{{{ with .Values.{REGISTRY} }}}}{{{{ . }}}}/{{{{ end }}}}");
    let line = line.replace(&format!("{}/", mark(REGISTRY)), &registry);
    let mut parts = line.split(MARK);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (path, rest) = part.split_once(')').expect("a mark ends");
        out.push_str(&format!("{{{{ .Values.{path}{} }}}}{rest}", as_text(path)));
    }
    out
}

/// One text or the other, line by line, by whether a switch is on.
fn choice(switch: &str, off: &[String], on: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for operation in capture_diff_slices(similar::Algorithm::Myers, off, on) {
        if let DiffOp::Equal { .. } = operation {
            lines.extend_from_slice(&off[operation.old_range()]);
            continue;
        }
        let (without, with) = (&off[operation.old_range()], &on[operation.new_range()]);
        let not = if with.is_empty() { "not " } else { "" };
        lines.push(format!("{{{{- if {not}.Values.{switch} }}}}"));
        lines.extend_from_slice(with);
        if !with.is_empty() && !without.is_empty() {
            lines.push("{{- else }}".to_owned());
        }
        lines.extend_from_slice(without);
        lines.push("{{- end }}".to_owned());
    }
    lines
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
