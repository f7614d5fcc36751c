//! The two under comparison, on one control plane.
//!
//! In: objects, and the names of services to call. Out: for each service an address at Envoy and one at the sidecar.
//! Invariant: it is handed out only when the control plane refused no object and neither proxy refused a resource.
//! Surprise: the sidecar asks for a service when it is first called, so its refusals are looked for again at the end,
//! by [`Pair::stop`].

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::client::{self, Answer, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::envoy::{Envoy, Follow};
use weft_tests::poll;

use super::objects::{self, NAMESPACE, PORT};

/// Services that one pair serves: a sidecar has at most 64 explicit listeners.
pub(crate) const SERVICES_MAX: usize = 60;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Envoy,
    Weft,
}

impl Side {
    pub(crate) const BOTH: [Self; 2] = [Self::Envoy, Self::Weft];
}

/// An Envoy and a sidecar that follow one control plane.
pub(crate) struct Pair {
    envoy: Envoy,
    sidecar: Sidecar,
    pub(crate) plane: Plane,
    services: usize,
    _directory: tempfile::TempDir,
}

impl Pair {
    pub(crate) async fn start(binary: &Path, objects: &[Value], services: &[String]) -> anyhow::Result<Self> {
        ensure!(services.len() <= SERVICES_MAX, "{} services", services.len());
        let directory = tempfile::tempdir()?;
        let plane = Plane::start(&objects::yaml(objects)?).await?;
        let table = |service: &String| Follow::from(format!("{service}.{NAMESPACE}:{PORT}"));
        let follow: Vec<Follow> = services.iter().map(table).collect();
        let envoy = Envoy::start(binary, plane.control, &follow).await?;
        let forwards: Vec<String> =
            follow.iter().map(|follow| format!("127.0.0.1:0={}", follow.routes)).collect();
        let forwards = format!("--outbound-forward={}", forwards.join(","));
        // The first request to a service waits for its configuration, however busy this machine is.
        let flags = [forwards.as_str(), "--discovery-timeout=20s", "--access-log=off"];
        let sidecar = Sidecar::start(directory.path(), plane.control, "caller", &flags).await?;
        let pair = Self { envoy, sidecar, plane, services: services.len(), _directory: directory };
        pair.accepted().await?;
        Ok(pair)
    }

    /// Where a service is called, by its index.
    pub(crate) fn address(&self, side: Side, service: usize) -> anyhow::Result<SocketAddr> {
        ensure!(service < self.services, "no service {service}");
        match side {
            Side::Envoy => Ok(self.envoy.listener(service)),
            Side::Weft => self.sidecar.address(&format!("/forwards/{service}")),
        }
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, side: Side, service: usize, ask: &Ask) -> anyhow::Result<Answer> {
        client::once(self.address(side, service)?, ask).await.with_context(|| self.envoy.log())
    }

    /// Makes sure that nobody refused anything.
    pub(crate) async fn accepted(&self) -> anyhow::Result<()> {
        let problems = client::json(self.plane.api, "/api/config/errors").await?;
        let none = problems["errors"].as_array().context("no list of errors")?.is_empty();
        ensure!(none, "the control plane refuses: {problems:#}");
        self.envoy.accepted().await?;
        poll::until("both are in step", PATIENCE, async || {
            let proxies = client::json(self.plane.api, "/api/proxies").await?;
            let proxies = proxies["proxies"].as_array().context("no proxies")?;
            ensure!(proxies.len() == Side::BOTH.len(), "{} of two are connected", proxies.len());
            for proxy in proxies {
                ensure!(proxy["rejected"].is_null(), "refused: {proxy:#}");
                ensure!(proxy["synced"] == true, "not in step: {proxy:#}");
            }
            anyhow::Ok(())
        })
        .await
    }

    /// Ends all three; neither may have refused anything meanwhile.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.accepted().await?;
        self.sidecar.stop().await?;
        drop(self.envoy);
        self.plane.stop().await;
        Ok(())
    }
}
