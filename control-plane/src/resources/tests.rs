use proptest::prelude::*;
use weft_wire::xds::Protocol;

use super::*;
use crate::world::{Family, Health, TargetPort};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: orders
  namespace: shop
spec:
  clusterIPs: [10.96.0.7, 'fd00:96::7']
  selector: {app: orders}
  ports:
  - name: http-api
    port: 8080
    targetPort: web
  - name: dns
    port: 53
    protocol: UDP
";

fn only(text: &str) -> Document {
    let mut documents = parse(text);
    assert_eq!(documents.len(), 1, "{documents:?}");
    documents.remove(0)
}

fn object(text: &str) -> Object {
    match only(text).content {
        Content::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn flaws(text: &str) -> Vec<Flaw> {
    match only(text).content {
        Content::Broken(flaws) => flaws,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_service_is_read() {
    let Object::Service(service) = object(SERVICE) else { panic!("not a service") };
    assert_eq!(service.id.to_string(), "orders.shop");
    assert_eq!(
        service.cluster_ips,
        ["10.96.0.7".parse::<std::net::IpAddr>().unwrap(), "fd00:96::7".parse().unwrap()]
    );
    assert_eq!(service.ports.len(), 1, "UDP is left out");
    assert_eq!(service.ports[0].protocol, Some(Protocol::Http));
    assert_eq!(service.ports[0].target, TargetPort::Name("web".into()));
}

#[test]
fn a_service_says_which_family_and_whether_its_own_zone_comes_first() {
    let read = |from: &str, to: &str| match object(&SERVICE.replace(from, to)) {
        Object::Service(service) => (service.family, service.prefers_zone),
        other => panic!("{other:?}"),
    };
    assert_eq!(read("", ""), (Some(Family::V4), false));
    let headless = "clusterIP: None\n  ipFamilies: [IPv6, IPv4]";
    assert_eq!(read("clusterIPs: [10.96.0.7, 'fd00:96::7']", headless), (Some(Family::V6), false));
    let near = "selector: {app: orders}\n  trafficDistribution: PreferClose";
    assert!(read("selector: {app: orders}", near).1);
    let auto = "namespace: shop\n  annotations: {service.kubernetes.io/topology-mode: Auto}";
    assert!(read("namespace: shop", auto).1);
}

#[test]
fn an_endpoint_is_in_the_zone_for_which_it_is_meant() {
    let text = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], zone: a}
- {addresses: [10.0.0.2], zone: a, hints: {forZones: [{name: b}]}}
- {addresses: [10.0.0.3], zone: a, hints: {forZones: [{name: b}, {name: c}]}}
";
    let Object::Slice(slice) = object(text) else { panic!("not a slice") };
    let zones: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.zone.as_deref()).collect();
    assert_eq!(zones, [Some("a"), Some("b"), Some("a")]);
}

#[test]
fn a_container_that_goes_on_running_has_ports_too() {
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
spec:
  initContainers:
  - {name: once, ports: [{name: once, containerPort: 1}]}
  - {name: always, restartPolicy: Always, ports: [{name: admin, containerPort: 2}, {name: web, containerPort: 3}]}
  containers: [{name: c, ports: [{name: web, containerPort: 80}]}]
";
    let Object::Pod(pod) = object(text) else { panic!("not a pod") };
    let ports: Vec<_> = pod.ports.iter().map(|(name, port)| (&**name, *port)).collect();
    assert_eq!(ports, [("admin", 2), ("web", 80)]);
}

#[test]
fn an_unknown_field_is_an_error_that_names_it_and_its_line() {
    let text = SERVICE.replace("    targetPort: web", "    targetPrt: web");
    let expected =
        Flaw { line: Some(12), field: "spec.ports[0].targetPrt".into(), reason: "unknown field".into() };
    assert_eq!(flaws(&text), [expected]);
}

#[test]
fn lines_count_from_the_start_of_the_file_not_of_the_document() {
    let text = format!("# a comment\n---\n{SERVICE}---\n{}", SERVICE.replace("8080", "99999"));
    let documents = parse(&text);
    assert_eq!(documents.len(), 2);
    let Content::Broken(flaws) = &documents[1].content else { panic!("{documents:?}") };
    assert_eq!(flaws[0].line, Some(2 + 15 + 1 + 11));
    assert_eq!(flaws[0].field, "spec.ports[0].port");
    assert_eq!(flaws[0].reason, "99999 is not a port (1 to 65535)");
    assert_eq!(documents[1].label.as_deref(), Some("Service shop/orders"));
}

#[test]
fn a_wrong_type_is_placed() {
    let text = SERVICE.replace("8080", "eighty");
    let flaws = flaws(&text);
    assert_eq!(flaws[0].line, Some(11));
    assert_eq!(flaws[0].field, "spec.ports[0].port");
    assert!(flaws[0].reason.contains("eighty"), "{flaws:?}");
    assert!(!flaws[0].reason.contains("at line"), "{flaws:?}");
}

#[test]
fn broken_yaml_is_placed() {
    let flaws = flaws("apiVersion: v1\nkind: Service\nmetadata: {name: x\n");
    assert!(flaws[0].line.is_some_and(|line| line >= 3), "{flaws:?}");
}

#[test]
fn other_kinds_are_told_apart_from_errors() {
    let document = only("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: x\n");
    assert_eq!(document.content, Content::Unsupported { line: Some(2), kind: "apps/v1 Deployment".into() });
    assert_eq!(document.label.as_deref(), Some("Deployment default/x"));
}

#[test]
fn a_document_without_kind_says_so() {
    assert_eq!(flaws("metadata: {name: x}\n")[0].field, "kind");
    assert!(parse("").is_empty());
    assert!(parse("---\n# nothing\n---\n").is_empty());
}

#[test]
fn endpoint_conditions_mean_what_kubernetes_says() {
    let text = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http-api, port: 8000}]
endpoints:
- {addresses: [10.0.0.1]}
- {addresses: [10.0.0.2], conditions: {ready: false}}
- {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.4], conditions: {ready: true}, targetRef: {kind: Pod, name: orders-4}}
";
    let Object::Slice(slice) = object(text) else { panic!("not a slice") };
    let health: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.health).collect();
    assert_eq!(health, [Health::Ready, Health::NotReady, Health::Draining, Health::Ready]);
    assert_eq!(slice.endpoints[3].pod.as_ref().map(ToString::to_string).as_deref(), Some("shop/orders-4"));
}

#[test]
fn workloads_are_named_by_owner_then_label_then_app_then_pod() {
    let pod = |metadata: &str| {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p-1, {metadata}}}\n");
        match object(&text) {
            Object::Pod(pod) => pod.workload.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let owner = |kind: &str, name: &str| {
        format!("ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {name}, uid: u, controller: true}}]")
    };
    let deployed = owner("ReplicaSet", "cart-7c4f");
    assert_eq!(
        pod(&format!(
            "labels: {{app.kubernetes.io/name: orders, app: x, pod-template-hash: 7c4f}}, {deployed}"
        )),
        "default/cart"
    );
    assert_eq!(pod("labels: {app.kubernetes.io/name: orders, app: x}"), "default/orders");
    assert_eq!(pod(&format!("labels: {{pod-template-hash: 7c4f, app: x}}, {deployed}")), "default/cart");
    assert_eq!(pod(&owner("ReplicaSet", "bare-rs")), "default/bare-rs");
    assert_eq!(pod(&owner("StatefulSet", "db")), "default/db");
    assert_eq!(pod(&owner("Job", "report-28391040")), "default/report");
    assert_eq!(pod("labels: {app: web}"), "default/web");
    assert_eq!(pod("labels: {app: Not_A_Name}"), "default/p-1");
    assert_eq!(pod("namespace: shop"), "shop/p-1");
}

#[test]
fn finished_pods_and_host_network_pods_own_no_address() {
    let pod = |spec: &str, phase: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{containers: []{spec}}}\nstatus: {{phase: {phase}, podIP: 10.0.0.1}}\n"
        );
        match object(&text) {
            Object::Pod(pod) => pod.addresses.len(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(pod("", "Running"), 1);
    assert_eq!(pod("", "Succeeded"), 0);
    assert_eq!(pod(", hostNetwork: true", "Running"), 0);
}

#[test]
fn aliases_are_followed_within_reason() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, labels: &l {app: a}}\nspec: {selector: *l, ports: [{port: 1}]}\n";
    assert!(matches!(object(text), Object::Service(_)));
    // Twelve kilobytes that would become four million values, within the YAML reader's own bound on aliases.
    let (list, aliases) = (vec!["a"; 2000].join(","), vec!["*x"; 2000].join(", "));
    let bomb =
        format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  x: &x [{list}]\n  y: [{aliases}]\n");
    for text in [bomb.clone(), bomb.replace("metadata:\n", "spec:\n")] {
        let flaws = flaws(&text);
        assert!(flaws[0].reason.contains("its aliases make it"), "{flaws:?}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "[a-z:{}\\[\\]\"'\n \t&*!|>%@-]{0,200}") {
        drop(parse(&text));
    }

    #[test]
    fn a_service_with_one_line_damaged_never_panics(line in 0usize..15, junk in "[ -~]{0,40}") {
        let mut lines: Vec<&str> = SERVICE.lines().collect();
        lines[line] = &junk;
        drop(parse(&lines.join("\n")));
    }
}
