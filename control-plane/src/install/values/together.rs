//! What cannot be wished together: one table, by which `weft install` refuses and from which the chart's refusals are made.
//!
//! Invariant: a row's words name every value that somebody has to look at. Surprise: words may have values in them, as `{path}`.

use regex::Regex;
use serde_json::Value;

#[cfg(test)]
use crate::auth::options::{GROUPS_CLAIM, SCOPES};
use crate::inject::exceeds;

/// Something that a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum If {
    /// Not empty, or on.
    Set(&'static str),
    /// Empty, or off.
    Unset(&'static str),
    /// Of a pattern.
    Like(&'static str, &'static str),
    /// Of another pattern.
    Unlike(&'static str, &'static str),
    /// A quantity that is more than another.
    Above(&'static str, &'static str),
}

/// Values that do not go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All of it holds.
    pub when: Vec<If>,
    /// Then this is said, with values as `{path}`.
    pub words: String,
}

const ISSUER: &str = "api.oidc.issuer";
const PUBLIC_URL: &str = "api.publicUrl";
/// What never leaves the machine.
const LOOPBACK: &str = r"^(?i:http://(([a-z0-9.-]+\.)?localhost|127\.0\.0\.1)(:[0-9]+)?)$";
/// Pattern of the claim that everybody asks for; a test compares.
const GROUPS_CLAIM_ONLY: &str = "^groups$";
/// Pattern of the scopes that everybody asks for; a test compares.
const SCOPES_ONLY: &str = "^profile,email$";

/// Every row.
#[must_use]
pub fn rules() -> Vec<Rule> {
    use If::{Above, Like, Set, Unlike, Unset};
    let mut rules = Vec::new();
    let mut rule = |when: &[If], words: String| rules.push(Rule { when: when.to_vec(), words });
    rule(
        &[Set("api.expose"), Unset("api.tokensSecret"), Unset(ISSUER)],
        "api.expose: whoever reaches the API would be an operator: name a Secret with tokens (api.tokensSecret) or an OpenID \
         provider (api.oidc.issuer) first; see docs/install.md"
            .to_owned(),
    );
    rule(
        &[Set("ha"), Set("controlPlane.history.persistentVolumeClaim")],
        "controlPlane.history.persistentVolumeClaim: not with ha: each of the replicas has a history of its own, and one claim is not \
         for several"
            .to_owned(),
    );
    for wished in [
        Set("api.oidc.clientId"),
        Set("api.oidc.clientSecret"),
        Set("api.oidc.operatorGroups"),
        Set("api.oidc.viewerGroups"),
        Unlike("api.oidc.groupsClaim", GROUPS_CLAIM_ONLY),
        Unlike("api.oidc.scopes", SCOPES_ONLY),
    ] {
        let (Set(path) | Unset(path) | Like(path, _) | Unlike(path, _) | Above(path, _)) = wished;
        rule(
            &[Unset(ISSUER), wished],
            format!(
                "{path}: '{{{path}}}' counts only with api.oidc.issuer, the provider's address, which is missing: say it too, or take \
                 this away"
            ),
        );
    }
    rule(
        &[Set(ISSUER), Unset("api.oidc.clientId")],
        "api.oidc.clientId: is missing: the name under which the dashboard is registered as a client at {api.oidc.issuer}".to_owned(),
    );
    rule(
        &[Set(ISSUER), Unset(PUBLIC_URL)],
        "api.publicUrl: is missing: {api.oidc.issuer} must be told where to send browsers back to, which is the address by which \
         people reach the dashboard, such as https://weft.example.com"
            .to_owned(),
    );
    rule(
        &[Set(ISSUER), Unset("api.oidc.operatorGroups"), Unset("api.oidc.viewerGroups")],
        "api.oidc.operatorGroups: is missing, and so is api.oidc.viewerGroups: nobody could sign in. Name the groups of one of both; \
         '*' as viewerGroups is everybody whom the provider signs in"
            .to_owned(),
    );
    rule(
        &[Set(ISSUER), Like(PUBLIC_URL, "^http://"), Unlike(PUBLIC_URL, LOOPBACK)],
        "api.publicUrl: {api.publicUrl} is plain HTTP, by which a session could be taken over: let something in front of the API speak \
         TLS, and write https:// (http:// only with localhost)"
            .to_owned(),
    );
    for (request, limit) in [
        ("sidecar.resources.requests.cpu", "sidecar.resources.limits.cpu"),
        ("sidecar.resources.requests.memory", "sidecar.resources.limits.memory"),
    ] {
        rule(
            &[Set(limit), Above(request, limit)],
            format!(
                "{limit}: {{{limit}}} is less than {request}, {{{request}}}, which no pod can have: raise the limit, or say a lower \
                 request too"
            ),
        );
    }
    rules
}

/// What of `values` does not go together.
pub(super) fn refused(values: &Value) -> Option<String> {
    let found = rules().into_iter().find(|rule| rule.when.iter().all(|one| one.holds(values)));
    found.map(|rule| {
        let (words, paths) = rule.parts();
        let mut words = words.into_iter();
        let first = words.next().unwrap_or_default();
        words.zip(paths).fold(first, |said, (words, path)| said + &text(values, &path) + &words)
    })
}

impl Rule {
    /// The words before, between and behind values, and the values' paths.
    #[must_use]
    pub fn parts(&self) -> (Vec<String>, Vec<String>) {
        let mut pieces = self.words.split('{');
        let mut words = vec![pieces.next().unwrap_or_default().to_owned()];
        let mut paths = Vec::new();
        for piece in pieces {
            let (path, behind) = piece.split_once('}').unwrap_or(("", piece));
            paths.push(path.to_owned());
            words.push(behind.to_owned());
        }
        (words, paths)
    }
}

impl If {
    fn holds(self, values: &Value) -> bool {
        let is_set = |path| !matches!(text(values, path).as_str(), "" | "false");
        let is_like =
            |path, pattern| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(&text(values, path)));
        match self {
            Self::Set(path) => is_set(path),
            Self::Unset(path) => !is_set(path),
            Self::Like(path, pattern) => is_like(path, pattern),
            Self::Unlike(path, pattern) => !is_like(path, pattern),
            Self::Above(more, less) => exceeds(&text(values, more), &text(values, less)),
        }
    }
}

fn text(values: &Value, path: &str) -> String {
    match path.split('.').fold(values, |value, field| &value[field]) {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_as_silence_is_the_default() {
        assert_eq!(GROUPS_CLAIM_ONLY, format!("^{GROUPS_CLAIM}$"));
        assert_eq!(SCOPES_ONLY, format!("^{SCOPES}$"));
    }

    #[test]
    fn words_with_percent_or_braces_would_be_values() {
        for rule in rules() {
            assert!(!rule.words.contains('%'), "{}", rule.words);
            let (words, paths) = rule.parts();
            assert_eq!(words.len(), paths.len() + 1);
            assert!(words.iter().all(|word| !word.contains('}')), "{}", rule.words);
        }
    }
}
