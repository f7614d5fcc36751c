//! The control plane follows a real API server.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::any;
use http::StatusCode;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::net::TcpListener;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use super::space::Space;

/// An address of this machine that is not loopback: an API server takes no other in an EndpointSlice.
fn own_address() -> anyhow::Result<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Nothing is sent; the kernel only chooses where it would be sent from.
    socket.connect("192.0.2.1:9")?;
    Ok(socket.local_addr()?.ip())
}

async fn app(ip: IpAddr, name: &'static str) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((ip, 0)).await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/{*path}", any(async move || name));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

#[tokio::test]
async fn slices_of_a_service_without_selector_move_the_traffic() -> anyhow::Result<()> {
    let Some(space) = Space::new("following").await? else { return Ok(()) };
    let ip = own_address()?;
    let (one, two) = (app(ip, "one").await?, app(ip, "two").await?);
    let (make, change) = (PostParams::default(), PatchParams::default());
    let services: Api<Service> = Api::namespaced(space.client.clone(), &space.name);
    let service = json!({ "metadata": { "name": "orders" }, "spec": { "ports": [{ "name": "web", "port": 8080, "appProtocol": "http" }] } });
    services.create(&make, &serde_json::from_value(service)?).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(space.client.clone(), &space.name);
    let slice = json!({
        "metadata": { "name": "orders-1", "labels": { "kubernetes.io/service-name": "orders" } }, "addressType": "IPv4",
        "ports": [{ "name": "web", "port": one.port() }], "endpoints": [{ "addresses": [ip.to_string()] }],
    });
    slices.create(&make, &serde_json::from_value(slice)?).await?;

    let (files, plane) = (tempfile::tempdir()?, Plane::follow_at(&space.kubeconfig, &space.name).await?);
    let forward = format!("--outbound-forward=127.0.0.1:0=orders.{}:8080", space.name);
    let caller = Sidecar::start(files.path(), plane.control, "web", &[&forward]).await?;
    let reaches = async |app: &str| {
        poll::until(app, PATIENCE, async || {
            let answer = client::once(caller.address("/forwards/0")?, &Ask::get("/a", "orders")).await?;
            ensure!(answer.status == StatusCode::OK && answer.body == app, "{answer:?}");
            anyhow::Ok(())
        })
        .await
    };
    reaches("one").await?;
    let patch = Patch::Merge(json!({ "ports": [{ "name": "web", "port": two.port() }] }));
    slices.patch("orders-1", &change, &patch).await?;
    reaches("two").await?;
    slices.delete("orders-1", &DeleteParams::default()).await?;
    poll::until("nobody serves it", PATIENCE, async || {
        let answer = client::once(caller.address("/forwards/0")?, &Ask::get("/a", "orders")).await?;
        ensure!(answer.status == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        anyhow::Ok(())
    })
    .await?;
    let said = client::json(plane.api, "/api/config/errors").await?;
    let errors = said["errors"].as_array().context("no errors")?;
    let ours = errors.iter().filter(|error| error.to_string().contains(&space.name));
    ensure!(ours.count() == 0, "{said:#}");
    caller.stop().await?;
    plane.stop().await;
    space.end().await
}

#[tokio::test]
async fn pods_are_named_after_their_owners_owner() -> anyhow::Result<()> {
    let Some(space) = Space::new("owners").await? else { return Ok(()) };
    let make = PostParams::default();
    let sets: Api<ReplicaSet> = Api::namespaced(space.client.clone(), &space.name);
    let template = json!({ "metadata": { "labels": { "app": "x" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    // As Argo Rollouts makes them: not named after a template's hash.
    let set = json!({
        "metadata": { "name": "orders-5c8", "ownerReferences": [{
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "orders", "controller": true,
            "uid": "00000000-0000-4000-8000-000000000001" }] },
        "spec": { "replicas": 0, "selector": { "matchLabels": { "app": "x" } }, "template": template },
    });
    let set = sets.create(&make, &serde_json::from_value(set)?).await?;
    let pods: Api<Pod> = Api::namespaced(space.client.clone(), &space.name);
    let pod = json!({
        "metadata": { "name": "orders-5c8-x", "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders-5c8", "controller": true, "uid": set.metadata.uid }] },
        "spec": { "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80 }] }] },
    });
    pods.create(&make, &serde_json::from_value(pod)?).await?;
    let status = json!({ "status": { "phase": "Running", "podIP": "10.200.0.1", "podIPs": [{ "ip": "10.200.0.1" }],
        "conditions": [{ "type": "Ready", "status": "True" }] } });
    pods.patch_status("orders-5c8-x", &PatchParams::default(), &Patch::Merge(status)).await?;
    let services: Api<Service> = Api::namespaced(space.client.clone(), &space.name);
    let service = json!({ "metadata": { "name": "orders" }, "spec": { "ports": [{ "port": 80 }] } });
    services.create(&make, &serde_json::from_value(service)?).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(space.client.clone(), &space.name);
    let slice = json!({
        "metadata": { "name": "orders-1", "labels": { "kubernetes.io/service-name": "orders" } }, "addressType": "IPv4",
        "ports": [{ "name": "", "port": 80 }],
        "endpoints": [{ "addresses": ["10.200.0.1"], "targetRef": { "kind": "Pod", "name": "orders-5c8-x", "namespace": space.name } }],
    });
    slices.create(&make, &serde_json::from_value(slice)?).await?;

    let (files, plane) = (tempfile::tempdir()?, Plane::follow_at(&space.kubeconfig, &space.name).await?);
    let forward = format!("--outbound-forward=127.0.0.1:0=orders.{}:80", space.name);
    let flags = ["--admin-listen=127.0.0.1:0", &forward];
    let caller = Sidecar::start(files.path(), plane.control, "web", &flags).await?;
    poll::until("the sidecar knows whom it calls", PATIENCE, async || {
        // Asks for the service; whether somebody is there does not matter.
        client::once(caller.address("/forwards/0")?, &Ask::get("/a", "orders")).await.ok();
        let dump = client::once(caller.address("/admin")?, &Ask::get("/config", "localhost")).await?;
        let dump = String::from_utf8(dump.body.to_vec())?;
        let workload = format!("\"{}/orders\"", space.name);
        ensure!(dump.contains("\"orders-5c8-x\"") && dump.contains(&workload), "{dump}");
        anyhow::Ok(())
    })
    .await?;
    caller.stop().await?;
    plane.stop().await;
    space.end().await
}
