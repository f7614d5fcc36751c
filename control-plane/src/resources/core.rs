//! From Kubernetes objects to the world's own terms, refusing what cannot mean anything.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Container, Namespace, Pod, PodSpec as PodSpecObject, PodStatus, Service, ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use weft_wire::pod::PROXY;
use weft_wire::tls::SERVICE_ACCOUNT_DEFAULT;
use weft_wire::{ServiceId, WorkloadId, annotation};

use super::{Object, Refusal, Segment, protocol, workload};
use crate::inject::{self, census};
use crate::world::{
    Created, Family, Health, NamespaceSpec, ObjectName, PodSpec, PortSpec, Posture, ServiceSpec,
    SliceEndpoint, SlicePort, SliceSpec, TargetPort,
};

/// The namespace of an object that names none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// The label by which an EndpointSlice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The annotation by which a namespace says what happens where no AccessPolicy speaks.
const DEFAULT_ACCESS: &str = annotation::DEFAULT_ACCESS;

/// The annotation by which a Service asked for calls within a zone before it had a field for that.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

type Labels = BTreeMap<Box<str>, Box<str>>;

pub(super) fn namespace(namespace: Namespace) -> Result<Option<Object>, Refusal> {
    let name = namespace.metadata.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| (path!["metadata", "name"], "is missing".to_owned()))?;
    WorkloadId::new(name, "x").map_err(|error| (path!["metadata", "name"], error.to_string()))?;
    let annotations = namespace.metadata.annotations.as_ref();
    let posture = match annotations.and_then(|annotations| annotations.get(DEFAULT_ACCESS)) {
        None => Posture::default(),
        Some(word) => {
            let known = [Posture::Allow, Posture::Deny].into_iter().find(|posture| posture.word() == word);
            let at = || path!["metadata", "annotations", DEFAULT_ACCESS];
            known.ok_or_else(|| (at(), format!("{word:?} is not one of allow, deny")))?
        }
    };
    let said = inject::Namespace {
        name: name.to_owned(),
        labels: namespace.metadata.labels.clone().unwrap_or_default(),
        annotations: annotations.cloned().unwrap_or_default(),
        closed: false,
    };
    let inject = census::of_namespace(&said);
    let restart = census::restart([annotations, namespace.metadata.labels.as_ref()]);
    Ok(Some(Object::Namespace(NamespaceSpec { name: name.into(), posture, inject, restart })))
}

pub(super) fn service(service: Service) -> Result<Option<Object>, Refusal> {
    let id = service_id(&service.metadata, path!["metadata", "name"])?;
    let Some(spec) = service.spec else {
        return Err((path!["spec"], "is missing".into()));
    };
    // A DNS alias has no endpoints of its own: callers go where the name points.
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(None);
    }
    let mut ports: Vec<PortSpec> = Vec::new();
    for (index, port) in spec.ports.into_iter().flatten().enumerate() {
        let Some(port) = service_port(port, index)? else { continue };
        if let Some(other) = ports.iter().find(|other| other.number == port.number || other.name == port.name)
        {
            let field = if other.number == port.number { "port" } else { "name" };
            return Err((path!["spec", "ports", index, field], "is there twice".into()));
        }
        ports.push(port);
    }
    // `clusterIPs` repeats `clusterIP` as its first element wherever a cluster has filled it in.
    let listed = spec.cluster_ips.into_iter().flatten().enumerate();
    let mut addresses: Vec<(Vec<Segment>, String)> =
        listed.map(|(index, ip)| (path!["spec", "clusterIPs", index], ip)).collect();
    if addresses.is_empty() {
        addresses.extend(spec.cluster_ip.map(|ip| (path!["spec", "clusterIP"], ip)));
    }
    let headless = |ip: &str| ip.is_empty() || ip == "None";
    let cluster_ips: Vec<IpAddr> = addresses
        .into_iter()
        .filter(|(_, ip)| !headless(ip))
        .map(|(path, ip)| address(&ip, path))
        .collect::<Result<_, _>>()?;
    // The first family stands first in both lists.
    let family = match spec.ip_families.as_ref().and_then(|families| families.first()).map(String::as_str) {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        _ => cluster_ips.first().map(|address| Family::from(*address)),
    };
    let near = ["PreferClose", "PreferSameZone", "PreferSameNode"];
    let mode = service.metadata.annotations.as_ref().and_then(|annotations| annotations.get(TOPOLOGY_MODE));
    let prefers_zone = spec.traffic_distribution.is_some_and(|distribution| near.contains(&&*distribution))
        || mode.is_some_and(|mode| mode.eq_ignore_ascii_case("auto"));
    let selector = boxed(spec.selector);
    Ok(Some(Object::Service(ServiceSpec { id, cluster_ips, family, prefers_zone, ports, selector })))
}

fn service_port(port: ServicePort, index: usize) -> Result<Option<PortSpec>, Refusal> {
    if !is_tcp(port.protocol.as_deref()) {
        return Ok(None);
    }
    let number = port_number(port.port, path!["spec", "ports", index, "port"])?;
    let target = match port.target_port {
        // Zero is how some tools write "the same".
        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(port_number(target, path!["spec", "ports", index, "targetPort"])?)
        }
        Some(IntOrString::String(name)) => TargetPort::Name(name.into()),
    };
    let protocol = protocol::declared(port.app_protocol.as_deref(), port.name.as_deref());
    Ok(Some(PortSpec { name: port.name.unwrap_or_default().into(), number, target, protocol }))
}

pub(super) fn endpoint_slice(slice: EndpointSlice) -> Result<Option<Object>, Refusal> {
    let name = object_name(&slice.metadata)?;
    let labels = slice.metadata.labels.as_ref();
    let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
        return Err((
            path!["metadata", "labels", SERVICE_NAME],
            "is missing: whose endpoints are these?".into(),
        ));
    };
    let service = ServiceId::new(&name.namespace, service)
        .map_err(|error| (path!["metadata", "labels", SERVICE_NAME], error.to_string()))?;
    match slice.address_type.as_str() {
        "IPv4" | "IPv6" => {}
        "FQDN" => return Ok(None),
        other => return Err((path!["addressType"], format!("{other:?} is not IPv4, IPv6 or FQDN"))),
    }
    let mut ports = Vec::new();
    for (index, port) in slice.ports.into_iter().flatten().enumerate() {
        ports.extend(slice_port(port, index)?);
    }
    let endpoints = slice.endpoints.into_iter().flatten().enumerate();
    let endpoints = endpoints
        .map(|(index, endpoint)| slice_endpoint(endpoint, index, &name.namespace))
        .collect::<Result<_, _>>()?;
    Ok(Some(Object::Slice(SliceSpec { name, service, ports, endpoints })))
}

fn slice_port(port: EndpointPort, index: usize) -> Result<Option<SlicePort>, Refusal> {
    if !is_tcp(port.protocol.as_deref()) {
        return Ok(None);
    }
    let Some(number) = port.port else {
        return Err((path!["ports", index, "port"], "is missing".into()));
    };
    let number = port_number(number, path!["ports", index, "port"])?;
    let protocol = protocol::declared(port.app_protocol.as_deref(), port.name.as_deref());
    Ok(Some(SlicePort { name: port.name.unwrap_or_default().into(), number, protocol }))
}

fn slice_endpoint(endpoint: Endpoint, index: usize, namespace: &Arc<str>) -> Result<SliceEndpoint, Refusal> {
    let addresses = endpoint.addresses.iter().enumerate();
    let addresses = addresses
        .map(|(at, text)| address(text, path!["endpoints", index, "addresses", at]))
        .collect::<Result<_, _>>()?;
    let conditions = endpoint.conditions.unwrap_or_default();
    // What is not said is "ready" and "not terminating", as Kubernetes defines it.
    let ready = conditions.ready.unwrap_or(true);
    let serving = conditions.serving.unwrap_or(ready);
    let health = match (ready, serving, conditions.terminating.unwrap_or(false)) {
        (true, _, _) => Health::Ready,
        (false, true, true) => Health::Draining,
        (false, _, _) => Health::NotReady,
    };
    let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = pod.and_then(|target| {
        let namespace = target.namespace.map_or_else(|| Arc::clone(namespace), Arc::from);
        Some(ObjectName { namespace, name: target.name?.into() })
    });
    // For whom it is meant counts before where it stands, where it is meant for somebody in particular.
    let hinted = endpoint.hints.and_then(|hints| match hints.for_zones?.as_mut_slice() {
        [zone] => Some(std::mem::take(&mut zone.name)),
        _ => None,
    });
    let zone = hinted.or(endpoint.zone).filter(|zone| !zone.is_empty()).map(Arc::from);
    Ok(SliceEndpoint { addresses, health, zone, pod })
}

pub(super) fn pod(pod: Pod) -> Result<Option<Object>, Refusal> {
    let name = object_name(&pod.metadata)?;
    let workload = workload::of(&pod.metadata, &name)?;
    let label = |key: &str| pod.metadata.labels.as_ref()?.get(key);
    let injection = census::of(&pod);
    let version = label("app.kubernetes.io/version").or_else(|| label("version"));
    let version = version.map(|version| Arc::from(version.as_str()));
    let spec = pod.spec.unwrap_or_default();
    let status = pod.status.unwrap_or_default();
    // A finished pod's address is given to the next one.
    let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let own_address = !finished && spec.host_network != Some(true);
    let mut addresses = Vec::new();
    if own_address {
        for (index, ip) in status.pod_ips.iter().flatten().enumerate() {
            addresses.push(address(&ip.ip, path!["status", "podIPs", index, "ip"])?);
        }
        if let (true, Some(ip)) = (addresses.is_empty(), &status.pod_ip) {
            addresses.push(address(ip, path!["status", "podIP"])?);
        }
    }
    let mut conditions = status.conditions.iter().flatten();
    // A pod written by hand has no conditions, and its author means it to run.
    let ready = conditions.find(|condition| condition.type_ == "Ready").is_none_or(|c| c.status == "True");
    let health = match (ready && !finished, pod.metadata.deletion_timestamp.is_some()) {
        (true, false) => Health::Ready,
        (true, true) => Health::Draining,
        (false, _) => Health::NotReady,
    };
    let ended = !finished && app_ended(&spec, &status, pod.metadata.deletion_timestamp.is_some());
    let app_ended = ended.then(|| pod.metadata.uid.unwrap_or_default().into());
    let mut ports = BTreeMap::new();
    // An init container that goes on running serves as well; where two have a port of one name, the first counts.
    let goes_on = |(_, container): &(usize, Container)| container.restart_policy.as_deref() == Some("Always");
    let init = spec.init_containers.into_iter().flatten().enumerate().filter(goes_on);
    let init = init.map(|(at, container)| ("initContainers", at, container));
    let main = spec.containers.into_iter().enumerate().map(|(at, container)| ("containers", at, container));
    for (list, container, index, port) in main.chain(init).flat_map(|(list, at, container)| {
        container.ports.into_iter().flatten().enumerate().map(move |(index, port)| (list, at, index, port))
    }) {
        if let (Some(name), true) = (port.name, is_tcp(port.protocol.as_deref())) {
            let at = path!["spec", list, container, "ports", index, "containerPort"];
            let number = port_number(port.container_port, at)?;
            ports.entry(name.into()).or_insert(number);
        }
    }
    let service_account = spec.service_account_name.filter(|name| !name.is_empty());
    let service_account = service_account.map_or_else(|| SERVICE_ACCOUNT_DEFAULT.into(), Arc::from);
    let labels = boxed(pod.metadata.labels);
    let pod = PodSpec {
        name,
        workload,
        version,
        addresses,
        service_account,
        labels,
        ports,
        health,
        app_ended,
        injection,
    };
    Ok(Some(Object::Pod(pod)))
}

/// Whether everything but a classic sidecar has ended and nobody will start it again.
fn app_ended(spec: &PodSpecObject, status: &PodStatus, deleted: bool) -> bool {
    if !spec.containers.iter().any(|container| container.name == PROXY) {
        return false;
    }
    let policy = spec.restart_policy.as_deref().unwrap_or("Always");
    let ended = |name: &str| {
        let mut statuses = status.container_statuses.iter().flatten();
        let state = statuses.find(|status| status.name == name).and_then(|status| status.state.as_ref());
        let ended = state.and_then(|state| state.terminated.as_ref());
        ended.is_some_and(|ended| match policy {
            _ if deleted => true,
            "Never" => true,
            "OnFailure" => ended.exit_code == 0,
            _ => false,
        })
    };
    let mut app = spec.containers.iter().filter(|container| container.name != PROXY).peekable();
    app.peek().is_some() && app.all(|container| ended(&container.name))
}

fn service_id(metadata: &ObjectMeta, path: Vec<Segment>) -> Result<ServiceId, Refusal> {
    let name = object_name(metadata)?;
    // Hosts are read as name.namespace, so a dot in a service's name would be another service.
    if name.name.contains('.') {
        return Err((path, format!("{:?} contains a dot", name.name)));
    }
    ServiceId::new(&name.namespace, &name.name).map_err(|error| (path, error.to_string()))
}

pub(super) fn object_name(metadata: &ObjectMeta) -> Result<ObjectName, Refusal> {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| (path!["metadata", "name"], "is missing".to_owned()))?;
    let namespace = metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    // Borrows the rules of workload names: they are those of every namespaced name.
    WorkloadId::new(namespace, "x").map_err(|error| (path!["metadata", "namespace"], error.to_string()))?;
    Ok(ObjectName { namespace: namespace.into(), name: name.into() })
}

/// When an object was created, if it says so.
pub(super) fn created(metadata: &ObjectMeta) -> Created {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

fn address(text: &str, path: Vec<Segment>) -> Result<IpAddr, Refusal> {
    let address: Result<IpAddr, _> = text.parse();
    address.map(|ip| ip.to_canonical()).map_err(|_| (path, format!("{text:?} is not an IP address")))
}

pub(super) fn port_number(number: i32, path: Vec<Segment>) -> Result<u16, Refusal> {
    let valid = u16::try_from(number).ok().filter(|number| *number != 0);
    valid.ok_or_else(|| (path, format!("{number} is not a port (1 to 65535)")))
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

fn boxed(labels: Option<BTreeMap<String, String>>) -> Labels {
    labels.into_iter().flatten().map(|(key, value)| (key.into(), value.into())).collect()
}
