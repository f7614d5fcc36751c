//! Signing in by another authority, the whole way: browser, control plane and a provider, each on its own socket.

use weft_control_plane::app::App;

use super::client::{Answer, Client};
use super::provider::{Fault, Provider};
use super::{client, start, stop};

const CALLBACK: &str = "http://localhost:8080/api/session/oidc/callback";

async fn plane(provider: &Provider, more: &[&str]) -> App {
    let flags = [
        &format!("--oidc-issuer={}", provider.issuer()),
        "--oidc-client-id=weft",
        &format!("--oidc-redirect-url={CALLBACK}"),
        "--oidc-viewer-group=dev",
        "--oidc-operator-group=sre",
    ];
    start(&[&flags[..], more].concat()).await.unwrap()
}

fn cookie(answer: &Answer) -> String {
    answer.header("set-cookie").expect("a cookie").split(';').next().unwrap().to_owned()
}

fn location(answer: &Answer) -> &str {
    answer.header("location").unwrap_or_else(|| panic!("no location: {answer:?}"))
}

/// Until the provider sends the browser back: where to, and the browser's cookie.
async fn away(app: &App, provider: &Provider) -> (String, String) {
    let begun = client(app).get("/api/session/oidc").await;
    assert_eq!(begun.status, 303, "{begun:?}");
    let set = begun.header("set-cookie").expect("a cookie");
    assert!(set.starts_with("weft-login=") && set.contains("HttpOnly; SameSite=Lax"), "{set}");
    let url = location(&begun).strip_prefix(provider.issuer()).expect("to the provider").to_owned();
    let back = Client::new(provider.address).get(&url).await;
    assert_eq!(back.status, 302, "{back:?}");
    let back = location(&back).strip_prefix("http://localhost:8080").expect("back to us").to_owned();
    (back, cookie(&begun))
}

async fn login(app: &App, provider: &Provider) -> Answer {
    let (back, cookie) = away(app, provider).await;
    client(app).with("Cookie", &cookie).get(&back).await
}

/// How often logins ended in `word`.
async fn ended(app: &App, word: &str) -> bool {
    let signed_in = client(app);
    let provider_is_asked = signed_in.get("/metrics").await;
    assert_eq!(provider_is_asked.status, 401, "metrics are not open");
    let metrics = client(app).bearing(METRICS_TOKEN).get("/metrics").await.body;
    metrics.contains(&format!("weft_api_oidc_logins_total{{result=\"{word}\"}}"))
}

const METRICS_TOKEN: &str = "weft_api_0101010101010101010101010101010101010101010101010101010101010101";

fn with_token(directory: &std::path::Path) -> String {
    let file = directory.join("tokens.yaml");
    let watcher = super::token("prometheus", weft_control_plane::auth::Role::Viewer, 1);
    assert_eq!(watcher.token, METRICS_TOKEN);
    super::write_tokens(&file, &[&watcher]);
    format!("--api-tokens={}", file.display())
}

#[tokio::test]
async fn a_browser_signs_in_with_the_role_of_its_groups() {
    for rsa in [false, true] {
        let provider = Provider::start(rsa, None).await;
        let app = plane(&provider, &[]).await;
        let ways = client(&app).get("/api/session").await.json()["ways"].clone();
        assert_eq!((&ways["token"], &ways["oidc"]["name"]), (&false.into(), &"127.0.0.1".into()));
        assert_eq!(client(&app).get("/api/graph").await.status, 401);

        for (groups, role) in [(&["dev"][..], "viewer"), (&["x", "sre"], "operator")] {
            provider.put_into(groups);
            let back = login(&app, &provider).await;
            assert_eq!((back.status, location(&back)), (303, "../../../"), "{back:?}");
            let browser = client(&app).with("Cookie", &cookie(&back));
            let who = browser.get("/api/session").await.json()["who"].clone();
            assert_eq!(
                (&who["name"], &who["role"], &who["how"]),
                (&"alice".into(), &role.into(), &"oidc".into())
            );
            assert_eq!(browser.get("/api/graph").await.status, 200);
            let audit = if role == "operator" { 200 } else { 403 };
            assert_eq!(browser.get("/api/audit").await.status, audit);
        }
        stop(app).await;
    }
}

#[tokio::test]
async fn the_client_proves_itself_by_its_secret() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    let provider = Provider::start(false, Some("opensesame")).await;
    let app = plane(&provider, &[&format!("--oidc-client-secret-file={}", secret.display())]).await;
    std::fs::write(&secret, "wrong\n").unwrap();
    assert_eq!(location(&login(&app, &provider).await), "../../../?sign-in=failed");
    std::fs::write(&secret, "opensesame\n").unwrap();
    assert_eq!(location(&login(&app, &provider).await), "../../../");
    stop(app).await;
}

#[tokio::test]
async fn a_token_that_is_not_for_this_login_lets_nobody_in() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(false, None).await;
    let app = plane(&provider, &[&with_token(directory.path())]).await;
    for (fault, word) in [
        (Fault::Nonce, "token_nonce"),
        (Fault::Audience, "token_audience"),
        (Fault::Issuer, "token_issuer"),
        (Fault::Expired, "token_expired"),
        (Fault::Future, "token_early"),
        (Fault::ForeignKey, "token_signature"),
        (Fault::Unsigned, "token_algorithm"),
        (Fault::SharedSecret, "token_algorithm"),
        (Fault::UnknownKey, "token_key"),
        (Fault::NoToken, "asking"),
        (Fault::NoGroups, "no_role"),
    ] {
        provider.fail(fault);
        let back = login(&app, &provider).await;
        assert_eq!(back.status, 303, "{fault:?}");
        let told = if fault == Fault::NoGroups { "no-role" } else { "failed" };
        assert_eq!(location(&back), format!("../../../?sign-in={told}"), "{fault:?}");
        let set = back.header("set-cookie").unwrap_or_default();
        assert!(!set.starts_with("weft="), "{fault:?}: {set}");
        assert!(ended(&app, word).await, "{fault:?} is counted as {word}");
    }
    provider.fail(Fault::Nothing);
    assert_eq!(location(&login(&app, &provider).await), "../../../", "and then all is well again");
    stop(app).await;
}

#[tokio::test]
async fn a_login_comes_back_once_to_the_browser_that_began_it() {
    let directory = tempfile::tempdir().unwrap();
    let provider = Provider::start(false, None).await;
    let app = plane(&provider, &[&with_token(directory.path())]).await;
    let failed = "../../../?sign-in=failed";

    let (back, cookie) = away(&app, &provider).await;
    assert_eq!(location(&client(&app).with("Cookie", &cookie).get(&back).await), "../../../");
    assert_eq!(location(&client(&app).with("Cookie", &cookie).get(&back).await), failed, "replayed");
    assert!(ended(&app, "state").await);

    // Somebody gets another to come back with a login of their own.
    let (back, _) = away(&app, &provider).await;
    let (_, other) = away(&app, &provider).await;
    assert_eq!(location(&client(&app).with("Cookie", &other).get(&back).await), failed);
    assert!(ended(&app, "browser").await);
    let (back, _) = away(&app, &provider).await;
    assert_eq!(location(&client(&app).get(&back).await), failed, "no cookie at all");

    for made_up in ["?code=code-0&state=made-up", "?code=code-0", "", "?error=access_denied&state=x"] {
        let back = client(&app).get(&format!("/api/session/oidc/callback{made_up}")).await;
        assert_eq!(location(&back), failed, "{made_up}");
    }
    // A refusal of the provider, and an answer of another one (RFC 9207).
    for (more, word) in [("&error=access_denied", "provider"), ("&iss=http%3A%2F%2Fevil.example", "issuer")] {
        let (back, cookie) = away(&app, &provider).await;
        let back = client(&app).with("Cookie", &cookie).get(&format!("{back}{more}")).await;
        assert_eq!(location(&back), failed, "{more}");
        assert!(ended(&app, word).await, "{word}");
    }
    stop(app).await;
}

#[tokio::test]
async fn a_provider_that_is_not_there_keeps_nobody_else_out() {
    let directory = tempfile::tempdir().unwrap();
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = [
        &format!("--oidc-issuer=http://{gone}"),
        "--oidc-client-id=weft",
        &format!("--oidc-redirect-url={CALLBACK}"),
        "--oidc-viewer-group=*",
        &with_token(directory.path()),
    ];
    let app = start(&flags).await.unwrap();
    assert_eq!(location(&client(&app).get("/api/session/oidc").await), "../../?sign-in=failed");
    assert_eq!(client(&app).bearing(METRICS_TOKEN).get("/api/graph").await.status, 200);
    stop(app).await;
}

#[tokio::test]
async fn settings_that_cannot_work_end_the_start() {
    let issuer = "--oidc-issuer=https://login.example.com";
    let whole = [issuer, "--oidc-client-id=weft", "--oidc-viewer-group=dev"];
    let to = |url: &str| format!("--oidc-redirect-url={url}");
    let good = to("https://weft.example.com/api/session/oidc/callback");
    for (flags, told) in [
        (vec![whole[0], whole[1], &good], "--oidc-viewer-group"),
        (vec![whole[0], whole[2], &good], "--oidc-client-id"),
        ([&whole[..], &[&to("https://weft.example.com/")]].concat(), "/api/session/oidc/callback"),
        ([&whole[..], &[&to("http://weft.example.com/api/session/oidc/callback")]].concat(), "https://"),
        ([&whole[..], &[&good, "--oidc-ca=/nowhere"]].concat(), "--oidc-ca"),
    ] {
        let error = start(&flags).await.err().unwrap_or_else(|| panic!("started: {flags:?}"));
        assert!(format!("{error:#}").contains(told), "{flags:?}: {error:#}");
    }
    stop(start(&[&whole[..], &[&good]].concat()).await.unwrap()).await;
}
