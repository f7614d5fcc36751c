use super::*;

fn condition(kind: &'static str, status: &'static str, reason: &'static str, message: &str) -> Condition {
    Condition { kind, status, reason, message: message.to_owned() }
}

fn accepted() -> Condition {
    condition("Accepted", "True", "Accepted", "")
}

fn programmed(status: &'static str, reason: &'static str, message: &str) -> Condition {
    condition("Programmed", status, reason, message)
}

fn wanted(attached: Vec<Condition>) -> Wanted {
    let programmed = programmed("True", "Programmed", "on 2 of 2 sidecars");
    Wanted { generation: Some(3), attached, conditions: vec![accepted(), programmed], counted: true }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn with_status(mut object: Value, status: Value) -> Value {
    object["status"] = status;
    object
}

fn http_route() -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": "orders" },
        "spec": { "parentRefs": [
            { "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge" },
            { "group": "", "kind": "Service", "name": "orders", "port": 8080 },
            { "group": "", "kind": "Service", "name": "nowhere", "sectionName": "web" },
        ]},
    })
}

fn theirs() -> Value {
    json!({
        "parentRef": { "name": "edge" },
        "controllerName": "example.org/gateway",
        "conditions": [{ "type": "Accepted", "status": "True", "unknownToUs": 1 }],
    })
}

#[test]
fn each_service_among_the_parents_gets_an_entry_and_other_controllers_keep_theirs() {
    let object = with_status(http_route(), json!({ "parents": [theirs()] }));
    let refused = condition("Accepted", "False", "NoMatchingParent", "there is no Service shop/nowhere");
    let status = route(&object, &wanted(vec![accepted(), refused]), at(0)).unwrap();
    let parents = status["parents"].as_array().unwrap();
    assert_eq!(parents.len(), 3);
    assert_eq!(parents[0], theirs());
    assert_eq!(parents[1]["parentRef"], object["spec"]["parentRefs"][1]);
    assert_eq!(parents[1]["controllerName"], CONTROLLER);
    let time = "2027-01-15T08:00:00Z";
    let of = |parent: usize, place: usize| parents[parent]["conditions"][place].clone();
    let programmed = json!({
        "type": "Programmed", "status": "True", "reason": "Programmed", "message": "on 2 of 2 sidecars",
        "lastTransitionTime": time, "observedGeneration": 3,
    });
    assert_eq!(
        of(1, 0),
        json!({
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": "",
            "lastTransitionTime": time, "observedGeneration": 3,
        })
    );
    assert_eq!((of(1, 1), of(2, 1)), (programmed.clone(), programmed));
    assert_eq!(
        (of(2, 0)["status"].clone(), of(2, 0)["reason"].clone()),
        ("False".into(), "NoMatchingParent".into())
    );
    let again = with_status(object, status);
    assert_eq!(
        route(
            &again,
            &wanted(vec![
                accepted(),
                condition("Accepted", "False", "NoMatchingParent", "there is no Service shop/nowhere")
            ]),
            at(9)
        ),
        None,
        "it says that already"
    );
}

#[test]
fn a_time_moves_only_when_the_status_does() {
    let said = wanted(vec![accepted(), accepted()]);
    let first = with_status(http_route(), route(&http_route(), &said, at(0)).unwrap());
    let mut changed = said;
    changed.conditions[1] = condition("Programmed", "False", "Pending", "on 1 of 2 sidecars");
    let status = route(&first, &changed, at(60)).unwrap();
    let times = |status: &Value| -> Vec<String> {
        let conditions = status["parents"][0]["conditions"].as_array().unwrap();
        conditions.iter().map(|one| one["lastTransitionTime"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(times(&status), ["2027-01-15T08:00:00Z", "2027-01-15T08:01:00Z"]);
    let mut message = changed.clone();
    message.conditions[1].message = "on 2 of 3 sidecars".to_owned();
    message.generation = Some(4);
    let later = route(&with_status(first, status), &message, at(120)).unwrap();
    assert_eq!(times(&later), ["2027-01-15T08:00:00Z", "2027-01-15T08:01:00Z"]);
    assert_eq!(later["parents"][0]["conditions"][0]["observedGeneration"], 4);
}

#[test]
fn a_route_that_is_not_ours_any_more_loses_our_entries_only() {
    let ours = json!({ "parentRef": { "name": "x" }, "controllerName": CONTROLLER, "conditions": [] });
    let object = with_status(http_route(), json!({ "parents": [theirs(), ours] }));
    let nothing = Wanted { generation: None, attached: Vec::new(), conditions: Vec::new(), counted: true };
    assert_eq!(route(&object, &nothing, at(0)), Some(json!({ "parents": [theirs()] })));
    let object = with_status(http_route(), json!({ "parents": [theirs()] }));
    assert_eq!(route(&object, &nothing, at(0)), None);
    assert_eq!(route(&http_route(), &nothing, at(0)), None, "a route that nobody spoke of");
}

#[test]
fn a_list_that_others_have_filled_is_not_overfilled() {
    let object = with_status(http_route(), json!({ "parents": vec![theirs(); 31] }));
    let status = route(&object, &wanted(vec![accepted(), accepted()]), at(0)).unwrap();
    assert_eq!(status["parents"].as_array().unwrap().len(), 32);
}

#[test]
fn a_policys_conditions_are_all_ours() {
    let object = json!({ "metadata": { "namespace": "shop" }, "spec": {} });
    let said = wanted(Vec::new());
    let status = policy(&object, &said, at(0)).unwrap();
    assert_eq!(status["conditions"].as_array().unwrap().len(), 2);
    let again = with_status(object, status);
    assert_eq!(policy(&again, &said, at(9)), None);
    let conflicted = Wanted {
        conditions: vec![accepted(), condition("Conflicted", "True", "Conflicted", &"é".repeat(5_000))],
        ..said
    };
    let status = policy(&again, &conflicted, at(9)).unwrap();
    assert_eq!(status["conditions"][0]["lastTransitionTime"], "2027-01-15T08:00:00Z");
    assert_eq!(status["conditions"][1]["message"].as_str().unwrap().chars().count(), MESSAGE_MAX + 1);
}

/// Who led before has counted 42 sidecars; of whoever leads now none is connected yet.
#[test]
fn how_many_run_it_stays_as_it_was_until_they_are_counted() {
    let before = Wanted {
        conditions: vec![accepted(), programmed("True", "Programmed", "on 42 of 42")],
        ..wanted(vec![])
    };
    let nobody = condition("Programmed", "Unknown", "NotAskedFor", "no connected sidecar asks for it");
    let accepted_no_more = condition("Accepted", "False", "Invalid", "");
    let now = Wanted {
        generation: Some(4),
        conditions: vec![accepted_no_more, nobody],
        counted: false,
        ..before.clone()
    };
    let object = json!({ "metadata": { "namespace": "shop" }, "spec": {} });
    let first = policy(&object, &now, at(0)).unwrap();
    assert_eq!(first["conditions"][1]["status"], "Unknown", "of whom nothing was said yet");
    let said = with_status(object.clone(), policy(&object, &before, at(0)).unwrap());
    let status = policy(&said, &now, at(9)).unwrap();
    assert_eq!(status["conditions"][0]["status"], "False", "the rest is news");
    assert_eq!(status["conditions"][1], said["status"]["conditions"][1], "also of which version it was said");
    let counted = Wanted { counted: true, ..now.clone() };
    assert_eq!(policy(&said, &counted, at(9)).unwrap()["conditions"][1]["status"], "Unknown");

    let route_before = Wanted { attached: vec![accepted()], ..before };
    let said = with_status(http_route(), route(&http_route(), &route_before, at(0)).unwrap());
    let status = route(&said, &Wanted { attached: vec![accepted()], ..now }, at(9)).unwrap();
    let programmed = |status: &Value| status["parents"][0]["conditions"][1].clone();
    assert_eq!(programmed(&status), programmed(&said["status"]));
}

#[test]
fn what_others_wrote_never_panics_it() {
    for status in [json!(null), json!({ "parents": 7 }), json!({ "parents": [7, null, {}] }), json!([])] {
        let object = with_status(http_route(), status);
        assert!(route(&object, &wanted(vec![accepted()]), at(0)).is_some());
    }
    assert_eq!(route(&json!(null), &wanted(vec![accepted()]), at(0)), None);
    assert!(policy(&json!(7), &wanted(Vec::new()), at(0)).is_some());
}
