//! What the control plane says about the mesh, and is asked for.

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use weft_cli::fabric;
use weft_wire::port;

use super::Mesh;

impl Mesh {
    /// Asks the control plane's API.
    ///
    /// # Errors
    /// When it does not answer with JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(path, None)
    }

    /// Posts `sent`, or gets.
    pub(super) fn ask(&self, path: &str, sent: Option<&Value>) -> anyhow::Result<Value> {
        let url = format!("http://{}:{}{path}", fabric::HUB, port::API);
        let mut curl = self.fabric.command("curl").args(["-sS", "--max-time", "5", &url]);
        if let Some(sent) = sent {
            curl = curl.args(["-H", "content-type: application/json", "-d", &sent.to_string()]);
        }
        let output = curl.output()?;
        ensure!(output.status.success(), "{url}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{url}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// The edge between two nodes, by their ids, in the last minute's graph.
    ///
    /// # Errors
    /// When there is none; the message lists the edges there are.
    pub fn edge(&self, source: &str, target: &str) -> anyhow::Result<Value> {
        self.find_edge(source, target, |_| true)
    }

    /// As [`Mesh::edge`], the one of this protocol.
    ///
    /// # Errors
    /// As [`Mesh::edge`].
    pub fn edge_in(&self, protocol: &str, source: &str, target: &str) -> anyhow::Result<Value> {
        self.find_edge(source, target, |edge| edge["protocol"] == protocol)
    }

    fn find_edge(
        &self,
        source: &str,
        target: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let graph = self.get("/api/graph?window=1m")?;
        let edges = graph["edges"].as_array().context("no edges in the answer")?;
        let between = |edge: &&Value| edge["source"] == source && edge["target"] == target;
        match edges.iter().filter(between).find(|edge| wanted(edge)) {
            Some(edge) => Ok(edge.clone()),
            None => {
                let there: Vec<String> = edges
                    .iter()
                    .map(|edge| format!("{} -{}-> {}", edge["source"], edge["protocol"], edge["target"]))
                    .collect();
                bail!("no such edge {source} -> {target} among {there:?}")
            }
        }
    }
}
