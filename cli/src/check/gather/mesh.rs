//! What is asked of the control plane's API.

use serde::Deserialize;

use super::super::facts::{Authority, Fact, Injection, Mesh, Sidecars};
use super::super::judge::mesh::OWN;
use crate::api::{Api, Error, query};
use crate::kubernetes::{Trouble, chain};
use crate::proxies;

/// Kinds whose conditions are looked at; Services are always accepted, and many.
const KINDS: [&str; 5] = ["HTTPRoute", "GRPCRoute", "AccessPolicy", "CircuitBreaker", "TrafficPolicy"];

/// A control plane that cannot be asked anything.
pub(super) fn unknown(trouble: &Trouble) -> Mesh {
    Mesh {
        at: String::new(),
        version: Err(trouble.clone()),
        authority: Err(trouble.clone()),
        problems: Err(trouble.clone()),
        objects: Err(trouble.clone()),
        sidecars: Some(Err(trouble.clone())),
        injection: Some(Err(trouble.clone())),
    }
}

pub(super) async fn ask_all(api: &Api, proxy: bool) -> Mesh {
    let version = version(api).await;
    // All further questions would wait for nothing, each for as long.
    if let Err(trouble) = &version {
        return Mesh { at: api.base().to_owned(), ..unknown(trouble) };
    }
    let of_proxies = async { if proxy { Some(tokio::join!(sidecars(api), injection(api))) } else { None } };
    let (authority, problems, objects, of_proxies) =
        tokio::join!(authority(api), problems(api), objects(api), of_proxies);
    let (sidecars, injection) = of_proxies.unzip();
    Mesh { at: api.base().to_owned(), version, authority, problems, objects, sidecars, injection }
}

fn trouble(error: Error) -> Trouble {
    match &error {
        Error::Refused { status, detail, .. } => {
            let words = || detail.clone().unwrap_or_else(|| status.to_string());
            match status.as_u16() {
                404 => Trouble::Missing,
                401 | 403 => Trouble::Forbidden(words()),
                _ => Trouble::Refused(words()),
            }
        }
        // Its own words are for people who have no `weft check` before them.
        Error::Unreachable { url, source } => {
            Trouble::Unreachable(format!("nobody answers at {url}: {source}"))
        }
        error => Trouble::Unreachable(chain(error)),
    }
}

async fn version(api: &Api) -> Fact<String> {
    #[derive(Deserialize)]
    struct Overview {
        version: String,
    }
    let overview: Overview = api.json("/api/overview").await.map_err(trouble)?;
    Ok(overview.version)
}

/// `GET /api/ca`.
#[derive(Deserialize)]
struct Ca {
    at: i64,
    kept: bool,
    #[serde(default)]
    brought: bool,
    roots: Vec<Shown>,
    issuer: Shown,
    own: Shown,
    #[serde(default)]
    rotation: Option<Progress>,
}

#[derive(Deserialize)]
struct Shown {
    subject: String,
    not_after: i64,
}

#[derive(Deserialize)]
struct Progress {
    text: String,
}

async fn authority(api: &Api) -> Fact<Option<Authority>> {
    match api.json::<Ca>("/api/ca").await.map_err(trouble) {
        Ok(ca) => Ok(Some(described(ca))),
        Err(Trouble::Missing) => Ok(None),
        Err(trouble) => Err(trouble),
    }
}

fn described(ca: Ca) -> Authority {
    // A root that is on its way out may end; the one that issues stands first.
    let root = ca.roots.into_iter().next().map(|root| (format!("the root {}", root.subject), root.not_after));
    let issuer = (format!("the issuer {}", ca.issuer.subject), ca.issuer.not_after);
    let mut certificates: Vec<(String, i64)> = root.into_iter().collect();
    if certificates.iter().all(|(_, until)| *until != issuer.1) || ca.brought {
        certificates.push(issuer);
    }
    certificates.push((OWN.to_owned(), ca.own.not_after));
    Authority { at: ca.at, kept: ca.kept, certificates, rotation: ca.rotation.map(|progress| progress.text) }
}

async fn problems(api: &Api) -> Fact<Vec<String>> {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Problem>,
    }
    #[derive(Deserialize)]
    struct Problem {
        file: Option<String>,
        line: Option<u64>,
        object: Option<String>,
        field: Option<String>,
        message: String,
    }
    let Errors { errors } = api.json("/api/config/errors").await.map_err(trouble)?;
    let words = |problem: Problem| {
        let file = problem.file.filter(|file| !file.is_empty());
        let place = match (file, problem.line) {
            (Some(file), Some(line)) => Some(format!("{file}:{line}")),
            (file, _) => file,
        };
        let parts = [place, problem.object, problem.field, Some(problem.message)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(": ")
    };
    Ok(errors.into_iter().map(words).collect())
}

/// `GET /api/objects`.
#[derive(Deserialize)]
struct Objects {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    #[serde(default)]
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct Condition {
    r#type: String,
    status: String,
    #[serde(default)]
    message: String,
}

async fn objects(api: &Api) -> Fact<Vec<String>> {
    let mut wrong = Vec::new();
    for kind in KINDS {
        let path = format!("/api/objects{}", query(&[("kind", Some(kind))]));
        let Objects { objects } = api.json(&path).await.map_err(trouble)?;
        wrong.extend(objects.iter().filter_map(complaint));
    }
    Ok(wrong)
}

/// What is not as it should be, `Programmed` aside: sidecars have checks of their own.
fn complaint(object: &Object) -> Option<String> {
    let bad = object.conditions.iter().find(|condition| match condition.r#type.as_str() {
        "Accepted" | "ResolvedRefs" => condition.status == "False",
        "Conflicted" => condition.status == "True",
        _ => false,
    })?;
    let namespace = object.namespace.as_deref().map(|name| format!("{name}/")).unwrap_or_default();
    let Condition { r#type, message, .. } = bad;
    let state = if r#type == "Conflicted" { "conflicted" } else { "not" };
    let word = if r#type == "Conflicted" { String::new() } else { format!(" {}", r#type) };
    Some(format!("{} {namespace}{}: {state}{word}: {message}", object.kind, object.name))
}

async fn sidecars(api: &Api) -> Fact<Sidecars> {
    let (known, silent) = proxies::ask_everywhere(api).await.map_err(trouble)?;
    Ok(Sidecars { at: known.at, all: known.proxies, silent })
}

/// `GET /api/injection`.
#[derive(Deserialize)]
struct Census {
    /// An older control plane does not say, and looks.
    #[serde(default = "looks")]
    taken: bool,
    injected: usize,
    uninjected: usize,
    pods: Vec<Counted>,
}

#[derive(Deserialize)]
struct Counted {
    namespace: String,
    pod: String,
    sidecar: Option<String>,
}

const fn looks() -> bool {
    true
}

async fn injection(api: &Api) -> Fact<Injection> {
    let Census { taken, injected, uninjected, pods } = api.json("/api/injection").await.map_err(trouble)?;
    let missed = pods.into_iter().filter(|pod| pod.sidecar.is_none());
    let missed: Vec<String> = missed.map(|pod| format!("{}/{}", pod.namespace, pod.pod)).collect();
    let unlisted = uninjected.saturating_sub(missed.len());
    Ok(Injection { taken, injected, missed, unlisted })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_told_of_if_a_condition_is_bad() {
        let object = |conditions| -> Object {
            serde_json::from_value(
                json!({ "kind": "HTTPRoute", "namespace": "shop", "name": "a", "conditions": conditions }),
            )
            .expect("an object")
        };
        let good = json!([{ "type": "Accepted", "status": "True" }, { "type": "Conflicted", "status": "False" },
            { "type": "Programmed", "status": "False" }]);
        assert_eq!(complaint(&object(good)), None);
        let refs = json!([{ "type": "ResolvedRefs", "status": "False", "message": "no Service b" }]);
        assert_eq!(
            complaint(&object(refs)).as_deref(),
            Some("HTTPRoute shop/a: not ResolvedRefs: no Service b")
        );
        let lost = json!([{ "type": "Conflicted", "status": "True", "message": "b is older" }]);
        assert_eq!(complaint(&object(lost)).as_deref(), Some("HTTPRoute shop/a: conflicted: b is older"));
    }

    #[test]
    fn a_root_that_signs_itself_is_told_of_once() {
        let ca = serde_json::from_value(json!({
            "at": 10, "kept": true, "roots": [{ "subject": "CN=a", "not_after": 20 }, { "subject": "CN=old", "not_after": 11 }],
            "issuer": { "subject": "CN=a", "not_after": 20 }, "own": { "subject": "x", "not_after": 15 },
        }));
        let known = described(ca.expect("the API's JSON"));
        assert_eq!(known.certificates, [("the root CN=a".into(), 20), (OWN.into(), 15)]);
    }
}
