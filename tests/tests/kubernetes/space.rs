//! A namespace of the cluster that `KUBECONFIG` names, for tests that keep to it.
//!
//! Nothing here needs nodes: what a kubelet or a controller would write, the tests write.

use std::path::PathBuf;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, PostParams};

/// A namespace of a real cluster; the reason is printed where there is none.
pub(crate) struct Space {
    pub(crate) kubeconfig: PathBuf,
    pub(crate) client: kube::Client,
    pub(crate) name: String,
}

impl Space {
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    pub(crate) async fn new(purpose: &str) -> anyhow::Result<Option<Self>> {
        let Some(kubeconfig) = std::env::var_os("KUBECONFIG").map(PathBuf::from) else {
            eprintln!("skipped: KUBECONFIG names no cluster");
            return Ok(None);
        };
        let client = kube::Client::try_default().await.context("use KUBECONFIG")?;
        let name = format!("weft-test-{purpose}-{:08x}", fastrand::u32(..));
        let space: Namespace = serde_json::from_value(serde_json::json!({ "metadata": { "name": name } }))
            .context("a namespace")?;
        Api::all(client.clone()).create(&PostParams::default(), &space).await?;
        Ok(Some(Self { kubeconfig, client, name }))
    }

    /// Deletes it. A test that fails leaves it there to be looked at.
    pub(crate) async fn end(self) -> anyhow::Result<()> {
        Api::<Namespace>::all(self.client).delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}
