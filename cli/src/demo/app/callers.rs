//! Those who only call: the `shopper`s that make the demo move, a `cron` job without a sidecar, and `report`, which asks once
//! and ends, as jobs in a cluster do.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use http::HeaderValue;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use super::{Client, told_to_end};
use crate::output;

/// One visit each: 16 per second, which the shop turns into about 50 requests per second in total.
const PACE: Duration = Duration::from_millis(60);
/// Visits under way at most; beyond it shoppers stay away instead of queueing.
const VISITS_MAX: usize = 48;
/// Shoppers, and with them carts.
const SHOPPERS: u32 = 120;
/// What jobs ask for.
const REPORT: &str = "http://orders:8080/reports/daily";
/// How long somebody watches the delivery page.
const WATCH: Duration = Duration::from_secs(15);

pub(super) async fn shopper(client: Client) -> anyhow::Result<()> {
    let visits = Arc::new(Semaphore::new(VISITS_MAX));
    tokio::spawn(watch(client.clone()));
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if let Ok(permit) = Arc::clone(&visits).try_acquire_owned() {
            let client = client.clone();
            // Bounded by the permits; a visit has the client's deadline on every step.
            tokio::spawn(async move {
                visit(&client).await.ok();
                drop(permit);
            });
        }
    }
}

async fn visit(client: &Client) -> anyhow::Result<()> {
    let none = HeaderMap::new();
    // Looks random, is the same for the same shopper: a cart has to be found again.
    let number = fastrand::u32(0..SHOPPERS);
    let user = format!(
        "{:08x}{:08x}",
        number.wrapping_mul(0x9e37_79b9),
        number.wrapping_mul(0x85eb_ca6b) ^ 0xc2b2_ae35
    );
    match fastrand::u32(0..100) {
        0..15 => drop(client.get("http://web:8080/", &none).await?),
        15..60 => {
            let id = fastrand::u32(1..=240);
            client.get(&format!("http://web:8080/products/{id}"), &none).await?;
        }
        60..80 => {
            let id = fastrand::u32(1..=240).to_string();
            client.post(&format!("http://web:8080/cart/{user}/items"), &none, id).await?;
        }
        80..88 => drop(client.get(&format!("http://web:8080/cart/{user}"), &none).await?),
        _ => {
            let (_, body) = client.post(&format!("http://web:8080/checkout/{user}"), &none, "").await?;
            let order: Value = serde_json::from_slice(&body)?;
            if let Some(id) = order["id"].as_str() {
                client.get(&format!("http://web:8080/orders/{id}"), &none).await?;
            }
        }
    }
    Ok(())
}

/// Watches deliveries over a WebSocket. Reading bytes is all it takes to be an audience.
async fn watch(client: Client) {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("d2VmdC1zaG9wLWRlbW8hIQ=="));
    loop {
        let session = async {
            let response = client.open("http://notifications:8080/ws", &headers).await?;
            let mut socket = TokioIo::new(hyper::upgrade::on(response).await?);
            let mut buffer = [0; 1024];
            while socket.read(&mut buffer).await? > 0 {}
            anyhow::Ok(())
        };
        // However it ended, the next session begins after a breath.
        tokio::time::timeout(WATCH, session).await.ok();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Asks again and again; and once more when it is told to end, as programs do that hand in what they have.
pub(super) async fn cron(client: Client) -> anyhow::Result<()> {
    let mut pace = tokio::time::interval(Duration::from_secs(1));
    let end = told_to_end();
    tokio::pin!(end);
    loop {
        tokio::select! {
            _ = pace.tick() => drop(client.get(REPORT, &HeaderMap::new()).await),
            () = &mut end => return report(client).await,
        }
    }
}

/// Asks once; no answer is a failure.
pub(super) async fn report(client: Client) -> anyhow::Result<()> {
    let (status, report) = client.get(REPORT, &HeaderMap::new()).await?;
    anyhow::ensure!(status.is_success(), "{REPORT} answered {status}");
    output::line(String::from_utf8_lossy(&report));
    Ok(())
}
