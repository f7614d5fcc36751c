//! Whether whoever proved an identity may be whom it says it is.
//!
//! In: an identity, and what its owner says of itself when it opens a configuration stream or sends a report. Out: nothing, or
//! a [`Mismatch`] that says what does not fit. Pure. On connections without proof (plain text, `--insecure`) nobody asks.
//!
//! The rule: everything stays inside the identity's namespace, and nobody registers at the address of another namespace's
//! service. Where pods are known at the addresses that are claimed, they
//! must run as that service account; else the workload is named like the service account, or a join token for that account was
//! made for it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use prometheus::{IntCounterVec, Opts, Registry};
use weft_wire::node::NodeMetadata;
use weft_wire::{SpiffeId, WorkloadId};

use crate::world::World;

/// What does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Another namespace.
    #[error("{id} may not be the workload {workload}: it is of another namespace")]
    Namespace {
        /// Who it is.
        id: SpiffeId,
        /// What it says.
        workload: WorkloadId,
    },
    /// A pod that runs as somebody else.
    #[error(
        "{id} may not claim the address {address}: the pod {pod} there runs as the service account {runs_as}"
    )]
    Pod {
        /// Who it is.
        id: SpiffeId,
        /// What it claims.
        address: IpAddr,
        /// Whose that is.
        pod: String,
        /// What that runs as.
        runs_as: String,
    },
    /// A workload of another name.
    #[error(
        "{id} may not be the workload {workload}: no pod says so, the name is not that of the service account, and no join \
         token was made for both (weft token create --name {} --service-account {})",
        .workload.name(),
        .id.service_account()
    )]
    Workload {
        /// Who it is.
        id: SpiffeId,
        /// What it says.
        workload: WorkloadId,
    },
    /// A service of another namespace.
    #[error("{id} may not register for {service}: it is of another namespace")]
    Service {
        /// Who it is.
        id: SpiffeId,
        /// What it wants to serve.
        service: String,
    },
    /// An address of a service of another namespace.
    #[error("{id} may not register at {address}: {service} is there, which is of another namespace")]
    Address {
        /// Who it is.
        id: SpiffeId,
        /// Where it wants to serve.
        address: SocketAddr,
        /// Who serves there already.
        service: String,
    },
    /// An instance that somebody else is.
    #[error("{id} may not be the instance {instance}: that is connected as {other}")]
    Instance {
        /// Who it is.
        id: SpiffeId,
        /// What it says.
        instance: String,
        /// Who that is.
        other: String,
    },
}

impl Mismatch {
    /// The word in metrics.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Namespace { .. } => "namespace",
            Self::Pod { .. } => "pod",
            Self::Workload { .. } => "workload",
            Self::Service { .. } => "service",
            Self::Address { .. } => "address",
            Self::Instance { .. } => "instance",
        }
    }
}

/// What a report says of who sends it.
#[derive(Debug, Clone, Copy)]
pub struct Report<'a> {
    /// The instance, if it says.
    pub instance: Option<&'a str>,
    /// The workload.
    pub workload: &'a WorkloadId,
    /// The other end of the connection.
    pub from: Option<IpAddr>,
}

/// Whether an identity was given out for a workload of another name.
pub type Bound = Arc<dyn Fn(&SpiffeId, &WorkloadId) -> bool + Send + Sync>;

/// Decides, and counts what it refuses. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    bound: Bound,
    refused: IntCounterVec,
}

impl Admission {
    /// Decides by `bound` and by what the world knows.
    #[must_use]
    pub fn new(bound: Bound, registry: &Registry) -> Self {
        let options = Opts::new(
            "weft_control_identity_mismatch_total",
            "Streams and reports refused because they do not fit the identity of their connection.",
        );
        let refused = IntCounterVec::new(options, &["what", "reason"]).expect("a valid name");
        // Registered twice only in tests that share a registry; then it is only not exported twice.
        drop(registry.register(Box::new(refused.clone())));
        Self { bound, refused }
    }

    /// Whether `id` may open a configuration stream as `instance` with `metadata`.
    ///
    /// # Errors
    /// When something does not fit.
    pub fn sidecar(
        &self,
        id: &SpiffeId,
        instance: &str,
        metadata: &NodeMetadata,
        world: &World,
    ) -> Result<(), Mismatch> {
        self.counted("stream", sidecar(id, instance, metadata, world, &*self.bound))
    }

    /// Whether `id` may see configuration as a program does that is no sidecar of ours and says it is `workload`.
    ///
    /// # Errors
    /// When that is of another namespace.
    pub fn foreign(&self, id: &SpiffeId, workload: &WorkloadId) -> Result<(), Mismatch> {
        self.counted("stream", same_namespace(id, workload))
    }

    /// Whether `id` may speak as `instance`.
    ///
    /// # Errors
    /// When that is somebody else.
    pub fn instance(&self, id: &SpiffeId, instance: &str, world: &World) -> Result<(), Mismatch> {
        self.counted("report", same_instance(id, instance, world))
    }

    /// Whether `id` may send this report.
    ///
    /// # Errors
    /// When something does not fit.
    pub fn report(&self, id: &SpiffeId, report: &Report<'_>, world: &World) -> Result<(), Mismatch> {
        self.counted("report", self::report(id, report, world, &*self.bound))
    }

    fn counted(&self, what: &str, result: Result<(), Mismatch>) -> Result<(), Mismatch> {
        if let Err(mismatch) = &result {
            self.refused.with_label_values(&[what, mismatch.word()]).inc();
            tracing::warn!(what, reason = mismatch.word(), error = %mismatch, "refused");
        }
        result
    }
}

type Binds<'a> = &'a dyn Fn(&SpiffeId, &WorkloadId) -> bool;

fn sidecar(
    id: &SpiffeId,
    instance: &str,
    metadata: &NodeMetadata,
    world: &World,
    bound: Binds<'_>,
) -> Result<(), Mismatch> {
    same_instance(id, instance, world)?;
    for registration in &metadata.registrations {
        let service = &registration.service.service;
        if service.namespace() != id.namespace() {
            return Err(Mismatch::Service { id: id.clone(), service: service.to_string() });
        }
        same_address(id, registration.address, world)?;
    }
    let workload = &metadata.workload;
    same_namespace(id, workload)?;
    let pods = pods(id, metadata.addresses.iter().copied(), world)?;
    fits(id, workload, pods, bound)
}

fn report(id: &SpiffeId, report: &Report<'_>, world: &World, bound: Binds<'_>) -> Result<(), Mismatch> {
    let Report { instance, workload, from } = *report;
    same_namespace(id, workload)?;
    let mut known = false;
    if let Some(instance) = instance {
        same_instance(id, instance, world)?;
        // Who has a stream was looked at when it opened it.
        known = world.identity_of(instance).is_some() && world.workload_of(instance) == Some(workload);
    }
    let pod = |address: IpAddr| world.pods_on(address.to_canonical()).any(|pod| pod.runs_as(id));
    fits(id, workload, known || from.is_some_and(pod), bound)
}

fn same_namespace(id: &SpiffeId, workload: &WorkloadId) -> Result<(), Mismatch> {
    if workload.namespace() == id.namespace() {
        return Ok(());
    }
    Err(Mismatch::Namespace { id: id.clone(), workload: workload.clone() })
}

/// Whoever serves at an address decides which policies count there, so nobody takes one that is of somebody else.
fn same_address(id: &SpiffeId, address: SocketAddr, world: &World) -> Result<(), Mismatch> {
    pods(id, std::iter::once(address.ip()), world)?;
    let mut there = world.by_endpoint(address).map(|port| &port.service);
    match there.find(|service| service.namespace() != id.namespace()) {
        Some(service) => Err(Mismatch::Address { id: id.clone(), address, service: service.to_string() }),
        None => Ok(()),
    }
}

fn same_instance(id: &SpiffeId, instance: &str, world: &World) -> Result<(), Mismatch> {
    match world.identity_of(instance) {
        Some(other) if **other != *id => Err(Mismatch::Instance {
            id: id.clone(),
            instance: instance.chars().take(200).collect(),
            other: other.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Whether pods at the addresses vouch for the identity: every address that is a pod's must be one of its pods'.
fn pods(id: &SpiffeId, addresses: impl Iterator<Item = IpAddr>, world: &World) -> Result<bool, Mismatch> {
    let mut vouched = false;
    for address in addresses {
        let mut there = world.pods_on(address).peekable();
        let Some(first) = there.peek().copied() else { continue };
        if !there.any(|pod| pod.runs_as(id)) {
            return Err(Mismatch::Pod {
                id: id.clone(),
                address,
                pod: first.name.to_string(),
                runs_as: format!("{}/{}", first.name.namespace, first.service_account),
            });
        }
        vouched = true;
    }
    Ok(vouched)
}

fn fits(id: &SpiffeId, workload: &WorkloadId, vouched: bool, bound: Binds<'_>) -> Result<(), Mismatch> {
    if vouched || workload.name() == id.service_account() || bound(id, workload) {
        return Ok(());
    }
    Err(Mismatch::Workload { id: id.clone(), workload: workload.clone() })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use weft_wire::node::Registration;

    use super::*;
    use crate::fixture;
    use crate::world::{Event, StreamId};

    const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: web-1, namespace: shop, labels: {app: web}}, \
                       spec: {serviceAccountName: front, containers: []}, status: {podIP: 10.0.0.7}}";

    fn id(namespace: &str, account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", namespace, account).unwrap()
    }

    fn node(workload: &str, address: &str) -> NodeMetadata {
        NodeMetadata {
            workload: workload.parse().unwrap(),
            version: None,
            pod: None,
            zone: None,
            addresses: vec![address.parse().unwrap()],
            registrations: Vec::new(),
        }
    }

    fn word(id: &SpiffeId, node: &NodeMetadata, world: &World) -> Result<(), &'static str> {
        let bound = |_: &SpiffeId, workload: &WorkloadId| workload.name() == "bound";
        sidecar(id, "i", node, world, &bound).map_err(|mismatch| mismatch.word())
    }

    #[test]
    fn a_sidecar_stays_in_its_namespace() {
        let world = World::default();
        assert_eq!(word(&id("shop", "web"), &node("other/web", "10.9.9.9"), &world), Err("namespace"));
        let mut registers = node("shop/web", "10.9.9.9");
        registers.registrations.push(Registration {
            service: "vault.other:80".parse().unwrap(),
            address: "10.9.9.9:80".parse().unwrap(),
            protocol: None,
        });
        assert_eq!(word(&id("shop", "web"), &registers, &world), Err("service"));
    }

    #[test]
    fn nobody_registers_at_the_address_of_somebody_else() {
        let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: http, port: 80}], \
                     metadata: {name: db-1, namespace: bank, labels: {kubernetes.io/service-name: db}}, \
                     endpoints: [{addresses: [10.0.0.9]}]}";
        let service = "{apiVersion: v1, kind: Service, metadata: {name: db, namespace: bank}, \
                       spec: {ports: [{name: http, port: 8080}]}}";
        let world = fixture::world(&format!("{POD}\n---\n{service}\n---\n{slice}"));
        let registers = |account: &str, address: &str| {
            let mut node = node(&format!("shop/{account}"), "10.8.8.8");
            node.registrations.push(Registration {
                service: "a.shop:80".parse().unwrap(),
                address: address.parse().unwrap(),
                protocol: None,
            });
            word(&id("shop", account), &node, &world)
        };
        assert_eq!(registers("thief", "10.0.0.7:80"), Err("pod"));
        assert_eq!(registers("front", "10.0.0.7:80"), Ok(()), "its own pod");
        assert_eq!(registers("web", "10.0.0.9:80"), Err("address"));
        assert_eq!(registers("web", "10.0.0.9:81"), Ok(()), "another program of that machine");
    }

    #[test]
    fn a_pod_vouches_for_the_account_it_runs_as_and_for_no_other() {
        let world = fixture::world(POD);
        assert_eq!(word(&id("shop", "front"), &node("shop/web", "10.0.0.7"), &world), Ok(()));
        assert_eq!(word(&id("shop", "web"), &node("shop/web", "10.0.0.7"), &world), Err("pod"));
        let mut greedy = node("shop/front", "10.9.9.9");
        greedy.addresses.push("10.0.0.7".parse().unwrap());
        assert_eq!(word(&id("shop", "front"), &greedy, &world), Ok(()), "its own pod");
        assert_eq!(word(&id("shop", "thief"), &greedy, &world), Err("pod"));
    }

    #[test]
    fn without_a_pod_the_workload_is_named_like_the_account_or_by_its_join_token() {
        let world = World::default();
        assert_eq!(word(&id("shop", "web"), &node("shop/web", "10.9.9.9"), &world), Ok(()));
        assert_eq!(word(&id("shop", "web"), &node("shop/orders", "10.9.9.9"), &world), Err("workload"));
        assert_eq!(word(&id("shop", "web"), &node("shop/bound", "10.9.9.9"), &world), Ok(()));
    }

    #[test]
    fn an_instance_is_of_who_is_connected_as_it() {
        let mut world = World::default();
        let connected = Event::ProxyConnected {
            instance: "i".into(),
            stream: StreamId(1),
            metadata: Arc::new(node("shop/web", "10.9.9.9")),
            identity: Some(Arc::new(id("shop", "web"))),
        };
        world.apply(connected, Instant::now());
        assert_eq!(word(&id("shop", "orders"), &node("shop/orders", "10.9.9.8"), &world), Err("instance"));
        let none = |_: &SpiffeId, _: &WorkloadId| false;
        let web = "shop/web".parse().unwrap();
        let orders = "shop/orders".parse().unwrap();
        let said = |id: &SpiffeId, instance, workload| {
            let said = Report { instance, workload, from: None };
            report(id, &said, &world, &none).map_err(|mismatch| mismatch.word())
        };
        assert_eq!(said(&id("shop", "web"), Some("i"), &web), Ok(()));
        assert_eq!(said(&id("shop", "orders"), Some("i"), &orders), Err("instance"));
        assert_eq!(said(&id("shop", "orders"), None, &web), Err("workload"));
        assert_eq!(said(&id("other", "web"), Some("i"), &web), Err("namespace"));
    }

    #[test]
    fn a_pod_vouches_for_reports_too_also_before_its_stream_is_back() {
        let (world, none) = (fixture::world(POD), |_: &SpiffeId, _: &WorkloadId| false);
        let web = "shop/web".parse().unwrap();
        let said =
            |from: &str| Report { instance: Some("j"), workload: &web, from: Some(from.parse().unwrap()) };
        assert_eq!(report(&id("shop", "front"), &said("10.0.0.7"), &world, &none), Ok(()));
        let elsewhere = report(&id("shop", "front"), &said("10.0.0.8"), &world, &none);
        assert_eq!(elsewhere.map_err(|mismatch| mismatch.word()), Err("workload"));
    }
}
