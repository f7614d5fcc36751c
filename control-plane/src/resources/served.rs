//! Objects as an API server sends them: JSON, one at a time, each of a kind that is known before it is read.
//!
//! In: the text of one object. Out: what [`parse`](super::parse) makes of a document, by the same conversions and with the
//! same words for what is wrong.
//!
//! Surprise: of the kinds that Kubernetes itself defines, unknown fields are passed over. There the server knows the field
//! (it would have refused or dropped it otherwise), and a newer release must not take every Pod out of the mesh. Of the
//! kinds that have a meaning to the mesh alone, a field that is unknown is one that would not be obeyed.

use std::sync::Arc;

use gateway_api::apis::experimental::grpcroutes::GrpcRoute;
use gateway_api::apis::experimental::httproutes::HttpRoute;
use gateway_api::apis::experimental::referencegrants::ReferenceGrant;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::workload::{self, Between, Owner, OwnerId};
use super::{Content, Flaw, Manifest, Object, Refusal, core, gateway, locate, policy, strictly};
use crate::world::ObjectName;

/// A kind that is asked of an API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Served {
    AccessPolicy,
    CircuitBreaker,
    EndpointSlice,
    GrpcRoute,
    HttpRoute,
    Namespace,
    Pod,
    ReferenceGrant,
    Service,
    TrafficPolicy,
}

/// What every object says of itself, whatever its kind. A bookmark has only a version.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stamp {
    /// The namespace; empty for an object without one.
    #[serde(default)]
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) resource_version: Box<str>,
}

/// Reads only what an object is called, and which state of it this is.
pub(crate) fn stamp(text: &str) -> Result<Stamp, serde_json::Error> {
    #[derive(Deserialize)]
    struct Outer {
        metadata: Stamp,
    }
    serde_json::from_str(text).map(|outer: Outer| outer.metadata)
}

/// A pod, and the ReplicaSet or Job that it is named after.
pub(crate) fn pod(text: &str) -> (Content, Option<OwnerId>) {
    let mut after = None;
    let content = known::<Pod>(text, &mut |pod: Pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or(core::DEFAULT_NAMESPACE).into();
        after = workload::named_after(&pod.metadata, &namespace);
        core::pod(pod)
    });
    (content, after)
}

/// What the pods of a ReplicaSet or a Job are called; `text` needs to be no more than its metadata.
pub(crate) fn owner(between: Between, text: &str) -> Result<Owner, String> {
    #[derive(Deserialize)]
    struct Outer {
        metadata: ObjectMeta,
    }
    let outer: Outer = serde_json::from_str(text).map_err(|error| error.to_string())?;
    workload::owner(between, &outer.metadata).map_err(|(_, reason)| reason)
}

/// Reads an object.
pub(crate) fn object(kind: Served, text: &str) -> Content {
    match kind {
        Served::EndpointSlice => known::<EndpointSlice>(text, &mut core::endpoint_slice),
        Served::Namespace => known::<Namespace>(text, &mut core::namespace),
        Served::Pod => pod(text).0,
        Served::Service => known::<Service>(text, &mut core::service),
        Served::GrpcRoute => strict::<GrpcRoute>(text, &mut gateway::grpc_route),
        Served::HttpRoute => strict::<HttpRoute>(text, &mut gateway::http_route),
        Served::ReferenceGrant => strict::<ReferenceGrant>(text, &mut gateway::reference_grant),
        Served::AccessPolicy => strict::<Manifest<_>>(text, &mut policy::access_policy),
        Served::CircuitBreaker => strict::<Manifest<_>>(text, &mut policy::circuit_breaker),
        Served::TrafficPolicy => strict::<Manifest<_>>(text, &mut policy::traffic_policy),
    }
}

type Convert<'a, T> = &'a mut dyn FnMut(T) -> Result<Option<Object>, Refusal>;

/// A kind of Kubernetes' own.
fn known<T: for<'de> Deserialize<'de>>(text: &str, convert: Convert<'_, T>) -> Content {
    match serde_json::from_str(text) {
        Ok(value) => converted(value, convert),
        // Once more, to find the place.
        Err(_) => strict(text, convert),
    }
}

fn strict<T: for<'de> Deserialize<'de>>(text: &str, convert: Convert<'_, T>) -> Content {
    let (mut document, mut budget) = (serde_json::Deserializer::from_str(text), super::FLAWS_MAX);
    match strictly(&mut document, &mut budget, |_| None) {
        Ok(value) => converted(value, convert),
        Err(flaws) => Content::Broken(flaws),
    }
}

fn converted<T>(value: T, convert: Convert<'_, T>) -> Content {
    match convert(value) {
        Ok(Some(object)) => Content::Object(object),
        Ok(None) => Content::Unneeded,
        Err((path, reason)) => {
            Content::Broken(vec![Flaw { line: None, field: locate::display(&path), reason }])
        }
    }
}

impl Served {
    /// The event-less name of an object of this kind, if an object of this name can be in the world at all.
    pub(crate) fn id(self, name: &ObjectName) -> Option<super::ObjectId> {
        use super::ObjectId;
        use crate::world::{PolicyId, PolicyKind, RouteId, RouteKind};
        let policy = |kind| ObjectId::Policy(PolicyId { kind, name: name.clone() });
        let route = |kind| ObjectId::Route(RouteId { kind, name: name.clone() });
        Some(match self {
            Self::AccessPolicy => policy(PolicyKind::AccessPolicy),
            Self::CircuitBreaker => policy(PolicyKind::CircuitBreaker),
            Self::TrafficPolicy => policy(PolicyKind::TrafficPolicy),
            Self::EndpointSlice => ObjectId::Slice(name.clone()),
            Self::GrpcRoute => route(RouteKind::Grpc),
            Self::HttpRoute => route(RouteKind::Http),
            Self::Namespace => ObjectId::Namespace(Arc::clone(&name.name)),
            Self::Pod => ObjectId::Pod(name.clone()),
            Self::ReferenceGrant => ObjectId::Grant(name.clone()),
            Self::Service => ObjectId::Service(weft_wire::ServiceId::new(&name.namespace, &name.name).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_kubernetes_is_understood_and_a_misspelt_policy_is_not() {
        let pod = r#"{"metadata": {"name": "p", "namespace": "shop", "future": 1}, "spec": {"containers": [], "new": {}},
                      "status": {"podIP": "10.0.0.1", "phase": "Running"}}"#;
        assert!(matches!(object(Served::Pod, pod), Content::Object(Object::Pod(_))));
        let policy = r#"{"apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": "p", "namespace": "shop"},
                         "spec": {"targetRefs": [{"kind": "Service", "name": "a"}], "timeout": {"request": "1s"}}}"#;
        let Content::Broken(flaws) = object(Served::TrafficPolicy, policy) else { panic!("it is misspelt") };
        assert_eq!((flaws[0].field.as_str(), flaws[0].reason.as_str()), ("spec.timeout", "unknown field"));
    }

    #[test]
    fn what_the_mesh_itself_writes_into_an_object_is_no_mistake() {
        let policy = r#"{"apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
                         "metadata": {"name": "p", "namespace": "shop", "managedFields": [{"manager": "weft", "fieldsV1": {"f:spec": {}}}]},
                         "spec": {"targetRefs": [{"kind": "Service", "name": "a"}], "timeouts": {"request": "1s"}},
                         "status": {"conditions": [{"type": "Accepted", "anything": []}]}}"#;
        let read = object(Served::TrafficPolicy, policy);
        assert!(matches!(read, Content::Object(Object::Policy(_))), "{read:?}");
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_its_field() {
        for (kind, text, field, reason) in [
            (
                Served::Service,
                r#"{"metadata": {"name": "a", "namespace": "shop"}, "spec": {"ports": [{"port": 70000}]}}"#,
                "spec.ports[0].port",
                "70000 is not a port (1 to 65535)",
            ),
            (
                Served::Service,
                r#"{"metadata": {"name": "a", "namespace": "shop"}, "spec": {"ports": [{"port": "http"}]}}"#,
                "spec.ports[0].port",
                "invalid type: string \"http\", expected i32",
            ),
            (
                Served::HttpRoute,
                r#"{"metadata": {"name": "a"}, "spec": {"rules": {}}}"#,
                "spec.rules",
                "invalid type: map, expected a sequence",
            ),
        ] {
            let Content::Broken(flaws) = object(kind, text) else { panic!("{text} is broken") };
            assert_eq!((flaws[0].field.as_str(), flaws[0].reason.as_str()), (field, reason), "{text}");
        }
        assert!(matches!(object(Served::Service, "[]"), Content::Broken(_)));
        assert!(matches!(object(Served::Pod, "{\"metadata\":"), Content::Broken(_)));
    }
}
