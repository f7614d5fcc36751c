//! A control plane behind an API server that forwards ports, as `kubectl port-forward` would find it.
//!
//! The server speaks what an API server and a kubelet speak together: objects as JSON, and over a WebSocket two channels per port,
//! each opened by the port's number, the second one for complaints.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// What a pod's port leads to.
#[derive(Clone, Copy)]
pub(crate) enum Port {
    /// A listener of this machine.
    Open(SocketAddr),
    /// Nothing listens.
    Closed,
}

#[derive(Default)]
struct Objects {
    service: bool,
    deployment: bool,
    /// Pods by name: where their port leads, and whether they lead.
    pods: BTreeMap<String, (Port, bool)>,
    forwarded: Vec<String>,
}

/// An API server with a control plane in it.
#[derive(Clone, Default)]
pub(crate) struct Server(Arc<Mutex<Objects>>);

impl Server {
    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the Service, and the Deployment.
    pub(crate) fn installed() -> Self {
        let server = Self::default();
        (server.objects().service, server.objects().deployment) = (true, true);
        server
    }

    pub(crate) fn pod(&self, name: &str, port: Port, leads: bool) {
        self.objects().pods.insert(name.to_owned(), (port, leads));
    }

    pub(crate) fn gone(&self, name: &str) {
        self.objects().pods.remove(name);
    }

    /// To which pods connections went.
    pub(crate) fn forwarded(&self) -> Vec<String> {
        self.objects().forwarded.clone()
    }

    /// Serves, as long as the runtime lives.
    pub(crate) async fn start(&self) -> Cluster {
        let of = format!("/api/v1/namespaces/{NAMESPACE}");
        let router = Router::new()
            .route(&format!("{of}/services/{CONTROL_PLANE}"), get(service))
            .route(
                &format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{CONTROL_PLANE}"),
                get(deployment),
            )
            .route(&format!("{of}/pods"), get(pods))
            .route(&format!("{of}/pods/{{name}}/portforward"), get(forward))
            .fallback(async || missing())
            .with_state(self.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(Config::new(server.parse().expect("an address"))).expect("a client");
        Cluster { client, context: Some("test".into()), server }
    }
}

fn missing() -> Response {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": "not found", "code": 404 });
    (StatusCode::NOT_FOUND, axum::Json(status)).into_response()
}

async fn service(State(server): State<Server>) -> Response {
    if !server.objects().service {
        return missing();
    }
    axum::Json(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": CONTROL_PLANE, "namespace": NAMESPACE },
        "spec": { "selector": { "weft.dev/leader": "true" }, "ports": [{ "name": "grpc-control", "port": 15012, "targetPort": "grpc-control" }, { "name": "http-api", "port": 8080, "targetPort": "http-api" }] },
    }))
    .into_response()
}

async fn deployment(State(server): State<Server>) -> Response {
    if !server.objects().deployment {
        return missing();
    }
    axum::Json(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": CONTROL_PLANE, "namespace": NAMESPACE },
        "spec": { "selector": { "matchLabels": { "app": "weft" } }, "template": {} },
    }))
    .into_response()
}

async fn pods(State(server): State<Server>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let leaders = query.get("labelSelector").is_some_and(|selector| selector == "weft.dev/leader=true");
    let pod = |(name, _): (&String, &(Port, bool))| {
        json!({
            "metadata": { "name": name, "namespace": NAMESPACE },
            "spec": { "containers": [{ "name": "control-plane", "ports": [{ "name": "grpc-control", "containerPort": 15012 }, { "name": "http-api", "containerPort": 8080 }] }] },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        })
    };
    let objects = server.objects();
    let items: Vec<Value> =
        objects.pods.iter().filter(|(_, (_, leads))| !leaders || *leads).map(pod).collect();
    axum::Json(json!({ "apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": items }))
        .into_response()
}

async fn forward(
    State(server): State<Server>,
    Path(name): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Some((port, _)) = server.objects().pods.get(&name).copied() else { return missing() };
    server.objects().forwarded.push(name);
    let number: u16 = query.get("ports").and_then(|ports| ports.parse().ok()).expect("one port");
    upgrade.protocols(["v4.channel.k8s.io"]).on_upgrade(move |socket| carry(socket, number, port))
}

async fn carry(mut socket: WebSocket, number: u16, port: Port) {
    let frame = |channel: u8, bytes: &[u8]| Message::Binary([&[channel], bytes].concat().into());
    for channel in [0, 1] {
        socket.send(frame(channel, &number.to_le_bytes())).await.expect("the client is there");
    }
    let mut stream = match port {
        Port::Open(address) => TcpStream::connect(address).await.expect("somebody listens"),
        Port::Closed => {
            let words = format!("error forwarding port {number}: connection refused");
            socket.send(frame(1, words.as_bytes())).await.ok();
            return;
        }
    };
    let mut buffer = [0; 4096];
    loop {
        tokio::select! {
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&0) => {
                    stream.write_all(&bytes[1..]).await.expect("the pod is there");
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => {}
            },
            read = stream.read(&mut buffer) => match read {
                Ok(length) if length > 0 => {
                    if socket.send(frame(0, &buffer[..length])).await.is_err() {
                        return;
                    }
                }
                _ => {
                    socket.send(Message::Close(None)).await.ok();
                    return;
                }
            },
        }
    }
}

/// Something that answers every question with what it was asked.
pub(crate) async fn echo() -> SocketAddr {
    let answer = async |request: axum::extract::Request| {
        let header =
            |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        axum::Json(
            json!({ "path": request.uri().path(), "host": header("host"), "authorization": header("authorization") }),
        )
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    address
}

#[test]
fn a_chain_says_nothing_twice() {
    let cause = std::io::Error::other("connection refused");
    let error = anyhow::Error::new(cause).context("client error: connection refused").context("ask");
    assert_eq!(chain(error.as_ref()), "ask: client error: connection refused");
}

mod stories {
    use super::*;
    use crate::api::{Api, Error};
    use crate::kubernetes::find::ControlPlane;

    async fn api(server: &Server) -> Api {
        let plane = ControlPlane::find(server.start().await).await.expect("found");
        Api::of(plane).asking_as(Some("weft_api_x")).expect("a token")
    }

    #[tokio::test]
    async fn a_control_plane_is_asked_through_the_pod_that_leads() {
        let server = Server::installed();
        let pod = Port::Open(echo().await);
        server.pod("a", pod, false);
        server.pod("b", pod, true);
        let api = api(&server).await;
        let answer: Value = api.json("/api/overview").await.expect("an answer");
        assert_eq!(answer["path"], "/api/overview");
        // What listens on loopback only answers to a name of loopback.
        assert_eq!(answer["host"], "127.0.0.1:8080");
        assert_eq!(answer["authorization"], "Bearer weft_api_x");
        assert_eq!(server.forwarded(), ["b"]);
        assert_eq!(api.leads(), Some(true));
        assert_eq!(api.base(), "pod weft-system/b (context test)");
        let others: Vec<String> = api.others().await.iter().map(|api| api.base().to_owned()).collect();
        assert_eq!(others, ["pod weft-system/a"]);
    }

    #[tokio::test]
    async fn when_the_leader_goes_the_next_question_goes_to_its_successor() {
        let server = Server::installed();
        let pod = Port::Open(echo().await);
        server.pod("a", pod, true);
        let api = api(&server).await;
        api.get("/").await.expect("an answer");
        server.gone("a");
        server.pod("b", pod, true);
        api.get("/").await.expect("an answer");
        assert_eq!(server.forwarded(), ["a", "b"]);
    }

    #[tokio::test]
    async fn before_anybody_leads_any_ready_pod_is_asked() {
        let server = Server::installed();
        server.pod("a", Port::Open(echo().await), false);
        let any = api(&server).await;
        any.get("/").await.expect("an answer");
        assert_eq!(any.leads(), Some(false));
        server.objects().service = false;
        api(&server).await.get("/").await.expect("an answer");
    }

    #[tokio::test]
    async fn what_the_kubelet_complains_of_is_said() {
        let server = Server::installed();
        server.pod("a", Port::Closed, true);
        let error = api(&server).await.get("/").await.expect_err("nobody listens");
        assert!(
            matches!(&error, Error::Forwarded { why, .. } if why.contains("connection refused")),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn where_nothing_is_installed_that_is_said() {
        let missing = ControlPlane::find(Server::default().start().await).await.expect_err("nothing there");
        assert!(missing.to_string().contains("weft install"), "{missing}");
        let server = Server::installed();
        let none = ControlPlane::find(server.start().await).await.expect_err("no pod");
        assert!(none.to_string().contains("none of its 0 pods is ready"), "{none}");
    }

    #[tokio::test]
    async fn a_cluster_that_is_away_is_told_from_one_without_weft() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        drop(listener);
        let client = Client::try_from(Config::new(server.parse().expect("an address"))).expect("a client");
        let away = ControlPlane::find(Cluster { client, context: None, server }).await.expect_err("away");
        assert!(away.to_string().starts_with("its API server does not answer"), "{away}");
    }
}
