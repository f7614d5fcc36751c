//! Bearer tokens and roles.

use weft_control_plane::auth::Role;

use super::client::until;
use super::{client, start, stop, token, write_tokens};

#[tokio::test]
async fn on_loopback_without_a_way_to_sign_in_everybody_may_ask() {
    let app = start(&[]).await.unwrap();
    assert_eq!(client(&app).get("/api/graph").await.status, 200);
    assert_eq!(client(&app).with("Host", "evil.example").get("/api/graph").await.status, 421);
    stop(app).await;
}

#[tokio::test]
async fn other_addresses_need_a_way_to_sign_in_or_the_word_insecure() {
    let everywhere = "--api-listen=0.0.0.0:0";
    let error = start(&[everywhere]).await.err().expect("refused").to_string();
    assert!(error.contains("--api-tokens") && error.contains("--insecure"), "{error}");

    let app = start(&[everywhere, "--insecure"]).await.unwrap();
    assert_eq!(client(&app).get("/api/graph").await.status, 200);
    stop(app).await;

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let alice = token("alice", Role::Viewer, 1);
    write_tokens(&file, &[&alice]);
    let tokens = format!("--api-tokens={}", file.display());
    // Whoever configures a way to sign in gets it, whatever else is allowed.
    for flags in [&[everywhere, &tokens][..], &[everywhere, &tokens, "--insecure"], &[&tokens]] {
        let app = start(flags).await.unwrap();
        assert_eq!(client(&app).get("/api/graph").await.status, 401, "{flags:?}");
        assert_eq!(client(&app).bearing(&alice.token).get("/api/graph").await.status, 200, "{flags:?}");
        stop(app).await;
    }
}

#[tokio::test]
async fn roles_decide_and_a_refusal_says_how_to_get_in() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let (alice, bob) = (token("alice", Role::Viewer, 1), token("bob", Role::Operator, 2));
    write_tokens(&file, &[&alice, &bob]);
    let app = start(&[&format!("--api-tokens={}", file.display())]).await.unwrap();
    let client = client(&app);

    // What shows how to sign in, and what platforms ask, is open.
    for path in ["/", "/live", "/ready", "/api/openapi.json"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    for path in [
        "/api/graph",
        "/api/graph/events",
        "/api/circuits/events",
        "/metrics",
        "/api/proxies",
        "/api/nothing",
    ] {
        let answer = client.get(path).await;
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer realm=\"weft\""));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert!(answer.detail().contains("WEFT_TOKEN"), "{}", answer.detail());
    }
    for (header, why) in [("Bearer weft_api_wrong", "not known here"), ("Basic YTpi", "not `Bearer`")] {
        let answer = client.with("Authorization", header).get("/api/graph").await;
        assert_eq!(answer.status, 401);
        assert!(answer.detail().contains(why), "{}", answer.detail());
    }

    for one in [&alice, &bob] {
        let client = client.bearing(&one.token);
        assert_eq!(client.get("/api/graph").await.status, 200);
        assert_eq!(client.get("/metrics").await.status, 200);
        let yaml = client.with("Content-Type", "application/yaml");
        assert_eq!(yaml.send("POST", "/api/dry-run", "").await.status, 200, "changes nothing");
    }
    let answer = client.bearing(&alice.token).send("POST", "/api/graph", "").await;
    assert_eq!(answer.status, 403);
    assert_eq!(answer.detail(), "alice is viewer here, and this needs the role operator");
    assert_eq!(client.bearing(&bob.token).send("POST", "/api/graph", "").await.status, 405);

    let metrics = client.bearing(&alice.token).get("/metrics").await.body;
    assert!(metrics.contains("weft_api_refused_total{reason=\"unknown_token\"} 1"), "{metrics}");
    stop(app).await;
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_is_refused_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let (alice, bob) = (token("alice", Role::Viewer, 1), token("bob", Role::Operator, 2));
    write_tokens(&file, &[&alice]);
    let app = start(&[&format!("--api-tokens={}", file.display())]).await.unwrap();
    let status = async |token: &str| client(&app).bearing(token).get("/api/graph").await.status;
    assert_eq!((status(&alice.token).await, status(&bob.token).await), (200, 401));
    write_tokens(&file, &[&bob]);
    until(async || (status(&alice.token).await == 401).then_some(())).await;
    assert_eq!(status(&bob.token).await, 200);
    stop(app).await;
}

#[tokio::test]
async fn a_file_that_everybody_can_read_ends_the_start() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    write_tokens(&file, &[&token("alice", Role::Viewer, 1)]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = start(&[&format!("--api-tokens={}", file.display())]).await.err().expect("refused");
    assert!(format!("{error:#}").contains("chmod o-rwx"), "{error:#}");
}
