//! What a browser is told, and which pages it may come from.

use weft_control_plane::auth::Role;

use super::{client, start, stop, token, write_tokens};

#[tokio::test]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let app = start(&[]).await.unwrap();
    let client = client(&app);
    for path in ["/", "/api/graph", "/api/nothing", "/api/session", "/metrics", "/live"] {
        let answer = client.get(path).await;
        let policy = answer.header("content-security-policy").expect("a policy");
        for part in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}: {name}");
        }
        if path.starts_with("/api/") || path == "/metrics" {
            assert_eq!(answer.header("cache-control"), Some("no-store"), "{path}");
        }
        assert_eq!(answer.header("access-control-allow-origin"), None, "{path}");
    }
    stop(app).await;
}

#[tokio::test]
async fn other_pages_change_nothing_even_where_nobody_signs_in() {
    let app = start(&["--api-public-url=https://weft.example.com/"]).await.unwrap();
    let yaml = client(&app).with("Content-Type", "application/yaml");
    let ask = async |name: &str, value: &str| yaml.with(name, value).send("POST", "/api/dry-run", "").await;
    for (name, value) in [
        ("Origin", "http://evil.example"),
        ("Origin", "null"),
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Site", "same-site"),
    ] {
        let answer = ask(name, value).await;
        assert_eq!(answer.status, 403, "{name}: {value}");
        assert!(answer.detail().contains("--api-public-url"), "{}", answer.detail());
    }
    let own = format!("http://{}", app.bound().api.unwrap());
    for (name, value) in
        [("Origin", own.as_str()), ("Origin", "https://weft.example.com"), ("Sec-Fetch-Site", "same-origin")]
    {
        assert_eq!(ask(name, value).await.status, 200, "{name}: {value}");
    }
    stop(app).await;
}

#[tokio::test]
async fn a_cookie_alone_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let bob = token("bob", Role::Operator, 2);
    write_tokens(&file, &[&bob]);
    let app = start(&[&format!("--api-tokens={}", file.display())]).await.unwrap();
    let signed_in = client(&app).bearing(&bob.token).send("POST", "/api/session", "").await;
    let cookie = signed_in.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned();
    let client = client(&app).with("Cookie", &cookie).with("Content-Type", "application/yaml");
    let answer = client.send("POST", "/api/dry-run", "").await;
    assert_eq!(answer.status, 403, "nobody knows which page made the browser send this");
    let own = format!("http://{}", app.bound().api.unwrap());
    assert_eq!(client.with("Origin", &own).send("POST", "/api/dry-run", "").await.status, 200);
    stop(app).await;
}
