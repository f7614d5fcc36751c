//! How values look: one pattern for each kind, which the chart's schema has and `weft install` checks.
//!
//! In: a value and what the schema says of it. Out: nothing, or which value cannot be, why, and what can. Invariant: what the schema
//! refuses is refused here; what stands in a command line has no character, and no end, that YAML takes for something else.

use anyhow::bail;
use regex::Regex;
use serde_json::Value;

/// A name of Kubernetes, or nothing.
pub(super) const NAME: &str = r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*)?$";
/// The longest of those.
pub(super) const NAME_MAX: usize = 253;
/// A trust domain.
pub(super) const DOMAIN: &str = r"^[a-z0-9._-]+$";
/// What the control plane logs.
pub(super) const LOG: &str = r"^[A-Za-z0-9_:=,./-]*[A-Za-z0-9_=,./-]$";
/// What sidecars log, as [`weft_wire::annotation::LOG_LEVEL`] takes it.
pub(super) const FILTER: &str = r"^(([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace)(,([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace))*)?$";
/// Where images are.
pub(super) const REGISTRY: &str = r"^([A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?)?$";
/// An image's tag.
pub(super) const TAG: &str = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$";
/// `https://host:port`, or nothing.
pub(super) const ORIGIN: &str = r"^(https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[1-9][0-9]{0,4})?)?$";
/// The same with a path.
pub(super) const ISSUER: &str = r"^(https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[1-9][0-9]{0,4})?(/([A-Za-z0-9._~:/-]*[A-Za-z0-9._~/-])?)?)?$";
/// A client, or nothing.
pub(super) const CLIENT: &str = r"^([A-Za-z0-9._:/@-]*[A-Za-z0-9._/@-])?$";
/// Groups, or nothing.
pub(super) const GROUPS: &str =
    r"^([A-Za-z0-9._:/@*-]*[A-Za-z0-9._/@*-]([ ,][A-Za-z0-9._:/@*-]*[A-Za-z0-9._/@*-])*)?$";
/// A claim.
pub(super) const CLAIM: &str = r"^[A-Za-z0-9_.:/-]*[A-Za-z0-9_./-]$";
/// Scopes.
pub(super) const SCOPES: &str = r"^[A-Za-z0-9_.:/-]*[A-Za-z0-9_./-](,[A-Za-z0-9_.:/-]*[A-Za-z0-9_./-])*$";
macro_rules! cpu {
    () => {
        r"0*[1-9][0-9]{0,3}(\.[0-9]{1,9})?|0+\.[0-9]{0,8}[1-9][0-9]{0,8}|[1-9][0-9]{0,6}m"
    };
}
macro_rules! memory {
    () => {
        r"(0*[1-9][0-9]{0,17}(\.[0-9]{1,9})?|0+\.[0-9]{0,8}[1-9][0-9]{0,8})(k|M|G|T|P|Ki|Mi|Gi|Ti)?"
    };
}
/// CPUs, more than none and fewer than ten thousand.
pub(super) const CPU: &str = concat!("^(", cpu!(), ")$");
/// The same, or nothing.
pub(super) const CPU_IF_ANY: &str = concat!("^(", cpu!(), ")?$");
/// Bytes, more than none.
pub(super) const MEMORY: &str = concat!("^", memory!(), "$");
/// The same, or nothing.
pub(super) const MEMORY_IF_ANY: &str = concat!("^(", memory!(), ")?$");

/// What CPUs are, for people.
const CPUS: &str = "CPUs such as 100m, 0.5 or 2: more than 0, less than 10000";
/// What memory is, for people.
const BYTES: &str =
    "memory such as 64Mi, 1Gi or 1000000: more than 0; k, M, G, T, P, Ki, Mi, Gi and Ti are known";

/// Of each pattern: the characters that it may have beside letters and digits, and what it wants, for people.
const WORDS: [(&str, &str, &str); 16] = [
    (NAME, ".-", "a name of Kubernetes: small letters, digits, - and ., with a letter or digit at both ends"),
    (DOMAIN, "._-", "a trust domain: small letters, digits and ._-"),
    (LOG, "_:=,./-", "a log filter such as info,weft_control_plane::xds=debug"),
    (FILTER, "_:=,", "off, error, warn, info, debug or trace, or target=level,…"),
    (REGISTRY, "._:/-", "a registry and path such as registry.example.org/mesh, without a slash at the end"),
    (TAG, "_.-", "a tag such as 1.2.3"),
    (
        ORIGIN,
        ".:/-",
        "like https://weft.example.com: http:// or https://, a host, perhaps a port, and no path",
    ),
    (
        ISSUER,
        "._~:/-",
        "like https://login.example.com/realms/main: http:// or https://, a host, perhaps a port and a path",
    ),
    (CLIENT, "._:/@-", "the id of a client, which does not end in :"),
    (
        GROUPS,
        " ._:/@*,-",
        "groups such as sre,site reliability: one comma or one space between two words, and no : at their ends",
    ),
    (CLAIM, "_.:/-", "the name of a claim such as groups or realm_access.roles"),
    (SCOPES, "_.:/,-", "scopes such as profile,email,groups"),
    (CPU, "._+", CPUS),
    (CPU_IF_ANY, "._+", CPUS),
    (MEMORY, "._+", BYTES),
    (MEMORY_IF_ANY, "._+", BYTES),
];

/// Whether every value looks as the schema says.
pub(super) fn fits(value: &Value, schema: &Value, path: &str) -> anyhow::Result<()> {
    if let Some(fields) = schema["properties"].as_object() {
        return fields
            .iter()
            .try_for_each(|(field, schema)| fits(&value[field], schema, &below(path, field)));
    }
    if let Some(items) = value.as_array().filter(|_| schema["items"]["properties"].is_object()) {
        let mut items = items.iter().enumerate();
        return items.try_for_each(|(index, one)| fits(one, &schema["items"], &format!("{path}[{index}]")));
    }
    let Some(text) = value.as_str() else { return Ok(()) };
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        let words: Vec<&str> =
            words.iter().filter_map(Value::as_str).filter(|word| !word.is_empty()).collect();
        bail!("{path}: {text:?} is not one of {}", words.join(", "));
    }
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| text.chars().count() as u64 > *most) {
        bail!("{path}: {text:?} is longer than {most} characters");
    }
    let Some(pattern) = schema["pattern"].as_str() else { return Ok(()) };
    if Regex::new(pattern)?.is_match(text) {
        return Ok(());
    }
    let unworded = ("", "", pattern);
    let (_, more, wanted) = WORDS.iter().find(|(one, ..)| *one == pattern).unwrap_or(&unworded);
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !more.contains(*c)) {
        Some(wrong) => bail!("{path}: {text:?} has {wrong:?}, which is not possible: it should be {wanted}"),
        None => bail!("{path}: {text:?} is not {wanted}"),
    }
}

/// Whether there are maps where maps must be.
pub(super) fn is_shaped(value: &Value, schema: &Value, path: &str) -> anyhow::Result<()> {
    let Some(fields) = schema["properties"].as_object() else { return Ok(()) };
    let Some(values) = value.as_object() else {
        let names: Vec<String> = fields.keys().map(|field| below(path, field)).collect();
        let path = if path.is_empty() { "the values" } else { path };
        bail!("{path}: {value} is not possible, because it is a map: {}", names.join(", "));
    };
    let known = values.iter().filter_map(|(field, value)| Some((field, value, fields.get(field)?)));
    known.into_iter().try_for_each(|(field, value, schema)| is_shaped(value, schema, &below(path, field)))
}

fn below(path: &str, field: &str) -> String {
    let dot = if path.is_empty() { "" } else { "." };
    format!("{path}{dot}{field}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::values::schema;

    fn patterns(schema: &Value, found: &mut Vec<String>) {
        found.extend(schema["pattern"].as_str().map(str::to_owned));
        match schema {
            Value::Object(fields) => fields.values().for_each(|one| patterns(one, found)),
            Value::Array(items) => items.iter().for_each(|one| patterns(one, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_has_words() {
        let mut found = Vec::new();
        patterns(&schema(), &mut found);
        assert!(found.len() > 15, "{found:?}");
        for pattern in found {
            assert!(WORDS.iter().any(|(one, ..)| *one == pattern), "{pattern}");
        }
    }

    #[test]
    fn patterns_take_what_they_should() {
        for (pattern, good, bad) in [
            (NAME, &["", "a", "a-b.c0"][..], &["-a", "a-", "a..b", "A", "a_b", "a.-b"][..]),
            (LOG, &["info", "info,weft_control_plane::xds=debug"], &["", "info:", "info x"]),
            (
                FILTER,
                &["", "debug", "info,weft_proxy=debug", "weft_proxy::http=trace"],
                &["loud", "a=b", "info,", "info x"],
            ),
            (
                ORIGIN,
                &["", "https://a", "http://a.b:80"],
                &["a", "https://a/", "https://a/b", "https://a:b:c", "https://a:", "https://:80", "ftp://a"],
            ),
            (
                ISSUER,
                &["", "https://a", "https://a/", "https://a:1/realms/main", "http://a/v2.0"],
                &["https://a:b", "https://a b", "https://a/x:"],
            ),
            (
                GROUPS,
                &["", "*", "sre,platform", "site reliability", "system:authenticated"],
                &["a:", "a: b", "a,,b", " a", "a,", "a#b"],
            ),
            (CLAIM, &["groups", "realm_access.roles", "https://example.com/groups"], &["", "a b", "a:"]),
            (SCOPES, &["openid", "profile,email,groups"], &["", "a,", "a b"]),
            (
                CPU,
                &["1", "100m", "0.5", "2.5", "9999", "0010"],
                &["", "0", "0m", "1.2.3", "64MB", "10000", "1.", "-1", "1k"],
            ),
            (CPU_IF_ANY, &["", "2"], &["0", "lots"]),
            (
                MEMORY,
                &["64Mi", "1.5Gi", "134217728", "64M"],
                &["", "64MB", "0", "0Mi", "100m", "1.2.3", "-1"],
            ),
            (MEMORY_IF_ANY, &["", "16Mi"], &["0", "64mb"]),
        ] {
            let regex = Regex::new(pattern).expect("a pattern");
            for one in good {
                assert!(regex.is_match(one), "{pattern}: {one:?}");
            }
            for one in bad {
                assert!(!regex.is_match(one), "{pattern}: {one:?}");
            }
        }
    }
}
