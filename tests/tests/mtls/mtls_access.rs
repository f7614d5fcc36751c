//! Who may call, where callers are who their certificates say: three sidecars, and policies that come and change.

use std::net::SocketAddr;

use anyhow::ensure;
use http::StatusCode;
use weft_tests::backend::Troupe;
use weft_tests::client::{self, Answer, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

const DENIED: &str = "policy_denied; by=server_proxy";
const FORGED: &str = "x-forwarded-client-cert";

/// A policy for all of the namespace.
fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {{name: own, namespace: shop}}, spec: {spec}}}\n"
    )
}

/// `orders`, which `web` and `batch` call.
struct Trio {
    plane: Plane,
    callee: Sidecar,
    web: Sidecar,
    batch: Sidecar,
    _app: Troupe,
    _directory: tempfile::TempDir,
}

impl Trio {
    /// Three members, when all calls are by mutual TLS.
    async fn join() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let plane = Plane::start_mutual("", &[]).await?;
        let app = Troupe::start(1)?;
        let forward = format!("--inbound-forward={}", app.backends[0].address);
        let flags = ["--register=orders.shop:8080/http", &forward];
        let callee = Sidecar::join(directory.path(), &plane, "orders", &flags).await?;
        let flags = ["--outbound-forward=127.0.0.1:0=orders.shop:8080"];
        let web = Sidecar::join(directory.path(), &plane, "web", &flags).await?;
        let batch = Sidecar::join(directory.path(), &plane, "batch", &flags).await?;
        let trio = Self { plane, callee, web, batch, _app: app, _directory: directory };
        for (sidecar, name) in [(&trio.web, "web"), (&trio.batch, "batch")] {
            let known = format!("weft_peer_identity=\"spiffe://cluster.local/ns/shop/sa/{name}\"");
            poll::until("its identity is known to the callee", PATIENCE, async || {
                ask(sidecar.address("/forwards/0")?, StatusCode::OK, &Ask::get("/", "orders")).await?;
                ensure!(trio.page().await?.contains(&known), "{name} is nobody yet");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(trio)
    }

    /// The callee's metrics.
    async fn page(&self) -> anyhow::Result<String> {
        let page = client::once(self.callee.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
        Ok(String::from_utf8(page.body.to_vec())?)
    }

    /// How many calls this verdict was said of.
    async fn said(&self, verdict: &str) -> anyhow::Result<f64> {
        let verdict = format!("weft_access_verdict=\"{verdict}\"");
        let page = self.page().await?;
        let lines = page.lines().filter(|line| line.starts_with("weft_access_decisions_total{"));
        let values = lines.filter(|line| line.contains(&verdict)).filter_map(|line| line.rsplit(' ').next());
        Ok(values.map(str::parse::<f64>).sum::<Result<f64, _>>()?)
    }

    /// Waits until `batch` is answered so.
    async fn batch_gets(&self, status: StatusCode) -> anyhow::Result<()> {
        poll::until("the policy is in force", PATIENCE, async || {
            ask(self.batch.address("/forwards/0")?, status, &Ask::get("/", "orders")).await
        })
        .await?;
        Ok(())
    }

    async fn stop(self) -> anyhow::Result<()> {
        for sidecar in [self.web, self.batch, self.callee] {
            sidecar.stop().await?;
        }
        self.plane.stop().await;
        Ok(())
    }
}

async fn ask(to: SocketAddr, status: StatusCode, ask: &Ask) -> anyhow::Result<Answer> {
    let answer = client::once(to, ask).await?;
    ensure!(answer.status == status, "{answer:?} instead of {status}");
    Ok(answer)
}

/// A request that says it comes from somebody.
fn claiming(name: &str, h2: bool) -> Ask {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{name}");
    let forged = format!("By=spiffe://cluster.local/ns/shop/sa/orders;URI={id}");
    let ask = Ask::get("/", "orders.shop:8080").header(FORGED, forged).header("x-weft-identity", id);
    Ask { h2, ..ask }
}

#[tokio::test]
async fn mtls_lets_in_who_is_named_and_nobody_who_only_says_so() -> anyhow::Result<()> {
    let trio = Trio::join().await?;
    trio.plane.apply(&policy("{rules: [{from: [{serviceAccount: web}]}]}"))?;
    trio.batch_gets(StatusCode::FORBIDDEN).await?;
    let (web, batch) = (trio.web.address("/forwards/0")?, trio.batch.address("/forwards/0")?);
    let inbound = trio.callee.address("/inbound")?;
    for h2 in [false, true] {
        let served = ask(web, StatusCode::OK, &claiming("batch", h2)).await?;
        let seen = String::from_utf8_lossy(&served.body);
        ensure!(!seen.contains(FORGED), "the app is not told who a caller says it is: {seen}");
        // By mutual TLS as somebody else, and in plain text as nobody.
        for to in [batch, inbound] {
            let refused = ask(to, StatusCode::FORBIDDEN, &claiming("web", h2)).await?;
            ensure!(refused.header("x-weft-reason") == Some(DENIED), "{refused:?}");
        }
    }
    ensure!(trio.said("denied").await? >= 5.0, "{}", trio.page().await?);

    trio.plane.apply(&policy("{action: Deny, rules: [{from: [{serviceAccount: batch}]}]}"))?;
    poll::until("plain text is no longer refused", PATIENCE, async || {
        ask(inbound, StatusCode::OK, &claiming("batch", false)).await
    })
    .await?;
    ask(batch, StatusCode::FORBIDDEN, &claiming("web", false)).await?;
    ask(web, StatusCode::OK, &claiming("batch", false)).await?;
    trio.stop().await
}

#[tokio::test]
async fn mtls_policies_that_are_audited_keep_nobody_out() -> anyhow::Result<()> {
    let trio = Trio::join().await?;
    for spec in [
        "{mode: Audit, rules: [{from: [{serviceAccount: web}]}]}",
        "{mode: Audit, action: Deny, rules: [{}]}",
    ] {
        let before = trio.said("would_deny").await?;
        trio.plane.apply(&policy(spec))?;
        poll::until("it is said what would be denied", PATIENCE, async || {
            ask(trio.batch.address("/forwards/0")?, StatusCode::OK, &Ask::get("/", "orders")).await?;
            ensure!(trio.said("would_deny").await? > before, "not yet");
            anyhow::Ok(())
        })
        .await?;
        for sidecar in [&trio.web, &trio.batch] {
            ask(sidecar.address("/forwards/0")?, StatusCode::OK, &Ask::get("/", "orders")).await?;
        }
    }
    ensure!(trio.said("denied").await? == 0.0, "{}", trio.page().await?);
    trio.stop().await
}
