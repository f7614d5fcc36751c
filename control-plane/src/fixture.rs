//! A small mesh for tests, as text.

use std::time::Instant;

use crate::resources::{self, Content};
use crate::world::{Event, World};

/// Three services in `shop`, one in `other`.
pub(crate) const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {clusterIPs: [10.96.0.1], ports: [{name: http, port: 8080}, {name: grpc, port: 9000}, {name: db, port: 5432, appProtocol: tcp}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders-v1, namespace: shop}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: orders-v2, namespace: shop}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: vault, namespace: other}
spec: {ports: [{name: http, port: 80}]}
";

/// The objects of a text, all of which must be good.
pub(crate) fn events(text: &str) -> Vec<Event> {
    let documents = resources::parse(text).into_iter().map(|document| match document.content {
        Content::Object(object) => object.set(),
        other => panic!("{:?}: {other:?}", document.label),
    });
    documents.collect()
}

/// The services and these objects.
pub(crate) fn world(objects: &str) -> World {
    let mut world = World::default();
    let text = format!("{SERVICES}---\n{objects}");
    world.apply_all(events(&text), Instant::now());
    world
}
