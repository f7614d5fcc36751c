//! Helm's templates, as far as ours go: a value, `.`, `if`, `if not`, `else`, `with`, `end`, and the functions toYaml,
//! nindent, toJson and quote; and `fail`, which is a panic with its words.

use serde_json::Value;

pub(super) fn render(template: &str, values: &Value) -> String {
    let mut parts = parts(template).into_iter().peekable();
    let mut out = String::new();
    let end = block(&mut parts, values, values, true, &mut out);
    assert_eq!(end, None, "something ends that has not begun");
    out
}

enum Part {
    Text(String),
    Expression(String),
}

/// Texts and expressions, with the space taken away that `{{-` takes away.
fn parts(template: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find("{{") {
        let (text, behind) = rest.split_at(at);
        let (expression, after) = behind[2..].split_once("}}").expect("an expression ends");
        assert!(!expression.ends_with('-'), "not used here: {expression}");
        let (text, expression) = match expression.strip_prefix("- ") {
            Some(expression) => (text.trim_end(), expression),
            None => (text, expression),
        };
        parts.push(Part::Text(text.to_owned()));
        parts.push(Part::Expression(expression.trim().to_owned()));
        rest = after;
    }
    parts.push(Part::Text(rest.to_owned()));
    parts
}

/// Renders up to `else` or `end` of its own, and says which it was.
fn block(
    parts: &mut std::iter::Peekable<std::vec::IntoIter<Part>>,
    values: &Value,
    dot: &Value,
    shown: bool,
    out: &mut String,
) -> Option<String> {
    while let Some(part) = parts.next() {
        let expression = match part {
            Part::Text(text) => {
                out.push_str(if shown { &text } else { "" });
                continue;
            }
            Part::Expression(expression) => expression,
        };
        let (word, argument) = expression.split_once(' ').unwrap_or((&expression, ""));
        match word {
            "else" | "end" => return Some(word.to_owned()),
            "if" | "with" => {
                let (argument, negated) = match argument.strip_prefix("not ") {
                    Some(argument) => (argument, true),
                    None => (argument, false),
                };
                let value = look_up(argument, values, dot);
                let holds = is_true(&value) != negated;
                let inner = if word == "with" { &value } else { dot };
                if block(parts, values, inner, shown && holds, out).as_deref() == Some("else") {
                    let end = block(parts, values, dot, shown && !holds, out);
                    assert_eq!(end.as_deref(), Some("end"));
                }
            }
            "fail" if shown => panic!("{}", serde_json::from_str::<String>(argument).expect("a text")),
            _ if shown => out.push_str(&pipeline(&expression, values, dot)),
            _ => {}
        }
    }
    None
}

fn look_up(path: &str, values: &Value, dot: &Value) -> Value {
    match path {
        "." => dot.clone(),
        ".Values" => values.clone(),
        _ => {
            let path = path.strip_prefix(".Values.").unwrap_or_else(|| panic!("not used here: {path}"));
            path.split('.')
                .fold(values, |value, field| value.get(field).unwrap_or_else(|| panic!("no value {path}")))
                .clone()
        }
    }
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn pipeline(expression: &str, values: &Value, dot: &Value) -> String {
    let mut steps = expression.split(" | ");
    let first = steps.next().expect("an expression");
    let mut current = match first.strip_prefix("toYaml ") {
        Some(path) => yaml(&look_up(path, values, dot)),
        None => match look_up(first, values, dot) {
            Value::String(text) => text,
            other => other.to_string(),
        },
    };
    for step in steps {
        current = match step.split_once(' ').unwrap_or((step, "")) {
            ("toJson", "") => look_up(first, values, dot).to_string(),
            ("quote", "") => format!("{current:?}"),
            ("nindent", spaces) => {
                let space = " ".repeat(spaces.parse().expect("a number"));
                current.lines().map(|line| format!("\n{space}{line}")).collect()
            }
            other => panic!("not used here: {other:?}"),
        };
    }
    current
}

fn yaml(value: &Value) -> String {
    serde_yaml::to_string(value).expect("YAML").trim_end().to_owned()
}

#[test]
fn it_renders_as_helm_does() {
    let values =
        serde_json::json!({ "a": { "b": "c", "d": { "e": 1 } }, "yes": true, "no": false, "empty": {} });
    for (template, text) in [
        ("x: {{ .Values.a.b }}\n", "x: c\n"),
        ("x\n{{- if .Values.yes }}\ny\n{{- else }}\nz\n{{- end }}\n", "x\ny\n"),
        ("x\n{{- if .Values.no }}\ny\n{{- else }}\nz\n{{- end }}\n", "x\nz\n"),
        ("x\n{{- if not .Values.no }}\ny\n{{- end }}\n", "x\ny\n"),
        ("{{ with .Values.a.b }}{{ . }}/{{ end }}x", "c/x"),
        ("x\n  {{- with .Values.empty }}\n  y:\n    {{- toYaml . | nindent 4 }}\n  {{- end }}\n", "x\n"),
        (
            "x\n  {{- with .Values.a.d }}\n  y:\n    {{- toYaml . | nindent 4 }}\n  {{- end }}\n",
            "x\n  y:\n    e: 1\n",
        ),
        ("{{ .Values.a | toJson | quote }}", r#""{\"b\":\"c\",\"d\":{\"e\":1}}""#),
    ] {
        assert_eq!(render(template, &values), text, "{template}");
    }
}
