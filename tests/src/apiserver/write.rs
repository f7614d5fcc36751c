//! Requests that change something, and those that only ask by way of a POST.

use http::StatusCode;
use serde_json::{Value, json};

use super::resource::Path;
use super::serve::{Form, Query, selector};
use super::store::{Name, Part, Refusal, no_such_resource, not_found, refusal, value};
use super::{Shared, lock};

/// What `dryRun` of anything else would need is a second store.
const NO_DRY_RUN: &str = "this server has no dryRun but of pods that are created";

pub(super) fn perform(
    shared: &Shared,
    verb: &str,
    at: &Path,
    query: &Query,
    content: &str,
    body: &[u8],
) -> Result<(StatusCode, Value), Refusal> {
    if query.contains_key("dryRun") {
        if (verb, at.group.as_str(), at.plural.as_str()) != ("create", "", "pods") {
            return Err(refusal(501, "NotImplemented", NO_DRY_RUN));
        }
        let mut pod = json(body)?;
        if let Some(change) = lock(&shared.admission).as_ref() {
            change(&mut pod);
        }
        return Ok((StatusCode::CREATED, pod));
    }
    if let ("create", Some(answer)) = (verb, review(shared, at, body)) {
        return Ok((StatusCode::CREATED, answer?));
    }
    let form = Form::of(shared, at, false)?;
    let shown = |stored: &super::store::Stored| value(&form.object(stored));
    let name: Name = (at.namespace.clone().unwrap_or_default(), at.name.clone().unwrap_or_default());
    let part = match at.subresource.as_deref() {
        None => Part::Main,
        Some("status") => Part::Status,
        Some(other) => return Err(refusal(404, "NotFound", format!("there is no {other}"))),
    };
    let (group, plural) = (at.group.as_str(), at.plural.as_str());
    let mut store = lock(&shared.store);
    match verb {
        "create" => {
            let stored = store.create(group, plural, &name.0, Part::Main, json(body)?)?;
            Ok((StatusCode::CREATED, shown(&stored)))
        }
        "update" => {
            let stored = store.replace(group, plural, &name, part, json(body)?)?;
            Ok((StatusCode::OK, shown(&stored)))
        }
        "patch" => {
            let table = store.table(group, plural).ok_or_else(no_such_resource)?;
            let known = table.get(&name).map(|stored| value(&stored.text));
            let is_new = known.is_none();
            let patched = patch(content, known, body)?.ok_or_else(|| not_found(plural, &name.1))?;
            if is_new {
                let mut object = patched;
                object["metadata"]["name"] = json!(name.1);
                let stored = store.create(group, plural, &name.0, Part::Main, object)?;
                return Ok((StatusCode::CREATED, shown(&stored)));
            }
            let stored = store.replace(group, plural, &name, part, patched)?;
            Ok((StatusCode::OK, shown(&stored)))
        }
        "delete" => {
            let options = if body.is_empty() { Value::Null } else { json(body)? };
            let known = store.table(group, plural).and_then(|table| table.get(&name)).map(|s| value(&s.text));
            let known = known.ok_or_else(|| not_found(plural, &name.1))?;
            for field in ["uid", "resourceVersion"] {
                let wanted = &options["preconditions"][field];
                if !wanted.is_null() && *wanted != known["metadata"][field] {
                    return Err(refusal(
                        409,
                        "Conflict",
                        format!("the precondition on {field} does not hold"),
                    ));
                }
            }
            let stored = store.delete(group, plural, &name)?;
            Ok((StatusCode::OK, shown(&stored)))
        }
        "deletecollection" => {
            let table = store.table(group, plural).ok_or_else(no_such_resource)?;
            let selector = selector(query);
            let meant = table.select(at.namespace.as_deref(), &selector).map(|stored| stored.name.clone());
            // Collected: what is looked through is changed.
            let meant: Vec<_> = meant.collect();
            for name in meant {
                store.delete(group, plural, &name)?;
            }
            Ok((StatusCode::OK, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" })))
        }
        _ => Err(refusal(405, "MethodNotAllowed", "the server does not allow this method")),
    }
}

/// The object after a patch; `None` where there is nothing to patch.
fn patch(content: &str, known: Option<Value>, body: &[u8]) -> Result<Option<Value>, Refusal> {
    let invalid = |error: &dyn std::fmt::Display| refusal(422, "Invalid", error.to_string());
    match content.split(';').next().unwrap_or_default() {
        "application/merge-patch+json" => {
            let Some(mut object) = known else { return Ok(None) };
            json_patch::merge(&mut object, &json(body)?);
            Ok(Some(object))
        }
        "application/json-patch+json" => {
            let Some(mut object) = known else { return Ok(None) };
            let operations: json_patch::Patch =
                serde_json::from_slice(body).map_err(|error| invalid(&error))?;
            json_patch::patch(&mut object, &operations).map_err(|error| invalid(&error))?;
            Ok(Some(object))
        }
        "application/apply-patch+yaml" => {
            let wanted: Value = serde_yaml::from_slice(body).map_err(|error| invalid(&error))?;
            let mut object = known.unwrap_or_else(|| json!({}));
            json_patch::merge(&mut object, &wanted);
            Ok(Some(object))
        }
        other => {
            Err(refusal(415, "UnsupportedMediaType", format!("{other:?} is none of merge, json and apply")))
        }
    }
}

/// Questions in the form of objects.
fn review(shared: &Shared, at: &Path, body: &[u8]) -> Option<Result<Value, Refusal>> {
    let answer = |answer: fn(&Shared, &Value) -> Value| {
        json(body).map(|mut object| {
            object["status"] = answer(shared, &object);
            object
        })
    };
    match (at.group.as_str(), at.plural.as_str()) {
        ("authentication.k8s.io", "tokenreviews") => Some(answer(token)),
        ("authorization.k8s.io", "selfsubjectaccessreviews" | "subjectaccessreviews") => {
            Some(answer(allowed))
        }
        _ => None,
    }
}

fn allowed(shared: &Shared, review: &Value) -> Value {
    let wanted = &review["spec"]["resourceAttributes"];
    let denied = lock(&shared.denied);
    let is_meant = |(verb, resource): &(String, String)| {
        wanted["verb"] == verb.as_str() && wanted["resource"] == resource.as_str()
    };
    json!({ "allowed": !denied.iter().any(is_meant) })
}

fn token(shared: &Shared, review: &Value) -> Value {
    let tokens = lock(&shared.tokens);
    let account = review["spec"]["token"].as_str().and_then(|token| tokens.get(token));
    let wanted: Vec<&str> =
        review["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match account {
        Some(account) => {
            let known = account
                .audiences
                .iter()
                .filter(|known| wanted.is_empty() || wanted.contains(&known.as_str()));
            let audiences: Vec<&String> = known.collect();
            if audiences.is_empty() {
                return json!({ "authenticated": false, "error": "the token was made for somebody else" });
            }
            let mut groups = vec!["system:authenticated".to_owned()];
            let named =
                account.user.strip_prefix("system:serviceaccount:").and_then(|name| name.split_once(':'));
            groups.extend(named.map(|(namespace, _)| format!("system:serviceaccounts:{namespace}")));
            let user = json!({ "username": account.user, "groups": groups });
            json!({ "authenticated": true, "user": user, "audiences": audiences })
        }
        None => json!({ "authenticated": false, "error": "invalid bearer token" }),
    }
}

fn json(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| refusal(400, "BadRequest", error.to_string()))
}
