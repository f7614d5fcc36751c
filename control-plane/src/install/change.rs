//! From one installation to the next: what may follow what, what differs, what goes.
//!
//! In: versions; an object as it should be and as a cluster has it. Out: whether that step can be carried, and every field that
//! differs. Pure; `weft upgrade` and `weft uninstall` ask the cluster.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::values::Values;
use super::{NAME, NAMESPACE, Object, crd, everything};
use crate::inject::keeper;

/// `major.minor.patch`, without what may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let core = text.split(['-', '+']).next().unwrap_or_default();
        let mut parts = core.split('.').map(|part| part.parse().ok());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(Some(major)), Some(Some(minor)), Some(Some(patch)), None) => Ok(Self(major, minor, patch)),
            _ => Err(format!("{text:?} is not a version such as 0.1.0")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Whether a control plane of one version may follow one of another.
///
/// Sidecars stay as they are until their pods are restarted, so the new one serves those of the old one. Tested is one minor
/// version upwards, and patches in either direction.
///
/// # Errors
/// When not: why, and what to do instead.
pub fn step(from: Version, to: Version) -> Result<(), String> {
    let (older, newer) = ((from.0, from.1), (to.0, to.1));
    if newer < older {
        return Err(format!(
            "{from} is installed and this is {to}: an older control plane may not understand what the newer one has kept. Use \
             weft {from}, or uninstall first"
        ));
    }
    if from.0 != to.0 || to.1 - from.1 > 1 {
        return Err(format!(
            "{from} is installed and this is {to}: sidecars of {from} are served by {}.{} and {}.{} only. Upgrade in steps, and \
             restart the pods in between",
            from.0,
            from.1,
            from.0,
            from.1 + 1
        ));
    }
    Ok(())
}

/// What was wished of the installation that is there, for the next one: all of it but the tag that came with its version.
#[must_use]
pub fn remembered(mut wishes: Value, version: &str) -> Value {
    if let Some(Value::Object(image)) = wishes.get_mut("image")
        && image.get("tag").and_then(Value::as_str) == Some(version)
    {
        image.remove("tag");
    }
    wishes
}

/// Every field of `ours` that is another in `live`, as `field: live → ours`. What a cluster has beside is its own.
#[must_use]
pub fn differences(ours: &Value, live: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(ours, live, String::new(), &mut found);
    found
}

fn compare(ours: &Value, live: &Value, at: String, found: &mut Vec<String>) {
    match (ours, live) {
        (Value::Object(ours), Value::Object(live)) => {
            for (field, value) in ours {
                let dot = if at.is_empty() { "" } else { "." };
                compare(value, live.get(field).unwrap_or(&Value::Null), format!("{at}{dot}{field}"), found);
            }
        }
        (Value::Array(ours), Value::Array(live)) if ours.len() == live.len() => {
            for (index, (ours, live)) in ours.iter().zip(live).enumerate() {
                compare(ours, live, format!("{at}[{index}]"), found);
            }
        }
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => {}
        (ours, live) if ours == live => {}
        // An API server leaves out what is empty.
        (Value::Array(items), Value::Null) if items.is_empty() => {}
        (Value::Object(fields), Value::Null) if fields.is_empty() => {}
        (Value::String(text), Value::Null) if text.is_empty() => {}
        (ours, live) => found.push(format!("{at}: {} → {}", short(live), short(ours))),
    }
}

fn short(value: &Value) -> String {
    const CHARS: usize = 60;
    let text = match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= CHARS { text } else { text.chars().take(CHARS).chain(['…']).collect() }
}

/// An object by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// `group/version`, or `v1`.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

impl From<&Object> for Named {
    fn from(object: &Object) -> Self {
        let word = |value: &serde_yaml::Value| value.as_str().map(str::to_owned);
        let metadata = &object.value["metadata"];
        Self {
            api_version: word(&object.value["apiVersion"]).unwrap_or_default(),
            kind: word(&object.value["kind"]).unwrap_or_default(),
            namespace: metadata.get("namespace").and_then(word),
            name: word(&metadata["name"]).unwrap_or_default(),
        }
    }
}

/// What installations of before had: API version, kind and name.
const FORMER: [(&str, &str, &str); 1] = [("v1", "Service", "weft-control-plane-leader")];

/// Whether sidecars of before may still need an object that is no longer wished: it goes when their pods have been restarted.
#[must_use]
pub fn serves_old_sidecars(named: &Named) -> bool {
    FORMER.iter().any(|(_, kind, name)| named.kind == *kind && named.name == *name)
}

/// Everything that may be there of an installation, whatever was wished, in the order in which it can go: nobody calls what
/// is gone already, and what holds others goes last. ConfigMaps in other namespaces are for the cluster to tell.
#[must_use]
pub fn removal() -> Vec<Named> {
    let own = |api_version: &str, kind: &str, name: &str| Named {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: Some(NAMESPACE.to_owned()),
        name: name.to_owned(),
    };
    let mut all: Vec<Named> = everything(&Values::default()).iter().map(Named::from).collect();
    all.extend(
        [crate::cluster::secret::AUTHORITY, crate::cluster::secret::TOKENS, keeper::SECRET]
            .map(|name| own("v1", "Secret", name)),
    );
    all.push(own("coordination.k8s.io/v1", "Lease", NAME));
    all.extend(FORMER.map(|(api_version, kind, name)| own(api_version, kind, name)));
    all.sort_by_key(|one| match one.kind.as_str() {
        "MutatingWebhookConfiguration" => 0,
        "Deployment" => 1,
        "CustomResourceDefinition" => 3,
        "Namespace" => 4,
        _ => 2,
    });
    all
}

/// Whether an object is one that holds what people wrote: it takes all policies with it.
#[must_use]
pub fn holds_policies(named: &Named) -> bool {
    named.kind == "CustomResourceDefinition" && named.name.ends_with(&format!(".{}", crd::GROUP))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect(text)
    }

    #[test]
    fn one_minor_version_upwards_is_a_step() {
        for (from, to, carried) in [
            ("0.1.0", "0.1.0", true),
            ("0.1.0", "0.1.7", true),
            ("0.1.7", "0.1.0", true),
            ("0.1.3", "0.2.0", true),
            ("0.1.0", "0.3.0", false),
            ("0.2.0", "0.1.9", false),
            ("0.9.0", "1.0.0", false),
        ] {
            assert_eq!(step(version(from), version(to)).is_ok(), carried, "{from} to {to}");
        }
        assert_eq!(version("0.2.0-rc.1+x"), version("0.2.0"));
        for text in ["", "1", "1.2", "1.2.x", "1.2.3.4", "v1.2.3"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn wishes_are_kept_and_the_version_is_not() {
        let wishes = json!({ "ha": true, "image": { "registry": "a", "tag": "0.1.0" } });
        assert_eq!(remembered(wishes.clone(), "0.1.0"), json!({ "ha": true, "image": { "registry": "a" } }));
        assert_eq!(remembered(wishes.clone(), "0.2.0"), wishes, "a tag of their own");
    }

    #[test]
    fn only_what_is_ours_is_compared() {
        let live =
            json!({ "a": 1, "b": { "c": "x", "defaulted": true }, "list": [{ "d": 1.0 }], "status": {} });
        assert_eq!(differences(&json!({ "a": 1, "b": { "c": "x" }, "list": [{ "d": 1 }] }), &live), [""; 0]);
        assert_eq!(differences(&json!({ "b": { "c": "y" } }), &live), ["b.c: x → y"]);
        assert_eq!(differences(&json!({ "list": [{ "d": 1 }, {}] }), &live).len(), 1);
        assert_eq!(
            differences(&json!({ "new": "z", "none": [], "nothing": {}, "empty": "" }), &live),
            ["new: - → z"]
        );
    }

    #[test]
    fn everything_goes_and_in_order() {
        let all = removal();
        let at = |text: &str| {
            all.iter().position(|one| one.to_string().starts_with(text)).unwrap_or_else(|| panic!("{text}"))
        };
        assert!(
            at("MutatingWebhookConfiguration weft-injector")
                < at("Deployment weft-system/weft-control-plane")
        );
        assert!(at("Deployment") < at("ClusterRole weft-control-plane"));
        assert!(at("Lease weft-system/weft-control-plane") < at("CustomResourceDefinition"));
        assert_eq!(all.last().map(ToString::to_string).as_deref(), Some("Namespace weft-system"));
        assert!(at("Service weft-system/weft-control-plane-leader") < at("CustomResourceDefinition"));
        assert_eq!(all.iter().filter(|one| serves_old_sidecars(one)).count(), 1);
        assert!(at("PodDisruptionBudget") > 0 && at("Secret weft-system/weft-ca") > 0);
        assert_eq!(all.iter().filter(|one| holds_policies(one)).count(), 3);
    }
}
