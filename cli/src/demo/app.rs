//! The shop's programs: ordinary small services that know nothing of a mesh.
//!
//! In: a name (`weft demo-app orders`), addresses in the environment where names do not resolve. Out: a
//! server, or a caller, that runs until it is told to end.
//!
//! Invariant: they speak to each other only over the network, by service name, as separate processes; the
//! only thing they do for observability is to pass the trace headers of a request on, as any instrumented
//! app does.

mod basket;
mod callers;
mod checkout;
mod client;
mod payments;
mod storefront;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use http::{HeaderMap, HeaderName};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use weft_wire::header;

use client::Client;

/// Headers that belong to a trace, in every format Weft understands.
const TRACE_HEADERS: [&str; 8] = [
    header::REQUEST_ID,
    header::TRACEPARENT,
    header::TRACESTATE,
    header::B3,
    header::B3_TRACE_ID,
    header::B3_SPAN_ID,
    header::B3_SAMPLED,
    header::B3_FLAGS,
];

/// Where the program finds the few peers that have no HTTP proxy in front, where it listens, and what it is like.
#[derive(Debug, Clone)]
struct Places {
    listen: Option<SocketAddr>,
    cache: String,
    payments: String,
    bank: String,
    version: String,
    frail: bool,
}

impl Places {
    fn from_environment() -> anyhow::Result<Self> {
        let or = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.into());
        let listen = match std::env::var("WEFT_DEMO_LISTEN") {
            Ok(address) => Some(address.parse().context("WEFT_DEMO_LISTEN")?),
            Err(_) => None,
        };
        Ok(Self {
            listen,
            cache: or("WEFT_DEMO_CACHE", "cache:6379"),
            payments: or("WEFT_DEMO_PAYMENTS", "http://payments:50051"),
            bank: or("WEFT_DEMO_BANK", "http://api.bank.example"),
            version: or("WEFT_DEMO_VERSION", "v1"),
            frail: std::env::var_os("WEFT_DEMO_FRAIL").is_some(),
        })
    }
}

/// Runs the program `name` until SIGTERM.
pub(crate) fn run(name: &str) -> anyhow::Result<()> {
    crate::inner::title(name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let places = Places::from_environment()?;
        let client = Client::from_environment()?;
        let listen = |port: u16| listen(places.listen, port);
        match name {
            "web" => serve(listen(8080).await?, storefront::web(client)).await,
            "catalog" => serve(listen(8080).await?, storefront::catalog(&places.version)).await,
            "recommendations" => serve(listen(8080).await?, storefront::recommendations()).await,
            "cart" => serve(listen(8080).await?, basket::cart(&places.cache, places.frail)?).await,
            "cache" => until_told(basket::cache(listen(6379).await?)).await,
            "orders" => serve(listen(8080).await?, checkout::orders(client, &places.payments)?).await,
            "inventory" => serve(listen(8080).await?, checkout::inventory()).await,
            "notifications" => serve(listen(8080).await?, checkout::notifications()).await,
            "payments" => payments::serve(listen(50051).await?, client, places.bank.clone()).await,
            "bank" => serve(listen(80).await?, payments::bank()).await,
            "shopper" => until_told(callers::shopper(client)).await,
            "cron" => callers::cron(client).await,
            "report" => until_told(callers::report(client)).await,
            other => anyhow::bail!("the shop has no program named {other:?}"),
        }
    })
}

async fn listen(chosen: Option<SocketAddr>, port: u16) -> anyhow::Result<TcpListener> {
    let address = match chosen {
        Some(address) => address,
        // Dual stack where there is IPv6.
        None => match TcpListener::bind(("::", port)).await {
            Ok(listener) => return Ok(listener),
            Err(_) => SocketAddr::from(([0, 0, 0, 0], port)),
        },
    };
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

async fn serve(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    Ok(axum::serve(listener, router).with_graceful_shutdown(told_to_end()).await?)
}

async fn until_told(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::select! {
        result = work => result,
        () = told_to_end() => Ok(()),
    }
}

async fn told_to_end() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => {
            terminate.recv().await;
        }
        // Without a handler the signal simply ends the process.
        Err(_) => std::future::pending().await,
    }
}

/// What a well-behaved service copies from the request it serves to the requests it makes.
fn trace(headers: &HeaderMap) -> HeaderMap {
    TRACE_HEADERS
        .iter()
        .filter_map(|&name| Some((HeaderName::from_static(name), headers.get(name)?.clone())))
        .collect()
}

/// Time that work takes: usually around `typical`, sometimes much longer. Log-normal, as real services are.
async fn work(typical: Duration, spread: f64) {
    let normal = (0..12).map(|_| fastrand::f64()).sum::<f64>() - 6.0;
    let factor = (normal * spread).exp().clamp(0.2, 25.0);
    tokio::time::sleep(typical.mul_f64(factor)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_trace_headers_travel_on() {
        let mut incoming = HeaderMap::new();
        incoming.insert("traceparent", "00-1-2-01".parse().expect("valid"));
        incoming.insert("cookie", "secret=1".parse().expect("valid"));
        let outgoing = trace(&incoming);
        assert_eq!(outgoing.len(), 1);
        assert_eq!(outgoing["traceparent"], "00-1-2-01");
    }
}
