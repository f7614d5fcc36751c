//! Breakers one can see: from a replica that fails to what the control plane shows of it, and back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, ensure};
use axum::Router;
use http::StatusCode;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

/// A replica of `orders` that answers 500 while it is sick, whatever is asked but how it is.
struct Replica {
    address: SocketAddr,
    sick: Arc<AtomicBool>,
}

impl Replica {
    async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let sick = Arc::new(AtomicBool::new(false));
        let is_sick = Arc::clone(&sick);
        let answer = move || {
            let sick = is_sick.load(Ordering::Relaxed);
            async move {
                if sick { (StatusCode::INTERNAL_SERVER_ERROR, "sick") } else { (StatusCode::OK, "well") }
            }
        };
        let router = Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, sick })
    }

    fn fall_sick(&self) {
        self.sick.store(true, Ordering::Relaxed);
    }

    fn recover(&self) {
        self.sick.store(false, Ordering::Relaxed);
    }
}

/// The service, a pod and a slice for each replica, and `policy`.
fn objects(replicas: &[Replica], policy: &str) -> String {
    let mut text = "\
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  clusterIP: None
  ports: [{name: main, port: 8080, protocol: TCP, appProtocol: http}]
"
    .to_owned();
    for (number, replica) in replicas.iter().enumerate() {
        let (ip, port) = (replica.address.ip(), replica.address.port());
        text += &format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: orders-{number}, namespace: shop, labels: {{app: orders}}}}
spec: {{containers: []}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: orders-{number}, namespace: shop, labels: {{kubernetes.io/service-name: orders}}}}
addressType: IPv4
ports: [{{name: main, port: {port}, protocol: TCP}}]
endpoints: [{{addresses: [{ip}], conditions: {{ready: true}}, targetRef: {{kind: Pod, name: orders-{number}}}}}]
"
        );
    }
    text + "---\n" + policy
}

const BREAKER: &str = "\
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  endpoints: {consecutiveFailures: 3, interval: 200ms, baseEjectionTime: 8s}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  loadBalancer: {type: RoundRobin}
";

async fn call(caller: &Sidecar) -> anyhow::Result<StatusCode> {
    Ok(client::once(caller.address("/forwards/0")?, &Ask::get("/orders/42", "orders")).await?.status)
}

async fn caller(directory: &std::path::Path, control: SocketAddr) -> anyhow::Result<Sidecar> {
    let flags = ["--outbound-forward=127.0.0.1:0=orders.shop:8080"];
    let caller = Sidecar::start(directory, control, "web", &flags).await?;
    poll::until("orders is known", PATIENCE, async || {
        let status = call(&caller).await?;
        ensure!(status == StatusCode::OK, "{status}");
        anyhow::Ok(())
    })
    .await?;
    Ok(caller)
}

/// The circuit of a replica as the control plane shows it.
async fn circuit(api: SocketAddr, of: SocketAddr) -> anyhow::Result<(Value, Value)> {
    let document = client::json(api, "/api/circuits").await?;
    let id = format!("endpoint|orders.shop:8080|{of}");
    let circuits = document["circuits"].as_array().context("no circuits")?;
    let found = circuits.iter().find(|circuit| circuit["id"] == *id).cloned();
    Ok((found.with_context(|| format!("no {id} in {document:#}"))?, document))
}

const DAY: u64 = 24 * 60 * 60 * 1000;

/// Reads `2026-11-28T14:52:09.677Z`.
fn millisecond_of_day(time: &Value) -> Option<u64> {
    let (_, time) = time.as_str()?.strip_suffix('Z')?.split_once('T')?;
    let (seconds, millis) = time.split_once('.')?;
    let seconds = seconds.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    Some(seconds * 1000 + millis.parse::<u64>().ok()?)
}

fn told<'a>(document: &'a Value, circuit: &'a Value, to: &'a str) -> Vec<&'a Value> {
    let events = document["events"].as_array().map_or(&[][..], |events| events);
    events.iter().filter(|event| event["circuit"] == circuit["id"] && event["to"] == to).collect()
}

/// Reads an event stream until it says that something is open.
async fn hear_of_an_open_circuit(api: SocketAddr) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(api).await?;
    stream.write_all(b"GET /api/circuits/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await?;
    let mut heard = Vec::new();
    let hear = async {
        while !String::from_utf8_lossy(&heard).contains(r#""state":"open","cause":"consecutive_5xx""#) {
            ensure!(stream.read_buf(&mut heard).await? > 0, "the stream ended");
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, hear).await.context("nobody said that a circuit is open")?
}

#[tokio::test]
async fn a_replica_that_fails_is_shown_with_cause_and_next_probe_until_it_is_back() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let replicas = [Replica::start().await?, Replica::start().await?, Replica::start().await?];
    let plane = Plane::start(&objects(&replicas, BREAKER)).await?;
    let caller = caller(directory.path(), plane.control).await?;
    let api = plane.api;
    let stream = tokio::spawn(hear_of_an_open_circuit(api));

    let [sick, ..] = &replicas;
    sick.fall_sick();
    let (open, document) = poll::until("the open circuit", PATIENCE, async || {
        call(&caller).await?;
        let (circuit, document) = circuit(api, sick.address).await?;
        ensure!(circuit["state"] == "open" && !told(&document, &circuit, "open").is_empty(), "{circuit:#}");
        anyhow::Ok((circuit, document))
    })
    .await?;
    assert_eq!(open["cause"], "consecutive_5xx", "{open:#}");
    assert_eq!(open["cause_text"], "3 server errors in a row");
    assert_eq!((&open["open_on"], &open["observers_total"]), (&1.into(), &1.into()));
    assert_eq!(open["endpoint"]["workload"], "orders");
    assert_eq!(open["endpoint"]["pod"], "orders-0");
    assert_eq!(open["observers"][0]["workload"], "web");
    let number = |name: &str| open[name].as_u64().with_context(|| format!("no {name} in {open:#}"));
    assert!(number("calls")? >= 3 && number("errors")? >= 3, "{open:#}");
    let time = |name: &str| millisecond_of_day(&open[name]).with_context(|| format!("no {name} in {open:#}"));
    let ejected_for = (time("next_probe_at")? + DAY - time("since")?) % DAY;
    assert!((8_000..=9_000).contains(&ejected_for), "{ejected_for} ms");
    let [event] = told(&document, &open, "open")[..] else { panic!("told once: {document:#}") };
    assert_eq!((&event["from"], &event["cause"]), (&"closed".into(), &"consecutive_5xx".into()));
    stream.await??;
    for _ in 0..20 {
        assert_eq!(call(&caller).await?, StatusCode::OK, "nobody is sent to who fails");
    }

    // It comes back while nobody listens.
    sick.recover();
    let paused = plane.pause().await;
    poll::until("the circuit is closed", PATIENCE, async || {
        let metrics = client::once(caller.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
        let page = String::from_utf8_lossy(&metrics.body).into_owned();
        let line =
            "weft_circuit_transitions_total{kind=\"endpoint\",cluster=\"orders.shop:8080\",to=\"closed\"} 1";
        ensure!(page.lines().any(|shown| shown == line), "{page}");
        anyhow::Ok(())
    })
    .await?;
    let plane = paused.resume().await?;
    let api = plane.api;
    let back = poll::until("the closed circuit", PATIENCE, async || {
        ensure!(call(&caller).await? == StatusCode::OK, "everybody is well");
        let (circuit, document) = circuit(api, sick.address).await?;
        ensure!(circuit["state"] == "closed" && circuit["calls"].as_u64() > Some(0), "{circuit:#}");
        ensure!(!told(&document, &circuit, "closed").is_empty(), "{document:#}");
        anyhow::Ok(circuit)
    })
    .await?;
    assert_eq!(back["next_probe_at"], Value::Null, "{back:#}");
    // Some reports later it is still one line, and the one from before the restart does not come again.
    let version = client::json(api, "/api/circuits").await?["version"].clone();
    poll::until("later documents", PATIENCE, async || {
        call(&caller).await?;
        let later = client::json(api, "/api/circuits").await?["version"].clone();
        ensure!(later.as_u64() > version.as_u64().map(|version| version + 2), "{later}");
        anyhow::Ok(())
    })
    .await?;
    let (circuit, document) = circuit(api, sick.address).await?;
    assert_eq!(told(&document, &circuit, "closed").len(), 1, "{document:#}");
    assert_eq!(document["events"].as_array().map(Vec::len), Some(1), "{document:#}");

    caller.stop().await?;
    plane.stop().await;
    Ok(())
}

const CHECK: &str = "\
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  endpoints: {consecutiveFailures: 0}
---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders}]
  healthCheck: {type: HTTP, path: /healthz, interval: 500ms, timeout: 400ms, healthyThreshold: 1, unhealthyThreshold: 1}
";

#[tokio::test]
async fn a_replica_that_fails_its_checks_is_shown_until_it_passes_them() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let replicas = [Replica::start().await?, Replica::start().await?, Replica::start().await?];
    let plane = Plane::start(&objects(&replicas, CHECK)).await?;
    let (caller, api) = (caller(directory.path(), plane.control).await?, plane.api);
    let [_, sick, _] = &replicas;
    sick.fall_sick();
    let open = poll::until("the open circuit", PATIENCE, async || {
        let (circuit, _) = circuit(api, sick.address).await?;
        ensure!(circuit["state"] == "open", "{circuit:#}");
        anyhow::Ok(circuit)
    })
    .await?;
    assert_eq!((&open["cause"], &open["endpoint"]["pod"]), (&"health_check".into(), &"orders-1".into()));
    assert!(millisecond_of_day(&open["next_probe_at"]).is_some(), "it says when it is asked next: {open:#}");
    for _ in 0..20 {
        assert_eq!(call(&caller).await?, StatusCode::OK);
    }
    sick.recover();
    poll::until("the closed circuit", PATIENCE, async || {
        let (circuit, document) = circuit(api, sick.address).await?;
        ensure!(
            circuit["state"] == "closed" && told(&document, &circuit, "closed").len() == 1,
            "{circuit:#}"
        );
        anyhow::Ok(())
    })
    .await?;
    caller.stop().await?;
    plane.stop().await;
    Ok(())
}
