//! The certificate authority as a sidecar meets it: a real control plane on port 0, TLS, gRPC, join tokens.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "authority/accounts.rs"]
mod accounts;
#[path = "authority/client.rs"]
mod client;
#[path = "authority/streams.rs"]
mod streams;

use client::{Config, Request, Run};
use tonic::Code;
use weft_wire::ca::JoinToken;

const ID: &str = "spiffe://cluster.local/ns/shop/sa/orders";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_with_a_token_gets_an_identity_and_renews_it_with_its_certificate() {
    let run = Run::start(Config::default()).await;
    let token = run.token("shop", "orders").await;
    let first = run.ask(None, Request::new().bearer(&token)).await.unwrap();
    assert_eq!(first.id(), ID);
    assert_eq!(first.chain.len(), 3, "the leaf, its intermediate, the root");
    assert_eq!(first.root_pin(), token.parse::<JoinToken>().unwrap().pin);
    assert!(first.is_only_for_mutual_tls());
    let second = run.ask(Some(&first), Request::new().wanting(ID)).await.unwrap();
    assert_eq!(second.id(), ID);
    assert_ne!(second.serial(), first.serial());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_proof_is_refused_with_its_own_word() {
    let run = Run::start(Config::default()).await;
    let good = run.token("shop", "orders").await;
    let parsed: JoinToken = good.parse().unwrap();
    let unknown = JoinToken { id: "00000000".into(), ..parsed.clone() }.reveal();
    let wrong = JoinToken { secret: "0".repeat(32).into(), ..parsed.clone() }.reveal();
    let foreign = JoinToken { pin: [1; 32], ..parsed }.reveal();
    let revoked = run.token("shop", "orders").await;
    run.revoke(&revoked).await;
    let expired = run.token_for("shop", "orders", 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let cases = [
        (None, "no_proof", "no proof of identity"),
        (Some("weft1.x".to_owned()), "proof_unreadable", "neither a join token"),
        (Some("nonsense".to_owned()), "proof_unreadable", "neither a join token"),
        (Some(unknown), "token_unknown", "is not known here"),
        (Some(wrong), "token_unknown", "its secret is wrong"),
        (Some(foreign), "token_foreign", "made by another mesh"),
        (Some(revoked), "token_revoked", "has been revoked"),
        (Some(expired), "token_expired", "has expired"),
        (Some("e.y.J".to_owned()), "review_off", "no --token-review"),
    ];
    for (token, word, text) in cases {
        let before = run.refused(word).await;
        let request = token.iter().fold(Request::new(), |request, token| request.bearer(token));
        let refusal = run.ask(None, request).await.unwrap_err();
        assert_eq!(refusal.code(), Code::Unauthenticated, "{word}");
        assert!(refusal.message().contains(text), "{word}: {}", refusal.message());
        assert_eq!(run.refused(word).await, before + 1.0, "{word}");
    }
    // None of that used the good one up.
    run.ask(None, Request::new().bearer(&good)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_token_answers_its_own_key_again_and_no_other() {
    let run = Run::start(Config::default()).await;
    let token = run.token("shop", "orders").await;
    let lost = Request::new().bearer(&token);
    run.ask(None, lost.clone()).await.unwrap();
    run.ask(None, lost).await.expect("the answer was lost, the key is the same");
    let refusal = run.ask(None, Request::new().bearer(&token)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated);
    assert!(refusal.message().contains("has been used"), "{}", refusal.message());
    assert_eq!(run.refused("token_used").await, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_is_refused_and_does_not_use_the_token_up() {
    let run = Run::start(Config::default()).await;
    let token = run.token("shop", "orders").await;
    let other = "spiffe://cluster.local/ns/shop/sa/payments";
    let ask = |request: Request| request.bearer(&token);
    let cases = [
        (ask(Request::new().wanting(other)), "other_identity", Code::PermissionDenied, other),
        (ask(Request::new().wanting(ID).dns("orders.shop")), "csr_names", Code::InvalidArgument, "DNS name"),
        (ask(Request::new().wanting(ID).wanting(other)), "csr_names", Code::InvalidArgument, "several"),
        (ask(Request::rsa(1024)), "csr_weak_key", Code::InvalidArgument, "RSA key of 1024 bits"),
        (ask(Request::p521()), "csr_weak_key", Code::InvalidArgument, "P-256"),
        (ask(Request::new().forged()), "csr_signature", Code::InvalidArgument, "signature"),
        (ask(Request::raw("nonsense")), "csr_unreadable", Code::InvalidArgument, "PKCS #10"),
        (ask(Request::raw(&"x".repeat(10_000))), "csr_too_large", Code::InvalidArgument, "10000 bytes"),
        (ask(Request::raw(&"x".repeat(100_000))), "csr_too_large", Code::OutOfRange, "too large"),
    ];
    for (request, word, code, text) in cases {
        let before = run.refused(word).await;
        let refusal = run.ask(None, request).await.unwrap_err();
        assert_eq!(refusal.code(), code, "{word}: {}", refusal.message());
        assert!(refusal.message().contains(text), "{word}: {}", refusal.message());
        assert_eq!(run.refused(word).await, before + 1.0, "{word}");
    }
    for good in [Request::rsa(2048), Request::ed25519(), Request::p384()] {
        let token = run.token("shop", "orders").await;
        run.ask(None, good.bearer(&token)).await.unwrap();
    }
    run.ask(None, Request::new().wanting(ID).bearer(&token)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_renews_only_itself() {
    let run = Run::start(Config::default()).await;
    let token = run.token("shop", "orders").await;
    let own = run.ask(None, Request::new().bearer(&token)).await.unwrap();
    let other = Request::new().wanting("spiffe://cluster.local/ns/shop/sa/payments");
    let refusal = run.ask(Some(&own), other).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_planes_own_identity_is_given_to_nobody() {
    let run = Run::start(Config::default()).await;
    let made =
        run.api_post("/api/tokens", r#"{"namespace":"weft-system","name":"weft-control-plane"}"#).await;
    assert!(made.starts_with("HTTP/1.1 400"), "{made}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_dated_back_by_how_far_a_clock_is_behind_and_it_is_said_in_words() {
    let run = Run::start(Config::default()).await;
    let token = run.token("shop", "orders").await;
    let leaf = run.ask(None, Request::new().bearer(&token).behind(7)).await.unwrap();
    let age = leaf.age().as_secs();
    assert!((66..=90).contains(&age), "{age}");
    let overview = run.api_get("/api/ca").await;
    assert!(overview.contains("orders' clock is 7 s behind"), "{overview}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_roots_and_tokens_and_nobody_else_can_read_them() {
    use std::os::unix::fs::PermissionsExt as _;
    let kept = tempfile::tempdir().unwrap();
    let config = Config { data_dir: Some(kept.path().to_owned()), ..Config::default() };
    let run = Run::start(config.clone()).await;
    let (used, unused) = (run.token("shop", "orders").await, run.token("shop", "orders").await);
    let own = run.ask(None, Request::new().bearer(&used)).await.unwrap();
    run.stop().await;
    for file in ["authority.json", "tokens.json"] {
        let path = kept.path().join("ca").join(file);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{file}");
        let secret = unused.split('.').nth(2).unwrap();
        assert!(!std::fs::read_to_string(path).unwrap().contains(secret), "{file}: only a hash is kept");
    }
    let run = Run::start(config).await;
    let refusal = run.ask(None, Request::new().bearer(&used)).await.unwrap_err();
    assert!(refusal.message().contains("has been used"), "{}", refusal.message());
    run.ask(None, Request::new().bearer(&unused)).await.unwrap();
    let renewed = run.ask(Some(&own), Request::new()).await.unwrap();
    assert_eq!(renewed.root_pin(), own.root_pin());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_believes_the_chain_and_sees_one_identity() {
    let run = Run::start(Config::default()).await;
    let token = run.token("shop", "orders").await;
    let own = run.ask(None, Request::new().bearer(&token)).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let names = ["leaf.pem", "intermediate.pem", "root.pem"];
    for (name, certificate) in names.iter().zip(&own.chain) {
        let text = pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec()));
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let openssl = |arguments: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        let ran = command.args(arguments).current_dir(directory.path()).output();
        let ran = ran.expect("openssl: tests/setup.sh installs it");
        assert!(ran.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    for purpose in ["sslclient", "sslserver"] {
        let verify = [
            "verify",
            "-x509_strict",
            "-purpose",
            purpose,
            "-CAfile",
            "root.pem",
            "-untrusted",
            "intermediate.pem",
        ];
        assert_eq!(openssl(&[&verify[..], &["leaf.pem"]].concat()), "leaf.pem: OK\n", "{purpose}");
    }
    let text = openssl(&["x509", "-in", "leaf.pem", "-noout", "-text"]);
    assert_eq!(text.matches("URI:").count(), 1, "{text}");
    assert!(text.contains(&format!("URI:{ID}")), "{text}");
    assert!(!text.contains("DNS:"), "{text}");
    assert!(text.contains("CA:FALSE"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_is_brought_is_taken_over_when_it_is_replaced() {
    use std::time::SystemTime;
    use weft_control_plane::ca::authority::Offer;
    let mut serial = 0_u8;
    let mut random = || {
        serial += 1;
        [serial; 16]
    };
    let mut make = || Offer::make("example.org", SystemTime::now(), &mut random).unwrap();
    let (first, second) = (make(), make());
    let directory = tempfile::tempdir().unwrap();
    let bring = |offer: &Offer| {
        std::fs::write(directory.path().join("tls.crt"), offer.issuer.certificate.to_pem()).unwrap();
        std::fs::write(directory.path().join("tls.key"), offer.issuer.key.to_pem()).unwrap();
        std::fs::write(directory.path().join("ca.crt"), offer.roots[0].certificate.to_pem()).unwrap();
    };
    bring(&first);
    let brought = directory.path().display().to_string();
    let arguments = ["--ca-dir", &brought, "--trust-domain", "example.org"].map(str::to_owned).to_vec();
    let run = Run::start(Config { arguments, ..Config::default() }).await;
    let token = run.token("shop", "orders").await;
    let own = run.ask(None, Request::new().bearer(&token)).await.unwrap();
    assert_eq!(own.id(), "spiffe://example.org/ns/shop/sa/orders");
    assert_eq!(own.root_pin(), first.issuer.root);
    let refused = run.api_post("/api/ca/rotate", "{}").await;
    assert!(refused.contains("--ca-dir"), "{refused}");
    bring(&second);
    client::until(async || (run.overview().await["rotation"]["phase"] == "distributing").then_some(())).await;
    let renewed = run.ask(Some(&own), Request::new()).await.unwrap();
    assert_eq!(renewed.root_pin(), first.issuer.root, "until everybody trusts the new root");
}
