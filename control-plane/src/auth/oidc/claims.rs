//! From the claims of an ID token to a name and a role.
//!
//! Pure. A claim is named as it is (`groups`), or by a path where it lies within others (`realm_access.roles`).

use serde_json::{Map, Value};

use super::Settings;
use crate::auth::Role;

/// Longest name.
const NAME_MAX: usize = 100;

/// Which claim means what.
#[derive(Debug)]
pub(super) struct Mapping {
    name: Option<String>,
    groups: String,
    operators: Vec<String>,
    viewers: Vec<String>,
}

impl Mapping {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            name: settings.name_claim.clone(),
            groups: settings.groups_claim.clone(),
            operators: settings.operators.clone(),
            viewers: settings.viewers.clone(),
        }
    }

    /// Name and role; the name alone of whom there is no role for.
    pub(super) fn read(&self, claims: &Map<String, Value>) -> Result<(String, Role), String> {
        let name = self.name(claims);
        let groups = match find(claims, &self.groups) {
            Some(Value::String(group)) => vec![group.as_str()],
            Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let is_in = |wanted: &[String]| wanted.iter().any(|one| one == "*" || groups.contains(&one.as_str()));
        match () {
            () if is_in(&self.operators) => Ok((name, Role::Operator)),
            () if is_in(&self.viewers) => Ok((name, Role::Viewer)),
            () => Err(name),
        }
    }

    fn name(&self, claims: &Map<String, Value>) -> String {
        let usual = ["preferred_username", "email", "sub"];
        let wanted = self.name.as_deref().into_iter().chain(usual);
        let mut found =
            wanted.filter_map(|claim| find(claims, claim)?.as_str()).filter(|name| !name.is_empty());
        let name = found.next().unwrap_or("somebody");
        name.chars().filter(|one| !one.is_control()).take(NAME_MAX).collect()
    }
}

fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mapping(groups: &str, operators: &[&str], viewers: &[&str]) -> Mapping {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Mapping { name: None, groups: groups.into(), operators: owned(operators), viewers: owned(viewers) }
    }

    fn read(mapping: &Mapping, claims: Value) -> Result<(String, Role), String> {
        mapping.read(claims.as_object().expect("an object"))
    }

    #[test]
    fn groups_decide_and_who_is_in_none_has_no_role() {
        let plain = mapping("groups", &["sre"], &["dev", "ops"]);
        let alice = |groups: Value| read(&plain, json!({"sub": "1", "email": "alice@x", "groups": groups}));
        assert_eq!(alice(json!(["dev"])), Ok(("alice@x".into(), Role::Viewer)));
        assert_eq!(alice(json!(["dev", "sre"])), Ok(("alice@x".into(), Role::Operator)), "the greater one");
        assert_eq!(
            alice(json!("sre")),
            Ok(("alice@x".into(), Role::Operator)),
            "one may come without a list"
        );
        for none in [json!([]), json!(["sre2"]), json!([["sre"]]), json!({"sre": true}), Value::Null] {
            assert_eq!(alice(none.clone()), Err("alice@x".into()), "{none}");
        }
        let everybody = mapping("groups", &["sre"], &["*"]);
        assert_eq!(read(&everybody, json!({"sub": "1"})), Ok(("1".into(), Role::Viewer)));
    }

    #[test]
    fn a_claim_may_lie_within_others_and_a_name_is_printable() {
        let keycloak = mapping("realm_access.roles", &["mesh-admin"], &[]);
        let claims = json!({"preferred_username": "al\u{7}ice", "realm_access": {"roles": ["mesh-admin"]}});
        assert_eq!(read(&keycloak, claims), Ok(("alice".into(), Role::Operator)));
        let auth0 = mapping("https://example.com/groups", &["a"], &[]);
        assert!(read(&auth0, json!({"sub": "1", "https://example.com/groups": ["a"]})).is_ok());
        let named = Mapping { name: Some("nick".into()), ..mapping("groups", &["*"], &[]) };
        assert_eq!(read(&named, json!({"nick": "al", "email": "x"})).expect("a role").0, "al");
    }
}
