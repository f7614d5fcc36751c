//! The audit log: what is in it, who sees it, and what happens without it.

use std::path::Path;

use serde_json::Value;
use weft_control_plane::app::App;
use weft_control_plane::auth::Role;

use super::{client, start, stop, token, write_tokens};

async fn plane(directory: &Path, log: &Path) -> App {
    plane_with(directory, log, "--control-tls-listen=off").await
}

async fn plane_with(directory: &Path, log: &Path, more: &str) -> App {
    let file = directory.join("tokens.yaml");
    write_tokens(&file, &[&token("alice", Role::Viewer, 1), &token("bob", Role::Operator, 2)]);
    let tokens = format!("--api-tokens={}", file.display());
    start(&[&tokens, &format!("--audit-log={}", log.display()), more]).await.unwrap()
}

#[tokio::test]
async fn whoever_changes_something_or_tries_to_is_written_down() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.log");
    let app = plane(directory.path(), &log).await;
    let client = client(&app);
    let (alice, bob) = (token("alice", Role::Viewer, 1), token("bob", Role::Operator, 2));
    let (alice, bob) = (client.bearing(&alice.token), client.bearing(&bob.token));

    alice.get("/api/graph").await;
    alice.with("Content-Type", "application/yaml").send("POST", "/api/dry-run", "").await;
    client.send("POST", "/api/graph", "").await;
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "reading is no deed, and a stranger nobody");

    assert_eq!(alice.send("DELETE", "/api/graph?all=1", "").await.status, 403);
    assert_eq!(bob.with("X-Forwarded-For", "10.9.8.7").send("PUT", "/api/graph", "").await.status, 405);
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
            (text("audit"), text("who"), text("role"), text("how"), text("action"), line["status"].as_u64())
        })
        .collect();
    let line = |audit: &str, who: &str, role: &str, action: &str, status| {
        (audit.to_owned(), who.to_owned(), role.to_owned(), "token".to_owned(), action.to_owned(), status)
    };
    assert_eq!(
        told,
        [
            line("requested", "alice", "viewer", "DELETE /api/graph?all=1", None),
            line("done", "alice", "viewer", "DELETE /api/graph?all=1", Some(403)),
            line("requested", "bob", "operator", "PUT /api/graph", None),
            line("done", "bob", "operator", "PUT /api/graph", Some(405)),
        ]
    );
    assert!(lines[3]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(lines[3]["forwarded_for"], "10.9.8.7");

    assert_eq!(alice.get("/api/audit").await.status, 403);
    let lately = bob.get("/api/audit").await.json();
    assert_eq!(lately["log"], log.display().to_string());
    let entries: Vec<_> = lately["entries"].as_array().unwrap().iter().map(|one| &one["who"]).collect();
    assert_eq!(entries, ["bob", "alice"], "the newest first");
    stop(app).await;
}

#[tokio::test]
async fn what_cannot_be_written_down_is_not_done() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.log");
    let app = plane(directory.path(), &log).await;
    let bob = client(&app).bearing(&token("bob", Role::Operator, 2).token);
    std::fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let answer = bob.send("PUT", "/api/graph", "").await;
    assert_eq!(answer.status, 503);
    assert!(
        answer.detail().contains("audit log") && answer.detail().contains("No space"),
        "{}",
        answer.detail()
    );
    // Whoever comes to make room may come in, and look.
    assert_eq!(bob.send("POST", "/api/session", "").await.status, 200);
    assert_eq!(bob.get("/api/graph").await.status, 200);
    assert!(bob.get("/metrics").await.body.contains("weft_audit_errors_total 2"));
    std::fs::remove_file(&log).unwrap();
    assert_eq!(bob.send("PUT", "/api/graph", "").await.status, 405, "as soon as there is room");
    stop(app).await;
}

#[tokio::test]
async fn who_lets_somebody_into_the_mesh_is_written_down_and_for_whom() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("audit.log");
    let app = plane_with(directory.path(), &log, "--control-tls-listen=127.0.0.1:0").await;
    let json = client(&app).with("Content-Type", "application/json");
    let (alice, bob) = (token("alice", Role::Viewer, 1), token("bob", Role::Operator, 2));
    let wanted = r#"{"name": "orders", "namespace": "shop"}"#;
    assert_eq!(json.send("POST", "/api/tokens", wanted).await.status, 401);
    assert_eq!(json.bearing(&alice.token).send("POST", "/api/tokens", wanted).await.status, 403);
    let made = json.bearing(&bob.token).send("POST", "/api/tokens", wanted).await;
    assert_eq!(made.status, 201, "{made:?}");
    let entry = json.bearing(&bob.token).get("/api/audit").await.json()["entries"][0].clone();
    assert_eq!((&entry["who"], &entry["action"]), (&"bob".into(), &"POST /api/tokens".into()));
    let detail = entry["detail"].as_str().expect("what came of it");
    assert!(detail.contains("for shop/orders") && detail.contains("/ns/shop/sa/orders"), "{detail}");
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains(made.json()["token"].as_str().unwrap()), "the secret is in no log");
    stop(app).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_ends_the_start() {
    let error = start(&["--audit-log=/nowhere/audit.log"]).await.err().expect("refused");
    assert!(format!("{error:#}").contains("--audit-log"), "{error:#}");
}
