//! Conversations as they were held with servers, told again through kube's own client.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use prometheus::Registry;
use serde_json::{Value, json};

use super::*;
use crate::resources::Object;
use crate::sources::kubernetes::catalog::What;

/// What the server answers, and with how many seconds in `Retry-After`.
struct Answer {
    status: u16,
    retry_after: Option<&'static str>,
    /// Whether the answer goes on, without a word.
    goes_on: bool,
    body: String,
}

fn ok(body: &Value) -> Answer {
    Answer { status: 200, retry_after: None, goes_on: false, body: body.to_string() }
}

fn refused(status: u16, retry_after: Option<&'static str>) -> Answer {
    let body = json!({ "kind": "Status", "code": status, "message": "not now" });
    Answer { status, retry_after, goes_on: false, body: body.to_string() }
}

/// A watch that says this, and ends.
fn watched(lines: &[Value]) -> Answer {
    let body = lines.iter().map(|line| format!("{line}\n")).collect();
    Answer { status: 200, retry_after: None, goes_on: false, body }
}

/// A watch that says nothing, and stays.
fn quiet() -> Answer {
    Answer { status: 200, retry_after: None, goes_on: true, body: String::new() }
}

fn service(name: &str, version: u32) -> Value {
    json!({ "metadata": { "name": name, "namespace": "shop", "resourceVersion": version.to_string() },
            "spec": { "ports": [{ "port": 80 }] } })
}

fn page(version: u32, more: &str, items: &[Value]) -> Answer {
    ok(&json!({ "metadata": { "resourceVersion": version.to_string(), "continue": more }, "items": items }))
}

/// A conversation with a server that gives these answers one after the other, and then none: what was asked, what was told.
async fn held(kind: Kind, answers: Vec<Answer>) -> (Vec<String>, Vec<String>) {
    let (answers, asked) = (Arc::new(Mutex::new(VecDeque::from(answers))), Arc::new(Mutex::new(Vec::new())));
    let (script, log) = (Arc::clone(&answers), Arc::clone(&asked));
    let service = tower::service_fn(move |request: Request<Body>| {
        log.lock().expect("no panic").push(request.uri().to_string());
        let answer = script.lock().expect("no panic").pop_front();
        async move {
            let Some(Answer { status, retry_after, goes_on, body }) = answer else {
                return std::future::pending().await;
            };
            let body = match goes_on {
                true => axum::body::Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()),
                false => body.into(),
            };
            let mut response = Response::new(body);
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static(seconds));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let client = kube::Client::new(service, "default");
    let (words, mut heard) = mpsc::channel(64);
    let metrics = Metrics::new(&Registry::new());
    let talk = tokio::spawn(Talk::new(client, kind, words, metrics).run());
    // Time is the test's, and passes at once when everybody waits.
    while !answers.lock().expect("no panic").is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    talk.abort();
    let mut told = Vec::new();
    while let Ok(word) = heard.try_recv() {
        told.push(shown(&word.what));
    }
    let asked = std::mem::take(&mut *asked.lock().expect("no panic"));
    (asked, told)
}

fn shown(what: &What) -> String {
    match what {
        What::Absent => "absent".into(),
        What::Recovered => "recovered".into(),
        What::Trouble { reason, .. } => format!("trouble: {reason}"),
        What::Changed(Delta { read, gone, listed }) => {
            let read = read.iter().map(|reading| match &reading.said {
                Said::Object(Content::Object(Object::Service(_)), _) => format!("+{}", reading.name.name),
                other => format!("{}: {other:?}", reading.name),
            });
            let gone = gone.iter().map(|name| format!("-{}", name.name));
            let all: Vec<String> = read.chain(gone).chain(listed.then(|| "listed".to_owned())).collect();
            all.join(" ")
        }
    }
}

const SERVICES: Kind = Kind::Object(Served::Service);

#[tokio::test(start_paused = true)]
async fn what_a_list_has_shown_before_it_broke_off_is_not_lost() {
    let (a, b, c) = (service("a", 1), service("b", 2), service("c", 3));
    let begun = Instant::now();
    let (asked, told) = held(
        SERVICES,
        vec![
            page(9, "more", &[a.clone(), b.clone()]),
            refused(429, Some("7")),
            page(9, "more", &[a, service("b", 8)]),
            page(9, "", &[c]),
        ],
    )
    .await;
    assert!(begun.elapsed() >= Duration::from_secs(7), "as long as the server wished");
    assert!(asked[1].contains("continue=more") && !asked[2].contains("continue"), "{asked:#?}");
    assert!(asked[4].contains("watch=true") && asked[4].contains("resourceVersion=9"), "{asked:#?}");
    let trouble = "trouble: the API server answered 429 Too Many Requests: not now";
    assert_eq!(told, ["+a +b", trouble, "recovered", "+b +c listed"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_it_ended_until_the_server_has_forgotten() {
    let changed = |kind: &str, object: Value| json!({ "type": kind, "object": object });
    let bookmark = changed("BOOKMARK", json!({ "metadata": { "resourceVersion": "7" } }));
    let gone =
        changed("ERROR", json!({ "kind": "Status", "code": 410, "message": "too old resource version" }));
    let (asked, told) = held(
        SERVICES,
        vec![
            page(1, "", &[service("a", 1), service("b", 1)]),
            watched(&[changed("MODIFIED", service("a", 5)), changed("ADDED", service("c", 6)), bookmark]),
            watched(&[changed("DELETED", service("b", 8)), gone]),
            page(9, "", &[service("a", 5), service("d", 9)]),
        ],
    )
    .await;
    for (at, version) in [(1, "1"), (2, "7"), (4, "9")] {
        assert!(asked[at].ends_with(&format!("resourceVersion={version}")), "{asked:#?}");
    }
    let told: Vec<&str> = told.iter().map(String::as_str).filter(|word| !word.contains("at once")).collect();
    assert_eq!(told, ["+a +b listed", "+a +c", "-b", "recovered", "+d -c listed"]);
}

#[tokio::test(start_paused = true)]
async fn watches_that_are_cut_off_at_once_are_trouble_until_one_stays() {
    let cut = || watched(&[]);
    let (asked, told) =
        held(SERVICES, vec![page(1, "", &[service("a", 1)]), cut(), cut(), cut(), quiet()]).await;
    let trouble = "trouble: the API server ended a watch at once";
    assert_eq!(told, ["+a listed", trouble, trouble, trouble, "recovered"], "{asked:#?}");
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_a_version_that_is_too_old_costs_no_more_waiting() {
    let list = || page(1, "", &[service("a", 1)]);
    let failures = (0..5).map(|_| refused(503, None));
    let (mut answers, begun) = (vec![list()], Instant::now());
    answers.extend(failures);
    let (_, told) = held(SERVICES, answers).await;
    let outage = begun.elapsed();
    assert_eq!(told.iter().filter(|word| word.starts_with("trouble")).count(), 5);

    let mut answers = vec![list()];
    answers.extend((0..5).map(|_| refused(503, None)).chain([refused(410, None), list()]));
    let (asked, told) = held(SERVICES, answers).await;
    assert!(begun.elapsed() < outage * 4, "the outage itself, and a moment");
    assert!(!told.iter().any(|word| word.contains("410")), "{told:?}");
    assert!(asked.last().is_some_and(|uri| uri.contains("watch=true")), "{asked:#?}");

    // Twice is trouble.
    let (_, told) =
        held(SERVICES, vec![list(), refused(410, None), list(), refused(410, None), list()]).await;
    assert!(told.iter().any(|word| word.contains("410")), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_looked_for_and_one_that_was_is_given_up_at_the_second_look() {
    let routes = Kind::Object(Served::GrpcRoute);
    let route =
        json!({ "metadata": { "name": "r", "namespace": "shop", "resourceVersion": "3" }, "spec": {} });
    let begun = Instant::now();
    let (asked, told) = held(
        routes,
        vec![
            refused(404, None),
            refused(404, None),
            page(3, "", &[route]),
            refused(404, None),
            refused(404, None),
            refused(404, None),
        ],
    )
    .await;
    assert!(begun.elapsed() > Duration::from_secs(30), "not too often");
    assert_eq!(asked.iter().filter(|uri| uri.contains("watch=true")).count(), 1, "{asked:#?}");
    let told: Vec<&str> =
        told.iter().map(|word| word.split_once(": ").map_or(&**word, |(name, _)| name)).collect();
    assert_eq!(told, ["absent", "", "absent", "", "shop/r", "absent", "-r"]);
}
