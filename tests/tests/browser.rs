//! The dashboard in a real browser, over a real mesh on loopback: the control plane with its embedded pages, a caller, three
//! replicas of `orders` and a canary of it, and traffic that starts while the page is open.
//!
//! `tests/browser` holds what is asserted; here is what it looks at. The traffic's URL is a forward through the
//! caller's sidecar, so each of the browser test's fetches is a request of `web` to `orders`. Two more URLs make one of the
//! replicas fail, and heal it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{any, get};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_tests::binary;
use weft_tests::embedded::{Plane, Sidecar};
use weft_tests::poll;
use weft_tests::process::Guarded;

/// Debug builds on a busy machine.
const START: Duration = Duration::from_secs(30);
/// The browser test's own deadlines come long before.
const ENDS: Duration = Duration::from_secs(300);

/// One call in five goes to the canary. Ejections are short, so that their end can be awaited, and replicas take turns, so
/// that each has its share of few calls.
const OBJECTS: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: orders, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: orders, port: 8080}]
  rules:
  - backendRefs:
    - {name: orders, port: 8080, weight: 80}
    - {name: orders-v2, port: 8080, weight: 20}
---
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  endpoints: {consecutiveFailures: 5, interval: 1s, baseEjectionTime: 8s, maxEjectionTime: 8s}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  loadBalancer: {type: RoundRobin}
";

/// Runs a script of the browser's to its end. It takes its time; apps of this process must go on meanwhile.
async fn drive(mut test: Command) -> anyhow::Result<std::process::ExitStatus> {
    tokio::task::spawn_blocking(move || Guarded::spawn(&mut test)?.wait(ENDS)).await?
}

/// Why the test cannot run here, unless this is CI, where that is a failure.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn possible() -> bool {
    let chromium = std::env::var_os("WEFT_CHROMIUM").map_or("/usr/bin/chromium".into(), PathBuf::from);
    let npm = Command::new("npm").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let skipped = std::env::var("WEFT_SKIP_DASHBOARD").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let missing = match () {
        () if !chromium.exists() => format!("there is no {}; tests/setup.sh installs it", chromium.display()),
        () if npm.is_err() => "there is no npm".to_owned(),
        () if skipped => "WEFT_SKIP_DASHBOARD is set, and so there is no dashboard to look at".to_owned(),
        () => return true,
    };
    assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {missing}");
    eprintln!("skipped: {missing}");
    false
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn people_see_an_edge_appear_and_a_circuit_open() -> anyhow::Result<()> {
    if !possible() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let home = directory.path();
    let off = ["--control-tls-listen=off", "--otlp-grpc-listen=off", "--otlp-http-listen=off"];
    let listen = ["--insecure", "--control-listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"];
    std::fs::create_dir(home.join("source"))?;
    std::fs::write(home.join("source/orders.yaml"), OBJECTS)?;
    let source = format!("--source={}", home.join("source").display());
    let (plane, _plane) = start(home, "control-plane", &[&listen[..], &off, &[&source]].concat()).await?;

    let broken = Arc::new(AtomicBool::new(false));
    let control = format!("--control-plane=http://{}", address(&plane, "/control")?);
    let sidecar = ["--namespace=shop", &control, "--metrics-listen=127.0.0.1:0", "--admin-listen=off"];
    let mut callees = Vec::new();
    for (pod, version, service) in [
        ("orders-1", "v1", "orders"),
        ("orders-2", "v1", "orders"),
        ("orders-3", "v1", "orders"),
        ("orders-v2", "v2", "orders-v2"),
    ] {
        let own = if pod == "orders-3" { Arc::clone(&broken) } else { Arc::default() };
        let forward = format!("--inbound-forward={}", app(own).await?);
        let register = format!("--register={service}.shop:8080/http");
        let (pod, version) = (format!("--pod={pod}"), format!("--workload-version={version}"));
        let callee = ["--workload=orders", "--inbound-listen=127.0.0.1:0", "--outbound-listen=off"];
        let callee = [&sidecar[..], &callee, &[&forward, &register, &pod, &version]].concat();
        callees.push(start(home, pod.trim_start_matches("--pod="), &callee).await?);
    }
    let caller = [
        "--workload=web",
        "--inbound-listen=off",
        "--outbound-listen=off",
        "--outbound-forward=127.0.0.1:0=orders.shop:8080",
        // The first request waits for its configuration, however busy this machine is.
        "--discovery-timeout=20s",
    ];
    let (caller, _caller) = start(home, "web", &[&sidecar[..], &caller].concat()).await?;

    let switch = switch(broken).await?;

    let mut test = npm(&browser()?);
    test.args(["test", "--silent"])
        .env("WEFT_URL", format!("http://{}", address(&plane, "/api")?))
        .env("WEFT_TRAFFIC_URL", format!("http://{}/orders/42", address(&caller, "/forwards/0")?))
        .env("WEFT_BREAK_URL", format!("{switch}/break"))
        .env("WEFT_HEAL_URL", format!("{switch}/heal"))
        .env("WEFT_EXPECT_EDGE", "web>orders")
        .env("WEFT_EXPECT_SPLIT", "orders.shop:8080");
    let status = drive(test).await?;
    ensure!(status.success(), "the browser test: {status}\n{}", logs(home));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn people_sign_in_see_the_mesh_and_sign_out() -> anyhow::Result<()> {
    if !possible() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let home = directory.path();
    let (tokens, alice, bob) = tokens(home)?;
    let listen = ["--insecure", "--control-listen=127.0.0.1:0", "--api-listen=127.0.0.1:0"];
    let off = ["--control-tls-listen=off", "--otlp-grpc-listen=off", "--otlp-http-listen=off"];
    let (plane, _plane) = start(home, "control-plane", &[&listen[..], &off, &[&tokens]].concat()).await?;

    let control = format!("--control-plane=http://{}", address(&plane, "/control")?);
    let sidecar = ["--namespace=shop", &control, "--metrics-listen=127.0.0.1:0", "--admin-listen=off"];
    let forward = format!("--inbound-forward={}", app(Arc::default()).await?);
    let callee = ["--workload=orders", "--inbound-listen=127.0.0.1:0", "--outbound-listen=off"];
    let callee = [&sidecar[..], &callee, &[&forward, "--register=orders.shop:8080/http"]].concat();
    let (_, _callee) = start(home, "orders", &callee).await?;
    let caller = [
        "--workload=web",
        "--inbound-listen=off",
        "--outbound-listen=off",
        "--outbound-forward=127.0.0.1:0=orders.shop:8080",
        "--discovery-timeout=20s",
    ];
    let (caller, _caller) = start(home, "web", &[&sidecar[..], &caller].concat()).await?;
    let traffic = "GET /orders/42 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    let answer = send(address(&caller, "/forwards/0")?, traffic).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let mut test = npm(&browser()?);
    test.args(["run", "signin", "--silent"])
        .env("WEFT_URL", format!("http://{}", address(&plane, "/api")?))
        .env("WEFT_TOKEN", alice)
        .env("WEFT_OPERATOR", bob);
    let status = drive(test).await?;
    ensure!(status.success(), "the browser test: {status}\n{}", logs(home));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn people_see_locks_and_certificates() -> anyhow::Result<()> {
    if !possible() {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let plane = Plane::start_mutual("", &[]).await?;
    let forward = format!("--inbound-forward={}", app(Arc::default()).await?);
    let callee = ["--register=orders.shop:8080/http", &forward];
    let callee = Sidecar::join(directory.path(), &plane, "orders", &callee).await?;
    let caller = ["--outbound-forward=127.0.0.1:0=orders.shop:8080", "--discovery-timeout=20s"];
    let caller = Sidecar::join(directory.path(), &plane, "web", &caller).await?;
    let door = caller.address("/forwards/0")?;
    let traffic = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        loop {
            ticks.tick().await;
            // The page says what became of it.
            send(door, "GET /orders/42 HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await.ok();
        }
    });

    let mut test = npm(&browser()?);
    test.args(["run", "mutual", "--silent"]).env("WEFT_URL", format!("http://{}", plane.api));
    let status = drive(test).await?;
    traffic.abort();
    caller.stop().await?;
    callee.stop().await?;
    plane.stop().await;
    ensure!(status.success(), "the browser test: {status}");
    Ok(())
}

/// A file with a viewer and an operator, as a flag, and their tokens: made by the command that people use.
fn tokens(home: &Path) -> anyhow::Result<(String, String, String)> {
    let file = home.join("tokens.yaml");
    let make = |name: &str, role: &str| {
        let mut command = Command::new(binary::weft());
        command.args(["auth", "token", "--name", name, "--role", role, "--line-to"]).arg(&file);
        let output = command.output()?;
        ensure!(output.status.success(), "weft auth token: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    };
    let (alice, bob) = (make("alice", "viewer")?, make("bob", "operator")?);
    Ok((format!("--api-tokens={}", file.display()), alice, bob))
}

async fn send(address: SocketAddr, request: &str) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The folder of the browser's side, with what it needs.
fn browser() -> anyhow::Result<PathBuf> {
    let browser = binary::workspace().join("tests/browser");
    if !browser.join("node_modules").exists() {
        let status = npm(&browser).arg("ci").status()?;
        ensure!(status.success(), "npm ci: {status}");
    }
    Ok(browser)
}

/// A replica: well, unless it is broken.
async fn app(broken: Arc<AtomicBool>) -> anyhow::Result<SocketAddr> {
    let answer = any(async |State(broken): State<Arc<AtomicBool>>| {
        let broken = broken.load(Ordering::Relaxed);
        if broken { (StatusCode::INTERNAL_SERVER_ERROR, "no\n") } else { (StatusCode::OK, "an order\n") }
    });
    serve(Router::new().route("/{*path}", answer).with_state(broken)).await
}

/// Where the browser test breaks the replica and heals it.
async fn switch(broken: Arc<AtomicBool>) -> anyhow::Result<String> {
    let to = |value: bool| {
        get(async move |State(broken): State<Arc<AtomicBool>>| broken.store(value, Ordering::Relaxed))
    };
    let routes = Router::new().route("/break", to(true)).route("/heal", to(false));
    Ok(format!("http://{}", serve(routes.with_state(broken)).await?))
}

async fn serve(routes: Router) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, routes).await });
    Ok(address)
}

fn npm(folder: &Path) -> Command {
    let mut npm = Command::new("npm");
    npm.current_dir(folder);
    npm
}

/// Starts the control plane or a sidecar and waits for where it listens.
async fn start(home: &Path, name: &str, flags: &[&str]) -> anyhow::Result<(Value, Guarded)> {
    let (ready, log) = (home.join(format!("{name}.json")), home.join(format!("{name}.log")));
    let role = if name == "control-plane" { name } else { "proxy" };
    let log = std::fs::File::create(log)?;
    let process = Guarded::spawn(
        Command::new(binary::weft())
            .arg(role)
            .args(flags)
            .arg("--ready-file")
            .arg(&ready)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log),
    )?;
    let bound = poll::until(name, START, async || {
        anyhow::Ok(serde_json::from_slice(&tokio::fs::read(&ready).await?)?)
    });
    Ok((bound.await.with_context(|| logs(home))?, process))
}

fn address(bound: &Value, listener: &str) -> anyhow::Result<SocketAddr> {
    let address = bound.pointer(listener).and_then(Value::as_str);
    Ok(address.with_context(|| format!("no {listener} in {bound}"))?.parse()?)
}

fn logs(home: &Path) -> String {
    let files = std::fs::read_dir(home).into_iter().flatten().flatten().map(|entry| entry.path());
    let logs = files.filter(|path| path.extension().is_some_and(|end| end == "log"));
    let texts = logs.map(|path| {
        format!("--- {} ---\n{}", path.display(), std::fs::read_to_string(&path).unwrap_or_default())
    });
    texts.collect()
}
