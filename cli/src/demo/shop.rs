//! The shop for a cluster: `k8s/demo`, made from the same cast as `weft demo`.
//!
//! In: the cast. Out: three files: what runs; policies, which need Weft's kinds; a canary's route, which needs the Gateway API's.
//! Surprise: the bank is in a namespace of its own without sidecars, because it stands for somebody else's service, and one cart
//! is a Deployment of its own, because it is the one that fails.

use serde_json::{Value, json};
use weft_wire::annotation::INJECT;

use super::cast::{CAST, NAMESPACE, Part, Role};
use super::manifest::{protection, route};

/// Where the bank is: outside, as far as the mesh is concerned.
const BANK_NAMESPACE: &str = "bank";
/// The bank's Service, which callers know as `api.bank`.
const BANK_SERVICE: &str = "api";

const ABOUT: &str = "\
# The shop of `weft demo` in a cluster: twelve small programs that know nothing of a mesh, in a namespace that asks for sidecars.
#
#   k8s/image/build.sh                          makes the images weft, weft-proxy and weft-control-plane
#   ctr -n k8s.io images import FILE            or `kind load image-archive FILE`: gives them to a cluster's nodes
#   weft install | kubectl apply -f -
#   kubectl apply -f k8s/demo/shop.yaml -f k8s/demo/policies.yaml
#   kubectl apply -f k8s/demo/canary.yaml       if the cluster has the Gateway API's kinds
#
# All programs are one: the image `weft`, which is the command that you installed Weft with.
";

/// The files: name and text.
pub(super) fn files() -> Vec<(String, String)> {
    let mut shop = vec![namespace(NAMESPACE, Some("enabled")), namespace(BANK_NAMESPACE, None)];
    for role in CAST {
        shop.push(account(role));
        shop.extend(deployments(role));
        shop.extend(services(role));
    }
    let policies: Vec<Value> = CAST.iter().filter(|role| role.frail).flat_map(protection).collect();
    let canary: Vec<Value> = CAST.iter().filter(|role| role.versions.len() > 1).map(route).collect();
    let of = |name: &str, head: &str, objects: &[Value]| {
        (format!("demo/{name}.yaml"), format!("{head}{}", text(objects)))
    };
    vec![
        of("shop", ABOUT, &shop),
        of(
            "policies",
            "# One of three carts fails every 45 seconds: what its callers do about it.\n",
            &policies,
        ),
        of("canary", "# A tenth of the calls of the catalog go to its second version.\n", &canary),
    ]
}

fn text(objects: &[Value]) -> String {
    let documents =
        objects.iter().map(|object| weft_control_plane::yaml::text(object).expect("objects are YAML"));
    documents.collect::<Vec<_>>().join("---\n")
}

fn namespace(name: &str, inject: Option<&str>) -> Value {
    let mut labels = json!({ "app.kubernetes.io/part-of": "shop" });
    if let Some(word) = inject {
        labels[INJECT] = word.into();
    }
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn of(role: &Role) -> &'static str {
    if role.part == Part::External { BANK_NAMESPACE } else { NAMESPACE }
}

/// Everybody has an account of their own, which is who they are in the mesh.
fn account(role: &Role) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": role.name, "namespace": of(role) },
        "automountServiceAccountToken": false,
    })
}

fn labels(role: &Role, version: &str) -> Value {
    json!({
        "app.kubernetes.io/name": role.name,
        "app.kubernetes.io/part-of": "shop",
        "app.kubernetes.io/version": version,
    })
}

fn deployments(role: &Role) -> Vec<Value> {
    let canary = role.versions.len() > 1;
    let mut all = Vec::new();
    for (version, _) in role.versions {
        let name = if canary { format!("{}-{version}", role.name) } else { role.name.to_owned() };
        let sound = role.replicas - u8::from(role.frail);
        all.push(deployment(role, &name, version, sound, false));
        if role.frail {
            all.push(deployment(role, &format!("{name}-frail"), version, 1, true));
        }
    }
    all
}

fn deployment(role: &Role, name: &str, version: &str, replicas: u8, frail: bool) -> Value {
    let mut labels = labels(role, version);
    // Tells the Deployments of one program apart.
    labels["app.kubernetes.io/instance"] = name.into();
    let selector = labels.clone();
    if role.part == Part::Unmeshed {
        labels[INJECT] = "disabled".into();
    }
    let mut pod = json!({
        "serviceAccountName": role.name,
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 10,
        "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [container(role, version, frail)],
    });
    if role.port.is_some_and(|port| port.number < 1024) {
        // A port below 1024 without a privilege.
        pod["securityContext"]["sysctls"] =
            json!([{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "0" }]);
    }
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": name, "namespace": of(role), "labels": labels },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": selector },
            "template": { "metadata": { "labels": labels }, "spec": pod },
        },
    })
}

fn container(role: &Role, version: &str, frail: bool) -> Value {
    let mut environment = vec![json!({ "name": "WEFT_DEMO_VERSION", "value": version })];
    if frail {
        environment.push(json!({ "name": "WEFT_DEMO_FRAIL", "value": "1" }));
    }
    if role.name == "payments" {
        environment.push(
            json!({ "name": "WEFT_DEMO_BANK", "value": format!("http://{BANK_SERVICE}.{BANK_NAMESPACE}") }),
        );
    }
    let mut container = json!({
        "name": role.name,
        "image": format!("weft:{}", env!("CARGO_PKG_VERSION")),
        "imagePullPolicy": "IfNotPresent",
        "args": ["demo-app", role.name],
        "env": environment,
        "resources": { "requests": { "cpu": "10m", "memory": "16Mi" }, "limits": { "memory": "128Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
    });
    if let Some(port) = role.port {
        container["ports"] = json!([{ "name": port.name, "containerPort": port.number }]);
        container["readinessProbe"] = json!({ "tcpSocket": { "port": port.name }, "periodSeconds": 2 });
        // The program stops listening at its signal, which comes before every caller has heard that the pod goes.
        container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": 2 } } });
    }
    container
}

/// One Service, and one for each version where there are several: a route splits calls between them.
fn services(role: &Role) -> Vec<Value> {
    let Some(port) = role.port else { return Vec::new() };
    let service = |name: &str, version: Option<&str>| {
        let mut selector = json!({ "app.kubernetes.io/name": role.name });
        if let Some(version) = version {
            selector["app.kubernetes.io/version"] = version.into();
        }
        let mut declared = json!({ "name": port.name, "port": port.number, "targetPort": port.name });
        if let Some(protocol) = port.protocol {
            declared["appProtocol"] = protocol.into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": of(role) },
            "spec": { "selector": selector, "ports": [declared] },
        })
    };
    let name = if role.part == Part::External { BANK_SERVICE } else { role.name };
    let mut all = vec![service(name, None)];
    if role.versions.len() > 1 {
        all.extend(
            role.versions.iter().map(|(version, _)| service(&format!("{name}-{version}"), Some(version))),
        );
    }
    all
}

#[cfg(test)]
mod tests {
    use weft_control_plane::install::{checked_in, yaml};
    use weft_control_plane::pod_security;

    use super::*;

    fn objects() -> Vec<serde_yaml::Value> {
        let texts: Vec<String> = files().into_iter().map(|(_, text)| text).collect();
        texts
            .iter()
            .flat_map(|text| text.split("---\n"))
            .map(|one| serde_yaml::from_str(one).expect("YAML"))
            .collect()
    }

    #[test]
    fn the_files_are_what_the_cast_says() {
        let files = files();
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        checked_in::compare(&files, "cargo test -p weft-cli --lib demo::shop");
    }

    #[test]
    fn the_shop_is_objects_of_the_api_and_restricted() {
        let mut pods = 0;
        for object in objects() {
            let version = object["apiVersion"].as_str().expect("a version");
            if version.starts_with("weft.dev/") || version.starts_with("gateway.networking.k8s.io/") {
                let documents =
                    weft_control_plane::resources::parse(&serde_yaml::to_string(&object).expect("YAML"));
                let read = matches!(documents[0].content, weft_control_plane::resources::Content::Object(_));
                assert!(read, "{documents:?}");
                continue;
            }
            yaml::typed(&object).unwrap_or_else(|error| panic!("{error}: {object:?}"));
            if object["kind"] == "Deployment" {
                pods += 1;
                let spec = serde_yaml::from_value(object["spec"]["template"]["spec"].clone()).expect("a pod");
                assert_eq!(pod_security::restricted(&spec), [""; 0], "{object:?}");
            }
        }
        // Two catalogs, and the frail cart.
        assert_eq!(pods, CAST.len() + 2);
    }

    #[test]
    fn every_selector_finds_the_pods_that_are_meant() {
        let objects = objects();
        let of = |kind: &str| objects.iter().filter(|one| one["kind"] == kind).cloned().collect::<Vec<_>>();
        for service in of("Service") {
            let selector = service["spec"]["selector"].as_mapping().expect("a selector").clone();
            let found = of("Deployment").into_iter().filter(|one| {
                let labels = &one["spec"]["template"]["metadata"]["labels"];
                one["metadata"]["namespace"] == service["metadata"]["namespace"]
                    && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            assert!(found.count() > 0, "{service:?}");
        }
    }
}
