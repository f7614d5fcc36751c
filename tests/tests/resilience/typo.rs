//! A typo in a policy: named by object, field and reason wherever one looks, and without any effect on traffic.

use std::process::Command;

use anyhow::{Context as _, ensure};
use http::StatusCode;
use serde_json::Value;
use weft_tests::backend::Troupe;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::{binary, poll};

use super::{forward, list, service};

/// Every request fails that asks for tea, so that it shows whether the policy is in force.
const POLICY: &str = "\
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {request: 3s}
  fault: {abort: {httpStatus: 418, percent: 100}, headers: [{name: x-tea, value: please}]}
";

/// The same with a slip of the finger, and a change that would have been meant.
fn mistyped() -> String {
    POLICY.replace("{request: 3s}", "{reqest: 2s}").replace("418", "503")
}

/// What the command line says, on both channels, and how it ends.
async fn weft(arguments: &[&str]) -> anyhow::Result<(String, bool)> {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    // Blocks, and the control plane that answers runs on this test's threads.
    let output = tokio::task::spawn_blocking(move || {
        Command::new(binary::weft()).args(arguments).env("NO_COLOR", "1").output()
    });
    let output = output.await??;
    let text = [output.stdout, output.stderr].concat();
    Ok((String::from_utf8_lossy(&text).into_owned(), output.status.success()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "what people read is for people")]
async fn a_typo_is_refused_by_field_and_what_runs_goes_on() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let troupe = Troupe::start(1)?;
    let orders = service("orders", &[troupe.backends[0].address]);
    let plane = Plane::start(&(orders.clone() + POLICY)).await?;
    let flags = [forward("orders"), "--discovery-timeout=20s".to_owned()];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let caller = Sidecar::start(directory.path(), plane.control, "web", &flags).await?;
    let to = caller.address("/forwards/0")?;
    let tea = Ask::get("/", "orders.shop:8080").header("x-tea", "please");
    let in_force = async || -> anyhow::Result<()> {
        let status = client::once(to, &tea).await?.status;
        ensure!(status == StatusCode::IM_A_TEAPOT, "{status}");
        let status = client::once(to, &Ask::get("/", "orders.shop:8080")).await?.status;
        ensure!(status == StatusCode::OK, "{status}");
        Ok(())
    };
    poll::until("the policy is in force", PATIENCE, in_force).await?;

    // Before it is applied.
    let file = directory.path().join("orders.yaml");
    std::fs::write(&file, orders.clone() + &mistyped())?;
    let api = format!("--api=http://{}", plane.api);
    let (said, fine) = weft(&["apply", "--dry-run", &file.display().to_string(), &api]).await?;
    eprintln!("{said}");
    assert!(!fine, "{said}");
    let line = 1 + std::fs::read_to_string(&file)?
        .lines()
        .position(|line| line.contains("reqest"))
        .context("line")?;
    for word in
        ["TrafficPolicy shop/orders", "spec.timeouts.reqest", "unknown field", &format!("orders.yaml:{line}")]
    {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }

    // After.
    plane.apply(&(orders.clone() + &mistyped()))?;
    let found = poll::until("the typo is reported", PATIENCE, async || {
        let problems = client::json(plane.api, "/api/config/errors").await?;
        list(&problems, "errors").first().cloned().context("no problem")
    })
    .await?;
    assert_eq!(found["object"], "TrafficPolicy shop/orders", "{found:#}");
    assert_eq!(found["field"], "spec.timeouts.reqest", "{found:#}");
    assert_eq!(found["line"], line, "{found:#}");
    assert_eq!(found["message"], "unknown field", "{found:#}");
    assert_eq!(found["effect"], "file_kept_last_good", "{found:#}");
    in_force().await.context("after the typo")?;
    let (said, fine) = weft(&["get", "trafficpolicy", "orders", &api]).await?;
    eprintln!("{said}");
    assert!(fine, "{said}");
    for word in ["TrafficPolicy shop/orders", "spec.timeouts.reqest: unknown field", "stays in force"] {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }

    // What was meant.
    let meant = mistyped().replace("reqest", "request");
    plane.apply(&(orders + &meant))?;
    poll::until("what was meant is in force", PATIENCE, async || {
        let problems = client::json(plane.api, "/api/config/errors").await?;
        ensure!(problems["errors"] == Value::Array(Vec::new()), "{problems:#}");
        let status = client::once(to, &tea).await?.status;
        ensure!(status == StatusCode::SERVICE_UNAVAILABLE, "{status}");
        Ok(())
    })
    .await?;
    caller.stop().await?;
    plane.stop().await;
    Ok(())
}
