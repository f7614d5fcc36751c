//! Browsers: signing in with a token, the cookie that stands for it, and signing out.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use weft_control_plane::auth::Role;

use super::client::Answer;
use super::{FAR, client, start, stop, token, write_tokens};

fn cookie(answer: &Answer) -> String {
    answer.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn the_page_learns_whether_and_how_to_sign_in() {
    let app = start(&[]).await.unwrap();
    let session = client(&app).get("/api/session").await.json();
    assert_eq!(session["required"], false);
    assert_eq!((&session["who"]["role"], &session["who"]["how"]), (&"operator".into(), &"open".into()));
    assert_eq!(client(&app).send("POST", "/api/session", "").await.status, 404, "nobody needs to");
    stop(app).await;
}

#[tokio::test]
async fn a_token_becomes_a_cookie_until_sign_out() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let alice = token("alice", Role::Viewer, 1);
    write_tokens(&file, &[&alice]);
    let app = start(&[&format!("--api-tokens={}", file.display())]).await.unwrap();
    let client = client(&app);

    let before = client.get("/api/session").await.json();
    assert_eq!((&before["required"], &before["who"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(before["ways"]["token"], true);
    for wrong in [client.clone(), client.bearing("weft_api_wrong")] {
        let answer = wrong.send("POST", "/api/session", "").await;
        assert_eq!((answer.status, answer.header("set-cookie")), (401, None));
    }
    let other = client.bearing(&alice.token).with("Origin", "http://evil.example");
    assert_eq!(other.send("POST", "/api/session", "").await.status, 403, "another page signs nobody in");

    let signed_in = client.bearing(&alice.token).send("POST", "/api/session", "").await;
    assert_eq!(signed_in.status, 200);
    assert_eq!(signed_in.json()["who"]["name"], "alice");
    let set = signed_in.header("set-cookie").unwrap();
    assert!(set.starts_with("weft=") && set.contains("; HttpOnly; SameSite=Strict;"), "{set}");
    assert!(!set.contains(&alice.token));
    let own = format!("http://{}", app.bound().api.unwrap());
    let browser = client.with("Cookie", &cookie(&signed_in)).with("Origin", &own);
    assert_eq!(browser.get("/api/graph").await.status, 200);
    let who = &browser.get("/api/session").await.json()["who"];
    assert_eq!((&who["name"], &who["session"]), (&"alice".into(), &true.into()));
    // The same name under the other cookie was never given out.
    let renamed = cookie(&signed_in).replace("weft=", "__Host-weft=");
    assert_eq!(client.with("Cookie", &renamed).get("/api/graph").await.status, 401);

    let out = browser.send("DELETE", "/api/session", "").await;
    assert_eq!(out.status, 200);
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
    let after = browser.get("/api/graph").await;
    assert_eq!(after.status, 401, "the cookie is worth nothing, wherever it is kept");
    assert!(after.detail().starts_with("your session is over"), "{}", after.detail());
    stop(app).await;
}

#[tokio::test]
async fn by_https_the_cookie_goes_nowhere_else_and_by_plain_http_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let alice = token("alice", Role::Viewer, 1);
    write_tokens(&file, &[&alice]);
    let tokens = format!("--api-tokens={}", file.display());
    let app = start(&[&tokens, "--api-listen=0.0.0.0:0"]).await.unwrap();
    let named = client(&app).bearing(&alice.token).with("Host", "weft.example.com");
    let plain = named.with("Origin", "http://weft.example.com").send("POST", "/api/session", "").await;
    assert_eq!((plain.status, plain.header("set-cookie")), (403, None));
    assert!(plain.detail().contains("https://"), "{}", plain.detail());
    let protected = named.with("Origin", "https://weft.example.com").send("POST", "/api/session", "").await;
    let set = protected.header("set-cookie").expect("a cookie");
    assert!(set.starts_with("__Host-weft=") && set.ends_with("; Secure") && set.contains("Path=/;"), "{set}");
    let browser = client(&app).with("Cookie", &cookie(&protected));
    assert_eq!(browser.get("/api/graph").await.status, 200);
    stop(app).await;
}

#[tokio::test]
async fn a_session_and_its_event_streams_end_with_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tokens.yaml");
    let (alice, bob) = (token("alice", Role::Viewer, 1), token("bob", Role::Viewer, 2));
    write_tokens(&file, &[&alice, &bob]);
    let app = start(&[&format!("--api-tokens={}", file.display())]).await.unwrap();
    let address = app.bound().api.unwrap();
    let signed_in = client(&app).bearing(&alice.token).send("POST", "/api/session", "").await;
    let cookie = cookie(&signed_in);

    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    let head = format!("GET /api/graph/events HTTP/1.1\r\nHost: {address}\r\nCookie: {cookie}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut line = String::new();
    while !line.starts_with("event: snapshot") {
        line.clear();
        let read = tokio::time::timeout(FAR, stream.read_line(&mut line)).await.expect("an event").unwrap();
        assert_ne!(read, 0, "it ended before it began");
    }
    write_tokens(&file, &[&bob]);
    let ended = async {
        loop {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 || line == "0\r\n" {
                return;
            }
        }
    };
    tokio::time::timeout(FAR + Duration::from_secs(10), ended).await.expect("the stream ends");
    assert_eq!(client(&app).with("Cookie", &cookie).get("/api/graph").await.status, 401);
    stop(app).await;
}
