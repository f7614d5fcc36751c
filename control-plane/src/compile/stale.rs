//! Whatever changes a resource touches it: the promise that sidecars are never left with what is no longer so.

use std::collections::HashMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::resources::{self, Content, Object};
use crate::world::Event;

/// Objects that have to do with each other. Some come twice, differently, under one name: the second of them where
/// more depends on them.
const OBJECTS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, spec: {ports: [{name: web, port: 80, appProtocol: tcp}, {name: http, port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, spec: {clusterIPs: [10.96.0.1], ports: [{name: http, port: 80}, {name: rpc, port: 81}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v1, namespace: shop}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: v2, namespace: shop}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: vault, namespace: other}, spec: {ports: [{name: http, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: o, namespace: shop, labels: {kubernetes.io/service-name: orders}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, namespace: shop, labels: {kubernetes.io/service-name: v1}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a, namespace: shop, labels: {kubernetes.io/service-name: v2}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.2], zone: eu}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: v, namespace: other, labels: {kubernetes.io/service-name: vault}}, addressType: IPv4, ports: [{name: http, port: 80}], endpoints: [{addresses: [10.0.0.3]}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: p}}, status: {podIP: 10.0.0.2}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: orders, sectionName: http}], rules: [{backendRefs: [{name: vault, namespace: other, port: 80}], filters: [{type: RequestMirror, requestMirror: {backendRef: {name: v2, port: 80}}}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: orders}], rules: [{name: one, backendRefs: [{name: v1, port: 80}, {name: v2, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: GRPCRoute, metadata: {name: g, namespace: shop}, spec: {parentRefs: [{group: '', kind: Service, name: orders, port: 81}], rules: [{backendRefs: [{name: v2, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: c, namespace: other}, spec: {parentRefs: [{group: '', kind: Service, name: orders, namespace: shop}], rules: [{backendRefs: [{name: vault, port: 80}]}]}}
---
{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: g, namespace: other}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}}
---
{apiVersion: gateway.networking.k8s.io/v1beta1, kind: ReferenceGrant, metadata: {name: g, namespace: other}, spec: {from: [{group: weft.dev, kind: TrafficPolicy, namespace: shop}], to: [{group: '', kind: Service, name: vault}]}}
---
{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, spec: {targetRefs: [{kind: Service, name: orders}], rateLimit: {requests: 1, by: [route]}, mirror: {backendRef: {name: vault, namespace: other, port: 80}}}}
---
{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: p, namespace: shop}, spec: {targetRefs: [{kind: Service, name: v1}, {kind: Service, name: v2, sectionName: http}], loadBalancer: {type: Maglev, hashOn: {header: x}}, concurrency: {adaptive: {}}}}
---
{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: q, namespace: shop}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: one}], rateLimit: {requests: 2}}}
---
{apiVersion: weft.dev/v1alpha1, kind: TrafficPolicy, metadata: {name: q, namespace: shop}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}, {kind: Service, name: orders}], rateLimit: {requests: 3}, timeouts: {request: 1s}}}
---
{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {name: a, namespace: shop}, spec: {rules: [{from: [{serviceAccount: web}]}], mtls: {mode: strict}}}
---
{apiVersion: weft.dev/v1alpha1, kind: AccessPolicy, metadata: {name: a, namespace: shop}, spec: {targetRefs: [{kind: Service, name: orders, sectionName: http}, {kind: Service, name: v2}], action: Deny, rules: [{}]}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {weft.dev/default-access: deny}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: other, annotations: {weft.dev/default-access: deny}}}
---
{apiVersion: weft.dev/v1alpha1, kind: CircuitBreaker, metadata: {name: b, namespace: shop}, spec: {targetRefs: [{kind: Service, name: orders, sectionName: http}, {kind: Service, name: v1}], service: {openFor: 1s}}}
";

fn objects() -> Vec<Object> {
    let documents = resources::parse(OBJECTS).into_iter().map(|document| match document.content {
        Content::Object(object) => object,
        other => panic!("{:?}: {other:?}", document.label),
    });
    documents.collect()
}

/// Everything that a sidecar of either namespace may ask for.
fn questions() -> Vec<(Kind, String, &'static str)> {
    let services = ["orders.shop:80", "orders.shop:81", "v1.shop:80", "v2.shop:80", "vault.other:80"];
    let addresses = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"];
    let direct = addresses.map(|address| format!("endpoint/{address}"));
    let own = addresses.map(|address| format!("inbound/{address}"));
    let clusters: Vec<String> =
        services.map(str::to_owned).into_iter().chain(direct).chain(own.clone()).collect();
    let outbound = addresses.into_iter().chain(["10.96.0.1:80", "orders.shop:80", "orders:81"]);
    let listeners: Vec<String> = outbound.map(|to| format!("outbound/{to}")).chain(own).collect();
    let mut questions = Vec::new();
    for namespace in ["shop", "other"] {
        for kind in [Kind::Cluster, Kind::Endpoint, Kind::Route] {
            questions.extend(clusters.iter().map(|name| (kind, name.clone(), namespace)));
        }
        questions.extend(listeners.iter().map(|name| (Kind::Listener, name.clone(), namespace)));
    }
    questions
}

type Answers = HashMap<(Kind, String, &'static str), Option<Box<str>>>;

fn answers(world: &World) -> Answers {
    let answer = |(kind, name, namespace): (Kind, String, &'static str)| {
        let version = resource(world, kind, &name, namespace).map(|resource| resource.version);
        ((kind, name, namespace), version)
    };
    questions().into_iter().map(answer).collect()
}

proptest! {
    // Each step of a case compiles eighty resources.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_changes_is_touched_and_nothing_is_stale(steps in prop::collection::vec((any::<prop::sample::Index>(), 0u8..4), 1..40)) {
        let (objects, now) = (objects(), Instant::now());
        let mut world = World::default();
        // From a world that is full, or little of what belongs together would ever be there together.
        world.apply_all(objects.iter().cloned().map(Object::set), now);
        let mut current: HashMap<_, _> = objects.iter().map(|object| (object.id(), object.clone())).collect();
        let mut before = answers(&world);
        for (which, dice) in steps {
            let object = which.get(&objects).clone();
            let event: Event = if dice == 0 {
                current.remove(&object.id());
                object.id().gone()
            } else {
                current.insert(object.id(), object.clone());
                object.set()
            };
            let told = format!("{event:?}");
            let touched = world.apply(event, now);
            let after = answers(&world);
            for (question, answer) in &after {
                let (kind, name, namespace) = question;
                let is_told = depends_on(*kind, name, namespace).is_some_and(|key| touched.contains(&key));
                prop_assert!(before[question] == *answer || is_told, "{question:?} after {told}");
            }
            before = after;
        }
        // What is derived and was not derived anew changes no answer, and is wrong all the same.
        let mut fresh = World::default();
        fresh.apply_all(current.into_values().map(Object::set), now);
        prop_assert_eq!(before, answers(&fresh));
    }
}
