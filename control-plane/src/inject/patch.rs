//! Before and after as a JSON Patch (RFC 6902).
//!
//! Invariant: the patch of (before, after), applied to before, is after. Surprise: `json-patch` compares lists position by
//! position, so that a container put in front would rewrite every one behind it; lists of things with names (containers,
//! volumes, variables) are compared by name here first, and what was added is one `add`.

use std::collections::BTreeSet;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation};
use serde_json::Value;

/// What turns `before` into `after`.
#[must_use]
pub fn diff(before: &Value, after: &Value) -> Patch {
    let mut operations = Vec::new();
    walk(before, after, &PointerBuf::new(), &mut operations);
    Patch(operations)
}

fn walk(before: &Value, after: &Value, at: &PointerBuf, operations: &mut Vec<PatchOperation>) {
    match (before, after) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                let at = at.with_trailing_token(key.as_str());
                match old.get(key) {
                    Some(old) => walk(old, value, &at, operations),
                    None => operations.push(add(at, value)),
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                operations.push(remove(at.with_trailing_token(key.as_str())));
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            if let (Some(old_names), Some(new_names)) = (names(old), names(new)) {
                by_name((old, &old_names), (new, &new_names), at, operations);
            } else {
                below(before, after, at, operations);
            }
        }
        _ => below(before, after, at, operations),
    }
}

/// Position by position.
fn below(before: &Value, after: &Value, at: &PointerBuf, operations: &mut Vec<PatchOperation>) {
    for mut operation in json_patch::diff(before, after).0 {
        let path = match &mut operation {
            PatchOperation::Add(operation) => &mut operation.path,
            PatchOperation::Remove(operation) => &mut operation.path,
            PatchOperation::Replace(operation) => &mut operation.path,
            PatchOperation::Test(operation) => &mut operation.path,
            PatchOperation::Move(operation) => &mut operation.path,
            PatchOperation::Copy(operation) => &mut operation.path,
        };
        *path = at.concat(path);
        operations.push(operation);
    }
}

/// The names in a list, if all its items have one and no two the same.
fn names(list: &[Value]) -> Option<Vec<&str>> {
    let names: Vec<&str> = list.iter().map(|item| item.get("name")?.as_str()).collect::<Option<_>>()?;
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    (unique.len() == names.len()).then_some(names)
}

fn by_name(
    (old, old_names): (&[Value], &[&str]),
    (new, new_names): (&[Value], &[&str]),
    at: &PointerBuf,
    operations: &mut Vec<PatchOperation>,
) {
    let wanted: BTreeSet<&str> = new_names.iter().copied().collect();
    let known: BTreeSet<&str> = old_names.iter().copied().collect();
    let kept = old_names.iter().filter(|name| wanted.contains(**name));
    if !kept.eq(new_names.iter().filter(|name| known.contains(**name))) {
        // In another order: whole.
        let whole = json_patch::ReplaceOperation { path: at.clone(), value: Value::Array(new.to_vec()) };
        return operations.push(PatchOperation::Replace(whole));
    }
    // From the end, so that positions before it stay what they are.
    for (index, _) in old_names.iter().enumerate().rev().filter(|(_, name)| !wanted.contains(**name)) {
        operations.push(remove(at.with_trailing_token(index)));
    }
    // From the start, so that each stands where it will stand in the end.
    for (index, (item, name)) in new.iter().zip(new_names).enumerate() {
        let at = at.with_trailing_token(index);
        match old_names.iter().position(|old| old == name) {
            Some(position) => walk(&old[position], item, &at, operations),
            None => operations.push(add(at, item)),
        }
    }
}

fn add(path: PointerBuf, value: &Value) -> PatchOperation {
    PatchOperation::Add(AddOperation { path, value: value.clone() })
}

fn remove(path: PointerBuf) -> PatchOperation {
    PatchOperation::Remove(RemoveOperation { path })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_in_front_is_one_operation() {
        let before = json!({ "containers": [{ "name": "a", "image": "1" }, { "name": "b", "image": "1" }] });
        let after = json!({ "containers": [{ "name": "x" }, { "name": "a", "image": "2" }, { "name": "b", "image": "1" }] });
        let operations = serde_json::to_value(diff(&before, &after)).expect("JSON");
        assert_eq!(
            operations,
            json!([
                { "op": "add", "path": "/containers/0", "value": { "name": "x" } },
                { "op": "replace", "path": "/containers/1/image", "value": "2" },
            ])
        );
    }

    fn named() -> impl Strategy<Value = Value> {
        let item = ("[a-d]", 0..3_u8).prop_map(|(name, value)| json!({ "name": name, "value": value }));
        proptest::collection::vec(prop_oneof![4 => item, 1 => Just(json!(1))], 0..5).prop_map(Value::Array)
    }

    proptest! {
        #[test]
        fn before_and_its_patch_are_after(
            (a, b, c, d) in (named(), named(), named(), named()),
            key in "[a-z/~]{1,3}",
        ) {
            let before = json!({ "list": a, key.clone(): { "inner": b }, "gone": 1 });
            let after = json!({ "list": c, key: { "inner": d }, "come": [1] });
            let mut patched = before.clone();
            json_patch::patch(&mut patched, &diff(&before, &after)).expect("applies");
            prop_assert_eq!(patched, after);
        }
    }
}
