//! Helm's templates, as far as ours go: a value, `.`, `if`, `if not`, `else`, `with`, `end`, and the functions toYaml,
//! nindent, toJson, trimAll and quote; conditions with `regexMatch` and with `gt` of two amounts; and `fail`, which is a panic with its
//! words. What is defined is not rendered: `weft.amount` is what it stands for.

use serde_json::Value;
use weft_wire::annotation::quantity;

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
                // Only what is shown has to be there.
                let value = if shown { condition(argument, values, dot) } else { Value::Null };
                let holds = is_true(&value) != negated;
                let inner = if word == "with" { &value } else { dot };
                if block(parts, values, inner, shown && holds, out).as_deref() == Some("else") {
                    let end = block(parts, values, dot, shown && !holds, out);
                    assert_eq!(end.as_deref(), Some("end"));
                }
            }
            "define" => {
                assert_eq!(argument, "\"weft.amount\"", "not used here");
                assert_eq!(block(parts, values, dot, false, out).as_deref(), Some("end"));
            }
            "fail" if shown => panic!("{}", words(argument, values, dot)),
            _ if shown => out.push_str(&pipeline(&expression, values, dot)),
            _ => {}
        }
    }
    None
}

/// What `if` asks for.
fn condition(expression: &str, values: &Value, dot: &Value) -> Value {
    let inner = expression.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')).unwrap_or(expression);
    if let Some(rest) = inner.strip_prefix("regexMatch ") {
        let (pattern, path) = quoted(rest);
        let text = look_up(path.trim(), values, dot);
        return regex::Regex::new(&pattern)
            .expect("a pattern")
            .is_match(text.as_str().expect("a text"))
            .into();
    }
    let Some(rest) = expression.strip_prefix("gt (") else { return look_up(expression, values, dot) };
    let (more, less) = rest.strip_suffix(')').and_then(|rest| rest.split_once(") (")).expect("two amounts");
    let amount = |one: &str| {
        let path =
            one.strip_prefix("include \"weft.amount\" ").and_then(|one| one.strip_suffix(" | float64"));
        quantity(&plain(&look_up(path.expect("an amount"), values, dot))).expect("a quantity")
    };
    (amount(more) > amount(less)).into()
}

/// What `fail` says.
fn words(argument: &str, values: &Value, dot: &Value) -> String {
    let Some(rest) = argument.strip_prefix("(printf ") else { return quoted(argument).0 };
    let (format, paths) = quoted(rest.strip_suffix(')').expect("a bracket"));
    paths
        .split_whitespace()
        .fold(format, |said, path| said.replacen("%v", &plain(&look_up(path, values, dot)), 1))
}

/// A text in quotes, and what is behind it.
fn quoted(text: &str) -> (String, &str) {
    let mut read = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let said = read.next().expect("a text").expect("a text");
    (said, &text[read.byte_offset()..])
}

/// As Go writes it in JSON, without quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().expect("a number").to_string(),
        other => other.to_string(),
    }
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
            ("toJson", "") => match look_up(first, values, dot) {
                number @ Value::Number(_) => plain(&number),
                other => other.to_string(),
            },
            ("trimAll", "\"\\\"\"") => current.trim_matches('"').to_owned(),
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
        (
            "{{ .Values.a.d.e | toJson | trimAll \"\\\"\" }}{{ .Values.a.b | toJson | trimAll \"\\\"\" }}",
            "1c",
        ),
        ("{{- define \"weft.amount\" }}\nx\n{{- end }}\ny", "\ny"),
        ("x\n{{- if regexMatch \"^c\" .Values.a.b }}\ny\n{{- end }}\n", "x\ny\n"),
        ("x\n{{- if not (regexMatch \"^c\" .Values.a.b) }}\ny\n{{- end }}\n", "x\n"),
        ("{{ .Values.a | toJson | quote }}", r#""{\"b\":\"c\",\"d\":{\"e\":1}}""#),
    ] {
        assert_eq!(render(template, &values), text, "{template}");
    }
}
