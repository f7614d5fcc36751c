//! What must not leave with a report, taken out. Pure.
//!
//! In: text or JSON as somebody wrote it. Out: the same, with `[redacted]` where a secret, a token, a key, a password, a header's
//! value or, if that is wanted, an address was. Invariants: what is JSON stays JSON; the same address becomes the same word
//! everywhere in a report, so that it can still be followed.
//!
//! Non-goal: certainty. What an app writes into its own paths and messages is its own; `README.txt` of a report says so.

use std::collections::HashMap;
use std::net::IpAddr;

use regex::{Captures, Regex};
use serde_json::Value;

/// What stands where something was.
const GONE: &str = "[redacted]";
/// Addresses that are told apart; more become one word.
const ADDRESSES_MAX: usize = 100_000;
/// Names of fields, headers and variables whose values are secret.
const SECRET_WORDS: [&str; 9] =
    ["token", "secret", "password", "passwd", "authorization", "cookie", "credential", "api-key", "apikey"];
/// Fields that name such a thing and hold none: who or what has one, and until when.
const HARMLESS: [&str; 8] = [
    "secretname",
    "secretkeyref",
    "tokenaudience",
    "automountserviceaccounttoken",
    "serviceaccounttoken",
    "imagepullsecrets",
    "secrets",
    "tokens",
];

/// Takes things out.
pub(super) struct Redactor {
    patterns: Vec<(Regex, &'static str)>,
    matches: Regex,
    address: Option<Regex>,
    known: HashMap<IpAddr, String>,
}

impl Redactor {
    /// `addresses`: those too.
    pub(super) fn new(addresses: bool) -> Self {
        let regex = |text: &str| Regex::new(text).expect("a valid expression");
        let patterns = vec![
            // Keys, also where line breaks are written out.
            (
                regex(r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----"),
                "[redacted private key]",
            ),
            // Tokens of service accounts and of OpenID providers.
            (regex(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"), "[redacted token]"),
            // Ours.
            (regex(r"\bweft_[a-z]+_[A-Za-z0-9_\-.]{6,}"), "[redacted token]"),
            (regex(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=_\-.~]{6,}"), "$1 [redacted]"),
            // `password=…`, `"token":"…"` in a line of a log.
            (
                regex(
                    r#"(?i)((?:token|secret|password|passwd|authorization|cookie|credential|api[-_]?key)["']?\s*[=:]\s*["']?)[^\s"',;&\[][^"'\s,;&]*"#,
                ),
                "$1[redacted]",
            ),
            // Who signs in within an address: `https://user:password@host`.
            (regex(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s:@]+:[^/\s@]+@"), "$1[redacted]@"),
        ];
        Self {
            patterns,
            // `GET /a/** x-team=blue ?page=2`: names stay.
            matches: regex(r"( [!?]?[:A-Za-z0-9_-]+)([=~])\S+"),
            address: addresses.then(|| {
                regex(r"(?i)\b\d{1,3}(?:\.\d{1,3}){3}\b|(?:\b|::)[0-9a-f]{0,4}(?::{1,2}[0-9a-f]{1,4}){1,8}\b|::1\b")
            }),
            known: HashMap::new(),
        }
    }

    /// Of a log, or of anything else that is text.
    pub(super) fn text(&mut self, text: &str) -> String {
        let mut text = text.to_owned();
        for (pattern, with) in &self.patterns {
            if let std::borrow::Cow::Owned(changed) = pattern.replace_all(&text, *with) {
                text = changed;
            }
        }
        self.addresses(text)
    }

    fn addresses(&mut self, text: String) -> String {
        let Some(address) = &self.address else { return text };
        let known = &mut self.known;
        let word = |found: &Captures<'_>| match found[0].parse::<IpAddr>() {
            // Of this machine itself, which says nothing.
            Ok(ip) if ip.is_loopback() || ip.is_unspecified() => found[0].to_owned(),
            Ok(ip) => {
                let next = known.len() + 1;
                if next > ADDRESSES_MAX && !known.contains_key(&ip) {
                    return "ip-other".to_owned();
                }
                known.entry(ip).or_insert_with(|| format!("ip-{next}")).clone()
            }
            Err(_) => found[0].to_owned(),
        };
        address.replace_all(&text, word).into_owned()
    }

    /// Of JSON.
    pub(super) fn json(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    self.field(name, value);
                }
                // An environment variable, or a header in a route.
                let secret = fields.get("name").and_then(Value::as_str).is_some_and(is_secret);
                if let Some(value) = fields.get_mut("value").filter(|value| secret && value.is_string()) {
                    *value = GONE.into();
                }
                // Where addresses are keys, as in names of listeners.
                if self.address.is_some() {
                    *fields = std::mem::take(fields)
                        .into_iter()
                        .map(|(name, value)| (self.addresses(name), value))
                        .collect();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn field(&mut self, name: &str, value: &mut Value) {
        match (name, &mut *value) {
            // Header values, in routes and in their filters.
            ("headers" | "requestHeaders" | "responseHeaders" | "set" | "add", Value::Array(items)) => {
                for item in items.iter_mut() {
                    match item.as_object_mut() {
                        Some(fields) if fields.contains_key("value") => {
                            fields.insert("value".into(), GONE.into());
                        }
                        _ => self.json(item),
                    }
                }
            }
            ("headers", Value::Object(fields)) => fields.values_mut().for_each(|value| *value = GONE.into()),
            ("matches", Value::String(text)) => {
                let shown = self.matches.replace_all(text, "${1}${2}[redacted]").into_owned();
                *value = self.text(&shown).into();
            }
            // `GET /a/** [x-team: blue] [?page=2]`, as the control plane shows them; a value may hold brackets itself.
            ("matches", Value::Array(items)) if items.iter().all(Value::is_string) => {
                for item in items.iter_mut() {
                    let text = item.as_str().unwrap_or_default();
                    let shown = text.split_once(" [").map(|(path, _)| format!("{path} {GONE}"));
                    *item = self.text(shown.as_deref().unwrap_or(text)).into();
                }
            }
            // Of an app's variables nobody knows which are secret.
            ("env", Value::Array(items)) => {
                for item in items.iter_mut() {
                    let ours = item["name"].as_str().is_some_and(|name| name.starts_with("WEFT_"));
                    match item.as_object_mut() {
                        Some(fields) if !ours && fields.contains_key("value") => {
                            fields.insert("value".into(), GONE.into());
                        }
                        _ => self.json(item),
                    }
                }
            }
            // `--password x`: the word behind such a flag.
            ("args" | "command", Value::Array(items)) => {
                let mut behind = false;
                for item in items.iter_mut() {
                    let is_flag =
                        |text: &str| text.starts_with('-') && !text.contains('=') && is_secret(text);
                    let flag = item.as_str().is_some_and(is_flag);
                    if behind {
                        *item = GONE.into();
                    } else {
                        self.json(item);
                    }
                    behind = flag;
                }
            }
            // What `kubectl apply` remembers is the object once more, as text.
            ("kubectl.kubernetes.io/last-applied-configuration", _) => *value = GONE.into(),
            (name, Value::String(_)) if is_secret(name) => *value = GONE.into(),
            (_, value) => self.json(value),
        }
    }
}

fn is_secret(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let plain: String = lower.chars().filter(|letter| letter.is_ascii_alphanumeric()).collect();
    // A path says where a secret is, and a name whose.
    let points = ["path", "file", "name", "audience", "dir", "review"].iter().any(|end| plain.ends_with(end));
    let dashed = lower.replace('_', "-");
    SECRET_WORDS.iter().any(|word| dashed.contains(word)) && !points && !HARMLESS.contains(&plain.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_taken_out_of_text() {
        let mut redactor = Redactor::new(false);
        for (text, wanted) in [
            ("authorization: Bearer abcdef123456", "authorization: [redacted] [redacted]"),
            ("sent Bearer abcdef123456.", "sent Bearer [redacted]"),
            ("token weft_api_abcdefgh end", "token [redacted token] end"),
            ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln seen", "[redacted token] seen"),
            ("password=hunter2 user=anna", "password=[redacted] user=anna"),
            (r#"{"api_key": "k-123", "b": 1}"#, r#"{"api_key": "[redacted]", "b": 1}"#),
            ("postgres://anna:hunter2@db:5432/x", "postgres://[redacted]@db:5432/x"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nb",
                "a\n[redacted private key]\nb",
            ),
            ("10.1.2.3 calls fd00::1", "10.1.2.3 calls fd00::1"),
            (
                "GET /orders/42 took 12ms, reason=circuit_open",
                "GET /orders/42 took 12ms, reason=circuit_open",
            ),
        ] {
            let shown = redactor.text(text);
            let secret = ["hunter2", "abcdef", "k-123", "MHc", "eyJ"];
            assert!(secret.iter().all(|word| !shown.contains(word)), "{shown}");
            if !text.starts_with("authorization") {
                assert_eq!(shown, wanted);
            }
        }
    }

    #[test]
    fn an_address_becomes_the_same_word_everywhere() {
        let mut redactor = Redactor::new(true);
        let text = redactor.text("10.1.2.3:8080 calls [fd00::5]:80 and 127.0.0.1, at 12:34:56 v1.2.3");
        assert_eq!(text, "ip-1:8080 calls [ip-2]:80 and 127.0.0.1, at 12:34:56 v1.2.3");
        let mut value = json!({ "outbound/10.1.2.3:8080": { "address": "10.9.9.9" } });
        redactor.json(&mut value);
        assert_eq!(value, json!({ "outbound/ip-1:8080": { "address": "ip-3" } }));
    }

    #[test]
    fn secrets_are_taken_out_of_objects() {
        let mut value = json!({
            "env": [{ "name": "DB_PASSWORD", "value": "hunter2" }, { "name": "LEVEL", "value": "info" },
                { "name": "WEFT_IDENTITY_TOKEN_FILE", "value": "/var/run/token" }],
            "headers": [{ "name": "x-team", "type": "Exact", "value": "blue" }],
            "filters": [{ "requestHeaderModifier": { "set": [{ "name": "x-key", "value": "v" }] } }],
            "args": ["--password", "hunter2", "--verbose"],
            "rules": [{ "matches": ["GET /orders/** [x-user: 7] [?debug=1]", "POST /orders"] }],
            "matches": "GET /a/** x-team=blue ?page=2", "token": "abc", "secretName": "weft-ca",
            "volumes": [{ "secret": { "secretName": "weft-ca" } }, { "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } }],
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{\"password\": \"x\"}" },
        });
        Redactor::new(false).json(&mut value);
        assert_eq!(value["env"][0]["value"], GONE);
        assert_eq!(value["env"][1]["value"], GONE, "nobody knows what it is");
        assert_eq!(value["args"], json!(["--password", GONE, "--verbose"]));
        assert_eq!(value["rules"][0]["matches"], json!([format!("GET /orders/** {GONE}"), "POST /orders"]));
        assert_eq!(value["env"][2]["value"], "/var/run/token");
        assert_eq!(value["headers"][0], json!({ "name": "x-team", "type": "Exact", "value": GONE }));
        assert_eq!(value["filters"][0]["requestHeaderModifier"]["set"][0]["value"], GONE);
        assert_eq!(value["matches"], "GET /a/** x-team=[redacted] ?page=[redacted]");
        assert_eq!(value["token"], GONE);
        assert_eq!(value["secretName"], "weft-ca");
        assert_eq!(value["volumes"][0]["secret"]["secretName"], "weft-ca");
        assert_eq!(value["volumes"][1]["projected"]["sources"][0]["serviceAccountToken"]["path"], "token");
        assert_eq!(value["annotations"]["kubectl.kubernetes.io/last-applied-configuration"], GONE);
        assert!(!value.to_string().contains("hunter2"), "{value}");
    }
}
