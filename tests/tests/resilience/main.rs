//! What callers see when their callees fail, are replaced, or are configured wrongly: one process, a real control plane,
//! real sidecars, real load. Each story looks at it from all sides: the callers, the callees, the sidecar's metrics and
//! the API.
//!
//! `cargo test -p weft-tests --test resilience` runs these stories alone; `-- --nocapture` prints what was measured.

mod canary;
mod deadline;
mod ejection;
mod impatience;
mod load;
mod storm;
mod typo;

use std::net::SocketAddr;

use serde_json::Value;
use weft_tests::client;
use weft_tests::embedded::Sidecar;

/// A service that speaks HTTP on port 8080, and its endpoints.
fn service(name: &str, endpoints: &[SocketAddr]) -> String {
    let mut text = format!(
        "\
---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: shop}}
spec:
  clusterIP: None
  ports: [{{name: main, port: 8080, protocol: TCP, appProtocol: http}}]
"
    );
    // A slice has one port for all its endpoints, and backends on loopback differ in nothing else.
    for (index, address) in endpoints.iter().enumerate() {
        text.push_str(&format!(
            "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{index}
  namespace: shop
  labels: {{kubernetes.io/service-name: {name}}}
addressType: IPv4
ports: [{{name: main, port: {}, protocol: TCP}}]
endpoints: [{{addresses: [{}], conditions: {{ready: true}}}}]
",
            address.port(),
            address.ip()
        ));
    }
    text
}

/// The flag by which a sidecar listens for one service.
fn forward(service: &str) -> String {
    format!("--outbound-forward=127.0.0.1:0={service}.shop:8080")
}

/// The samples of a metric family on a sidecar's own page, one a line.
async fn samples(sidecar: &Sidecar, family: &str) -> anyhow::Result<Vec<String>> {
    let page = client::once(sidecar.address("/metrics")?, &client::Ask::get("/metrics", "localhost")).await?;
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let begins = |line: &&str| line.strip_prefix(family).is_some_and(|rest| rest.starts_with(['{', ' ']));
    Ok(text.lines().filter(begins).map(str::to_owned).collect())
}

/// The number at the end of a sample.
fn value(sample: &str) -> f64 {
    sample.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// The list under a name in a document.
fn list<'a>(document: &'a Value, name: &str) -> &'a [Value] {
    document[name].as_array().map(Vec::as_slice).unwrap_or_default()
}
