//! A caller's deadline along a chain: `web` calls `orders`, which calls `stock`. What nobody waits for any more ends
//! everywhere.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::extract::State;
use axum::routing::any;
use http::{HeaderMap, StatusCode, header};
use tokio::net::TcpListener;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

use super::forward;

/// What callers of `orders` are granted.
const GRANTED: Duration = Duration::from_millis(1500);
/// What `orders` does before it asks on.
const WORK: Duration = Duration::from_millis(300);

const POLICY: &str = "\
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {request: 1500ms}
";

/// What became of requests at one app.
#[derive(Debug, Default)]
struct Seen {
    /// `grpc-timeout` of each request as it arrived.
    timeouts: Mutex<Vec<String>>,
    /// When each was given up.
    given_up: Mutex<Vec<Instant>>,
}

impl Seen {
    fn arrived(&self, headers: &HeaderMap) {
        let timeout = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.timeouts.lock().unwrap_or_else(PoisonError::into_inner).push(timeout.to_owned());
    }

    fn timeout(&self) -> anyhow::Result<Duration> {
        let timeouts = self.timeouts.lock().unwrap_or_else(PoisonError::into_inner);
        let text = timeouts.last().context("nothing arrived")?;
        let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).context("no timeout")?;
        let number: u64 = digits.parse().with_context(|| format!("{text:?}"))?;
        Ok(match unit {
            "n" => Duration::from_nanos(number),
            "u" => Duration::from_micros(number),
            "m" => Duration::from_millis(number),
            "S" => Duration::from_secs(number),
            _ => anyhow::bail!("{text:?}"),
        })
    }
}

/// Notes when the request it belongs to ends before its answer.
struct Watched(Arc<Seen>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.given_up.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }
}

async fn listen(app: Router) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}

/// Never answers.
async fn stock() -> anyhow::Result<(SocketAddr, Arc<Seen>)> {
    let seen = Arc::new(Seen::default());
    let answer = any(async |State(seen): State<Arc<Seen>>, headers: HeaderMap| -> StatusCode {
        seen.arrived(&headers);
        let _watched = Watched(seen);
        std::future::pending().await
    });
    Ok((listen(Router::new().route("/{*path}", answer).with_state(Arc::clone(&seen))).await?, seen))
}

/// Works, then asks `stock` by way of its own sidecar, and passes on what a gRPC library passes on.
async fn orders(next: Arc<Mutex<Option<SocketAddr>>>) -> anyhow::Result<(SocketAddr, Arc<Seen>)> {
    let seen = Arc::new(Seen::default());
    let known = Arc::clone(&seen);
    let answer = any(async move |headers: HeaderMap| -> StatusCode {
        known.arrived(&headers);
        let next = *next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = next else { return StatusCode::INTERNAL_SERVER_ERROR };
        tokio::time::sleep(WORK).await;
        let mut ask = Ask::get("/stock", "stock.shop:8080");
        for name in ["grpc-timeout", "content-type"] {
            if let Some(value) = headers.get(name).and_then(|value| value.to_str().ok()) {
                // The library's own clock ran meanwhile; what the mesh left of it is not its to lengthen.
                ask = ask.header(name, value);
            }
        }
        client::once(next, &ask).await.map_or(StatusCode::BAD_GATEWAY, |answer| answer.status)
    });
    Ok((listen(Router::new().route("/{*path}", answer)).await?, seen))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::print_stderr, reason = "what was measured is for people")]
async fn a_deadline_shrinks_along_the_chain_and_ends_work_downstream() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let plane = Plane::start(POLICY).await?;
    let (stock_app, at_stock) = stock().await?;
    let next = Arc::new(Mutex::new(None));
    let (orders_app, at_orders) = orders(Arc::clone(&next)).await?;
    let start = async |name: &str, flags: &[String]| {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Sidecar::start(directory.path(), plane.control, name, &flags).await
    };
    let patient = "--discovery-timeout=20s".to_owned();
    let inbound = |name: &str, app: SocketAddr| {
        [format!("--register={name}.shop:8080/http"), format!("--inbound-forward={app}")]
    };
    let callee = start("stock", &inbound("stock", stock_app)).await?;
    let middle = [&inbound("orders", orders_app)[..], &[forward("stock"), patient.clone()]].concat();
    let middle = start("orders", &middle).await?;
    *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(middle.address("/forwards/0")?);
    let caller = start("web", &[forward("orders"), patient]).await?;
    let to = caller.address("/forwards/0")?;

    // Until the registrations have travelled there is nothing to wait for.
    let plain = Ask::get("/orders", "orders.shop:8080");
    let (asked, answer) = poll::until("the chain is there", PATIENCE, async || {
        let asked = Instant::now();
        let answer = client::once(to, &plain).await?;
        ensure!(!at_stock.given_up.lock().unwrap_or_else(PoisonError::into_inner).is_empty(), "{answer:?}");
        anyhow::Ok((asked, answer))
    })
    .await?;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT, "{answer:?}");
    // Both sidecars keep the time; whichever clock is a hair faster says so.
    let reason = answer.header("x-weft-reason").unwrap_or_default();
    assert!(reason.starts_with("request_timeout; by="), "{answer:?}");
    let given_up = poll::until("stock's work ends too", PATIENCE, async || {
        let given_up = at_stock.given_up.lock().unwrap_or_else(PoisonError::into_inner);
        given_up.iter().copied().find(|at| *at > asked).context("it goes on")
    })
    .await?;
    let took = given_up - asked;
    eprintln!("{GRANTED:?} granted to orders; stock stopped working after {took:.0?}");
    assert!(took >= WORK && took < GRANTED + Duration::from_secs(2), "{took:?}");

    // A gRPC caller that has ten seconds: each hop grants what is left of the least.
    let grpc = plain.header(header::CONTENT_TYPE.as_str(), "application/grpc").header("grpc-timeout", "10S");
    client::once(to, &grpc).await?;
    let (first, second) = (at_orders.timeout()?, at_stock.timeout()?);
    eprintln!("grpc-timeout: 10 s at the caller, {first:?} at orders, {second:?} at stock");
    assert!(first <= GRANTED, "{first:?}");
    assert!(second <= first, "{second:?}");

    caller.stop().await?;
    middle.stop().await?;
    callee.stop().await?;
    plane.stop().await;
    Ok(())
}
