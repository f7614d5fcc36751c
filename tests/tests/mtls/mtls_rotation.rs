//! The root is replaced under load, in phases that wait for everybody: no call notices, and people see how far it is.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::{binary, poll};

use crate::members::{Load, Pair, caller, metric};

/// Calls over the whole rotation, at least.
const CALLS: usize = 10_000;

/// A way to the control plane on which nothing goes there while it is shut: what is said waits.
struct Gate {
    address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn before(control: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (open, seen) = watch::channel(true);
        let gate = Self { address: listener.local_addr()?, open };
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(control).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    let (_, always) = watch::channel(true);
                    tokio::join!(carry(near_in, far_out, seen), carry(far_in, near_out, always));
                });
            }
        });
        Ok(gate)
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut open: watch::Receiver<bool>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // Only the end of the test leaves it shut.
        if !*open.borrow() && open.wait_for(|open| *open).await.is_err() {
            return;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    // Whoever it was may have gone.
    drop(to.shutdown().await);
}

async fn overview(plane: &Plane) -> anyhow::Result<Value> {
    client::json(plane.api, "/api/ca").await
}

async fn rotate(plane: &Plane) -> anyhow::Result<StatusCode> {
    let mut ask = Ask::get("/api/ca/rotate", "localhost").header("content-type", "application/json");
    (ask.method, ask.body) = (Method::POST, "{}".into());
    Ok(client::once(plane.api, &ask).await?.status)
}

/// What `weft ca status` prints.
async fn status(weft: &Path, plane: &Plane) -> anyhow::Result<String> {
    let mut command = Command::new(weft);
    let output =
        command.args(["ca", "status"]).env("WEFT_API", format!("http://{}", plane.api)).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "weft ca status: {said}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The roots that a sidecar trusts, as `/api/ca` calls them.
async fn trusted(sidecar: &Sidecar) -> anyhow::Result<Vec<String>> {
    let identity = client::json(sidecar.address("/admin")?, "/identity").await?;
    let roots = identity["roots"].as_array().context("no roots")?;
    let key = |root: &Value| root["key"].as_str().map(|key| key.chars().take(8).collect());
    roots.iter().map(|root| key(root).context("no key")).collect()
}

fn fingerprints(overview: &Value) -> Vec<String> {
    let roots = overview["roots"].as_array().into_iter().flatten();
    roots.filter_map(|root| root["fingerprint"].as_str().map(str::to_owned)).collect()
}

/// A new member of this moment calls `orders`, whatever roots the two certificates are of.
async fn newcomer(directory: &Path, plane: &Plane, name: &str, token: &str) -> anyhow::Result<()> {
    let sidecar = caller(directory, plane.control, name, token).await?;
    poll::until(&format!("{name} calls by mutual TLS"), PATIENCE, async || {
        let answer = client::once(sidecar.address("/forwards/0")?, &Ask::get("/", "orders")).await?;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        let made = r#"weft_tls_handshakes_total{direction="outbound",result="full"}"#;
        ensure!(metric(&sidecar, made).await? >= 1.0, "in plain text so far");
        anyhow::Ok(())
    })
    .await?;
    let page = client::once(sidecar.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let failed = |line: &&str| {
        line.starts_with(r#"weft_tls_handshakes_total{direction="outbound",result="tls_"#)
            && !line.ends_with(" 0")
    };
    assert_eq!(page.lines().find(failed), None, "{name}");
    sidecar.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_is_replaced_under_load_and_no_call_fails() -> anyhow::Result<()> {
    // Built before anything is timed.
    let weft = binary::weft();
    let plane = Plane::start_mutual("", &["--leaf-lifetime=20s"]).await?;
    let gate = Gate::before(plane.control).await?;
    let pair = Pair::join_by(&plane, gate.address).await?;
    let directory = tempfile::tempdir()?;
    let tokens = [plane.token("early").await?, plane.token("late").await?];
    let old = fingerprints(&overview(&plane).await?);
    ensure!(old.len() == 1 && trusted(&pair.caller).await? == old, "one root: {old:?}");
    let load = Load::start(pair.door()?);

    // The new root is distributed, and one sidecar is slow to say that it has it.
    gate.open.send_replace(false);
    assert_eq!(rotate(&plane).await?, StatusCode::OK);
    let text = "1 of 2 sidecars trust the new root";
    let held = poll::until("one sidecar has the new root", PATIENCE, async || {
        let overview = overview(&plane).await?;
        ensure!(overview["rotation"]["text"] == text, "{overview:#}");
        anyhow::Ok(overview)
    })
    .await?;
    assert_eq!(held["rotation"]["phase"], "distributing");
    let new = fingerprints(&held).into_iter().find(|root| *root != old[0]).context("a new root")?;
    assert_eq!(fingerprints(&held), [old[0].clone(), new.clone()]);
    let printed = status(weft, &plane).await?;
    ensure!(printed.contains("phase 1 of 3") && printed.contains(text), "{printed}");
    newcomer(directory.path(), &plane, "early", &tokens[0]).await?;
    assert_eq!(overview(&plane).await?["rotation"]["phase"], "distributing", "it waits for the slow one");

    // It issues, and everybody takes a certificate of it.
    gate.open.send_replace(true);
    let text = "2 of 2 sidecars have a certificate of the new root";
    let issuing = poll::until("both have new certificates", 2 * PATIENCE, async || {
        let overview = overview(&plane).await?;
        ensure!(overview["rotation"]["text"] == text, "{overview:#}");
        anyhow::Ok(overview)
    })
    .await?;
    assert_eq!(issuing["rotation"]["phase"], "replacing");
    assert_eq!(fingerprints(&issuing), [new.clone(), old[0].clone()]);
    let printed = status(weft, &plane).await?;
    ensure!(printed.contains("phase 2 of 3") && printed.contains(text), "{printed}");
    // Its token knows the old root only.
    newcomer(directory.path(), &plane, "late", &tokens[1]).await?;

    // The old root is dropped.
    poll::until("only the new root is trusted", 2 * PATIENCE, async || {
        let overview = overview(&plane).await?;
        ensure!(overview["rotation"].is_null(), "{overview:#}");
        for sidecar in [&pair.caller, &pair.callee] {
            let trusted = trusted(sidecar).await?;
            ensure!(trusted == [new.clone()], "{trusted:?} are trusted");
        }
        anyhow::Ok(())
    })
    .await?;
    let printed = status(weft, &plane).await?;
    ensure!(printed.contains("no rotation is going on"), "{printed}");
    newcomer(directory.path(), &plane, "last", &plane.token("last").await?).await?;

    poll::until("calls enough", 12 * PATIENCE, async || {
        let served = load.served();
        if served >= CALLS { Ok(()) } else { Err(format!("{served} of {CALLS}")) }
    })
    .await?;
    let tally = load.stop().await?;
    let failed = tally.failed.len();
    assert!(failed == 0, "{failed} failed, {} served: {:#?}", tally.served, tally.failed.first());
    pair.stop().await?;
    plane.stop().await;
    Ok(())
}
