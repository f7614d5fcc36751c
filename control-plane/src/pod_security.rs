//! Kubernetes' Pod Security standard, *restricted*: what of it a pod breaks.
//!
//! In: a pod's spec. Out: each violation as a sentence; none for a pod that a namespace with
//! `pod-security.kubernetes.io/enforce: restricted` admits. For tests of what the injector and the installer write, and for
//! `weft check`. Source: Kubernetes, "Pod Security Standards", version 1.36. Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec, SecurityContext};

/// Kinds of volumes that are allowed.
const VOLUMES: &str =
    "configMap, csi, downwardAPI, emptyDir, ephemeral, persistentVolumeClaim, projected and secret";

/// What the pod breaks.
#[must_use]
pub fn restricted(spec: &PodSpec) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in
        [("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)]
    {
        if value == Some(true) {
            found.push(format!("{name} is true"));
        }
    }
    for volume in spec.volumes.iter().flatten() {
        let allowed = volume.config_map.is_some()
            || volume.csi.is_some()
            || volume.downward_api.is_some()
            || volume.empty_dir.is_some()
            || volume.ephemeral.is_some()
            || volume.persistent_volume_claim.is_some()
            || volume.projected.is_some()
            || volume.secret.is_some();
        if !allowed {
            found.push(format!("volume {} is not one of {VOLUMES}", volume.name));
        }
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        of_container(spec, container, &mut found);
    }
    found
}

fn of_container(spec: &PodSpec, container: &Container, found: &mut Vec<String>) {
    let pod = spec.security_context.as_ref();
    let nothing = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&nothing);
    let mut broken = |what: &str| found.push(format!("container {}: {what}", container.name));
    if own.privileged == Some(true) {
        broken("privileged is true");
    }
    if own.allow_privilege_escalation != Some(false) {
        broken("allowPrivilegeEscalation is not false");
    }
    if own.run_as_non_root.or(pod.and_then(|pod| pod.run_as_non_root)) != Some(true) {
        broken("runAsNonRoot is not true");
    }
    if own.run_as_user.or(pod.and_then(|pod| pod.run_as_user)) == Some(0) {
        broken("runAsUser is 0");
    }
    let seccomp = own.seccomp_profile.as_ref().or(pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    if !seccomp.is_some_and(|profile| matches!(profile.type_.as_str(), "RuntimeDefault" | "Localhost")) {
        broken("seccompProfile is not RuntimeDefault or Localhost");
    }
    let capabilities = own.capabilities.as_ref();
    let list = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    if !list(capabilities.and_then(|all| all.drop.as_ref())).iter().any(|name| name == "ALL") {
        broken("capabilities.drop does not have ALL");
    }
    for name in list(capabilities.and_then(|all| all.add.as_ref())) {
        if name != "NET_BIND_SERVICE" {
            broken(&format!("capabilities.add has {name}"));
        }
    }
    if own.proc_mount.as_deref().is_some_and(|mount| mount != "Default") {
        broken("procMount is not Default");
    }
    for port in container.ports.iter().flatten() {
        if port.host_port.is_some_and(|port| port != 0) {
            broken("it has a hostPort");
        }
    }
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let hosts = probes.into_iter().flatten().filter_map(|probe| {
        let http = probe.http_get.as_ref().and_then(|get| get.host.as_deref());
        http.or_else(|| probe.tcp_socket.as_ref()?.host.as_deref())
    });
    for host in hosts.filter(|host| !host.is_empty()) {
        broken(&format!("a probe asks host {host:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: &str) -> PodSpec {
        serde_yaml::from_str(yaml).expect("a spec")
    }

    #[test]
    fn a_pod_that_says_nothing_breaks_four_rules() {
        let found = restricted(&spec("containers: [{name: a}]"));
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn each_rule_can_be_broken() {
        let good = "securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}\n";
        let container = |rest: &str, own: &str| {
            spec(&format!(
                "{good}containers: [{{name: a, securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}{own}}}{rest}}}]"
            ))
        };
        assert_eq!(restricted(&container("", "")), Vec::<String>::new());
        for (rest, own, word) in [
            ("", ", privileged: true", "privileged"),
            ("", ", runAsUser: 0", "runAsUser"),
            ("", ", runAsNonRoot: false", "runAsNonRoot"),
            ("", ", procMount: Unmasked", "procMount"),
            ("", ", seccompProfile: {type: Unconfined}", "seccompProfile"),
            (", ports: [{containerPort: 1, hostPort: 1}]", "", "hostPort"),
            (", livenessProbe: {httpGet: {port: 1, host: a}}", "", "host \"a\""),
        ] {
            let found = restricted(&container(rest, own));
            assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
        }
        for (more, word) in [
            ("hostNetwork: true", "hostNetwork"),
            ("hostPID: true", "hostPID"),
            ("hostIPC: true", "hostIPC"),
            ("volumes: [{name: v, hostPath: {path: /}}]", "volume v"),
        ] {
            let found = restricted(&spec(&format!("{more}\ncontainers: []")));
            assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
        }
    }
}
