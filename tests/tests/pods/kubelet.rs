//! What the kubelet does with a pod and podman does not: the order of start and end, native sidecars, probes and hooks.
//!
//! In: the pod's manifest and podman, which has made its containers and started none. Out: a running pod, or an ended one.
//! As Kubernetes documents it: init containers one after the other, a native sidecar (`restartPolicy: Always`) until its startup
//! probe holds, the others until they have succeeded; then the containers, each until its start hook has ended. At the end the
//! containers first and native sidecars after them, in reverse.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use weft_tests::podman::Podman;
use weft_tests::poll;

use crate::DEADLINE;

/// One pod, in the kubelet's hands.
pub(super) struct Kubelet<'a> {
    pub(super) podman: &'a Podman,
    pub(super) pod: &'a Value,
    pub(super) address: &'a str,
}

impl Kubelet<'_> {
    /// Starts everything in order.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        self.initialize()?;
        for container in self.containers("containers") {
            self.start_container(container)?;
            self.started(container)?;
        }
        Ok(())
    }

    /// Starts what stands before the containers.
    pub(super) fn initialize(&self) -> anyhow::Result<()> {
        for container in self.containers("initContainers") {
            let name = self.start_container(container)?;
            if is_sidecar(container) {
                self.probed(container, "startupProbe").with_context(|| name)?;
            } else {
                let code = self.ended(&name)?;
                ensure!(code == 0, "{name} ended with {code}: {}", self.podman.log(&name)?);
            }
        }
        Ok(())
    }

    /// Runs a container's start hook, before whose end no other container is started.
    pub(super) fn started(&self, container: &Value) -> anyhow::Result<()> {
        let hook = container["lifecycle"]["postStart"]["exec"]["command"].as_array();
        if let Some(command) = hook {
            let command = command.iter().filter_map(Value::as_str);
            self.podman.run("podman", ["exec", &self.name(container)].into_iter().chain(command))?;
        }
        Ok(())
    }

    /// A container of this name.
    pub(super) fn container(&self, name: &str) -> anyhow::Result<&Value> {
        let mut all = self.containers("initContainers").chain(self.containers("containers"));
        all.find(|container| container["name"] == name).with_context(|| format!("no container {name}"))
    }

    /// Ends everything in order, and answers with which code each container did.
    pub(super) fn end(&self, grace: u64) -> anyhow::Result<Vec<(String, i64)>> {
        let running = |container: &Value| {
            let name = self.name(container);
            let state = self.podman.inspect(&name).ok()?;
            (state["State"]["Running"] == true).then_some(name)
        };
        let stop = |names: Vec<String>| -> anyhow::Result<()> {
            if names.is_empty() {
                return Ok(());
            }
            let grace = grace.to_string();
            // All of them at once.
            let all = ["stop", "--time", &grace].into_iter().map(str::to_owned).chain(names);
            self.podman.run("podman", all).map(drop)
        };
        stop(self.containers("containers").filter_map(running).collect())?;
        let sidecars: Vec<&Value> = self.containers("initContainers").filter(|c| is_sidecar(c)).collect();
        for sidecar in sidecars.into_iter().rev() {
            stop(running(sidecar).into_iter().collect())?;
        }
        let all = self.containers("initContainers").chain(self.containers("containers"));
        all.map(|container| {
            let name = self.name(container);
            let code = self.ended(&name)?;
            Ok((name, code))
        })
        .collect()
    }

    /// Waits for a container's end; its code.
    pub(super) fn ended(&self, name: &str) -> anyhow::Result<i64> {
        poll::until_blocking("a container ends", DEADLINE, || {
            let state = self.podman.inspect(name)?["State"].take();
            ensure!(
                state["Running"] == false && state["Status"] == "exited",
                "{name} is {}",
                state["Status"]
            );
            state["ExitCode"].as_i64().context("no exit code")
        })
    }

    fn containers(&self, list: &str) -> impl Iterator<Item = &Value> {
        self.pod["spec"][list].as_array().into_iter().flatten()
    }

    fn name(&self, container: &Value) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        format!("{}-{}", text(&self.pod["metadata"]["name"]), text(&container["name"]))
    }

    pub(super) fn start_container(&self, container: &Value) -> anyhow::Result<String> {
        let name = self.name(container);
        self.podman.run("podman", ["start", &name])?;
        Ok(name)
    }

    /// Asks from the node, as the kubelet does.
    pub(super) fn probed(&self, container: &Value, probe: &str) -> anyhow::Result<()> {
        let http = &container[probe]["httpGet"];
        let (port, path) = (http["port"].as_u64().context("no port")?, http["path"].as_str().unwrap_or("/"));
        let url = format!("http://{}:{port}{path}", self.address);
        let attempts = container[probe]["failureThreshold"].as_u64().unwrap_or(3);
        let deadline =
            Duration::from_secs(attempts * container[probe]["periodSeconds"].as_u64().unwrap_or(10));
        poll::until_blocking(probe, deadline, || {
            self.podman.run("curl", ["-sSf", "--max-time", "1", &url]).map(drop)
        })
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}
