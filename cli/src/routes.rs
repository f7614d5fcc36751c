//! `weft routes`: services with their routes and backends, what is configured and what comes of it.
//!
//! In: `GET /api/routes`. Out: a tree service → route → backend with signals, timeouts, retries and breakers.
//! Invariant: of a split, the configured share and the observed one stand side by side; a backend that is only
//! the service again is not repeated below its route.

use clap::ValueEnum;
use console::style;
use serde::Deserialize;

use crate::api::{Api, Signals, query};
use crate::circuits::{State, coloured};
use crate::{output, table};

/// Matches longer than this are cut: their rest is in `-o json`.
const MATCHES_WIDTH: usize = 56;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft routes                      every service with its routes and backends
  weft routes orders               one service, by name, name.namespace or name.namespace:port
  weft routes --window 10s         over the last ten seconds
  weft routes -o json | jq '.services[].routes[].backends[] | {cluster, share, observed_share}'

SHARE is what is configured, then what was observed.")]
pub(crate) struct RoutesArgs {
    /// Only this service
    service: Option<String>,
    #[command(flatten)]
    window: crate::args::WindowArgs,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "tree")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Tree,
    /// As the API says it
    Json,
}

/// `GET /api/routes`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Routes {
    /// How many there are, also those that did not fit into the answer.
    #[serde(default)]
    services_total: usize,
    services: Vec<Service>,
}

#[derive(Debug, Deserialize)]
struct Service {
    service: String,
    #[serde(default)]
    circuit: Option<State>,
    #[serde(default)]
    policies: Vec<String>,
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
struct Route {
    name: String,
    #[serde(default)]
    matches: Vec<String>,
    #[serde(default)]
    timeout_ms: Option<f64>,
    #[serde(default)]
    backend_timeout_ms: Option<f64>,
    #[serde(default)]
    retry: Option<Retry>,
    #[serde(flatten)]
    signals: Signals,
    #[serde(default)]
    backends: Vec<Backend>,
}

#[derive(Debug, Deserialize)]
struct Retry {
    attempts: u32,
    #[serde(default)]
    on: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Backend {
    cluster: String,
    #[serde(default)]
    share: Option<f64>,
    #[serde(default)]
    observed_share: Option<f64>,
    #[serde(flatten)]
    signals: Signals,
    #[serde(default)]
    circuit: Option<State>,
    #[serde(default)]
    circuits: Circuits,
}

/// The circuits of a backend's endpoints.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Circuits {
    open: usize,
    half_open: usize,
    closed: usize,
}

pub(crate) async fn run(arguments: RoutesArgs) -> anyhow::Result<()> {
    let RoutesArgs { service, window, output: format, api } = arguments;
    let api = api.open().await?;
    let path = |service: Option<&str>| {
        format!("/api/routes{}", query(&[("window", Some(&window.window)), ("service", service)]))
    };
    let mut body = api.get(&path(service.as_deref().map(host).as_deref())).await?;
    let mut routes: Routes = api.read(&body)?;
    if routes.services.is_empty() && service.is_some() {
        // To say what there is instead.
        body = api.get(&path(None)).await?;
        routes = api.read(&body)?;
    }
    let shown = filter(&routes, service.as_deref())?;
    match format {
        Format::Tree if shown.is_empty() => {
            output::line(
                "no service is known: add one with `weft run --name NAME --port PORT -- COMMAND`, or see `weft demo`",
            );
        }
        Format::Tree => {
            output::text(&tree(&shown, service.is_none(), &api));
            let more = routes.services_total.saturating_sub(routes.services.len());
            if more > 0 {
                output::line(format_args!("… and {more} more: ask for one service by its name"));
            }
        }
        Format::Json => {
            let mut document: serde_json::Value = serde_json::from_slice(&body)?;
            if let Some(all) = document["services"].as_array_mut() {
                all.retain(|one| shown.iter().any(|service| one["service"] == service.service.as_str()));
            }
            output::line(format_args!("{document:#}"));
        }
    }
    Ok(())
}

/// `shop/orders` as the API calls it, `orders.shop`.
fn host(name: &str) -> String {
    match name.split_once('/') {
        Some((namespace, short)) => format!("{short}.{namespace}"),
        None => name.to_owned(),
    }
}

fn filter<'a>(routes: &'a Routes, name: Option<&str>) -> anyhow::Result<Vec<&'a Service>> {
    let Some(name) = name else { return Ok(routes.services.iter().collect()) };
    let wanted = host(name);
    let is = |service: &&Service| {
        let host = service.service.rsplit_once(':').map_or(service.service.as_str(), |(host, _)| host);
        service.service == wanted
            || host == wanted
            || host.split_once('.').is_some_and(|(short, _)| short == wanted)
    };
    let shown: Vec<&Service> = routes.services.iter().filter(is).collect();
    if shown.is_empty() {
        let names: Vec<&str> = routes.services.iter().map(|service| service.service.as_str()).collect();
        anyhow::bail!("there is no service {name:?}\n  there are: {}", names.join(", "));
    }
    Ok(shown)
}

/// `brief` says of services of which there is nothing to say only that they exist.
fn tree(services: &[&Service], brief: bool, api: &Api) -> String {
    let (quiet, services): (Vec<&Service>, Vec<&Service>) =
        services.iter().partition(|service| brief && service.is_quiet());
    let header =
        ["", "SHARE", ">SUCCESS", ">RPS", ">LATENCY_P50", ">LATENCY_P99", "TIMEOUT", "RETRIES", "BREAKER"];
    let mut rows = Vec::new();
    for service in services {
        rows.push(service_row(service));
        for (index, route) in service.routes.iter().enumerate() {
            let last = index + 1 == service.routes.len();
            let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let backends = route.backends_apart(&service.service);
            let mut row = route_row(branch, route);
            if backends.is_empty() {
                // The service itself is not repeated, but its breaker is to be seen.
                row[8] = route.backends.first().map(Backend::breaker).unwrap_or_default();
            }
            rows.push(row);
            rows.extend(backend_rows(below, backends));
        }
    }
    let mut text = if rows.is_empty() { String::new() } else { table::render(&header, &rows) + "\n" };
    if !quiet.is_empty() {
        let names: Vec<&str> = quiet.iter().map(|service| service.service.as_str()).collect();
        let names =
            format!("{} {}", style("no HTTP requests by these names, and no rules:").dim(), names.join(", "));
        text.push_str(&names);
        text.push('\n');
    }
    let url = format!("{}/?view=routes", api.base());
    format!("{text}{} {}\n", style("in the browser:").dim(), style(url).dim())
}

impl Route {
    /// Its backends, unless the only one is the service itself.
    fn backends_apart(&self, service: &str) -> &[Backend] {
        match self.backends.as_slice() {
            [itself] if itself.cluster == service => &[],
            backends => backends,
        }
    }
}

impl Service {
    /// Whether nobody calls it and nobody wrote anything about it.
    fn is_quiet(&self) -> bool {
        let plain = |route: &Route| {
            route.name == weft_wire::attribute::ROUTE_DEFAULT
                && route.signals.requests_per_second.unwrap_or_default() == 0.0
        };
        self.policies.is_empty() && self.routes.iter().all(plain)
    }
}

impl Backend {
    /// Closed, open, or how much of it is open.
    fn breaker(&self) -> String {
        let Circuits { open, half_open, closed } = self.circuits;
        let all = open + half_open + closed;
        match (self.circuit, open, half_open) {
            (None, ..) => "-".into(),
            (Some(_), open, _) if open > 0 && open < all => {
                style(format!("{open} of {all} open")).yellow().bold().to_string()
            }
            (Some(_), 0, probing) if probing > 0 && probing < all => {
                style(format!("{probing} of {all} half-open")).yellow().bold().to_string()
            }
            (Some(state), ..) => coloured(state),
        }
    }
}

fn service_row(service: &Service) -> Vec<String> {
    let mut label = style(&service.service).bold().to_string();
    if !service.policies.is_empty() {
        label.push_str(&style(format!("  {}", service.policies.join(", "))).dim().to_string());
    }
    let mut row = vec![label];
    row.resize(8, String::new());
    row.push(service.circuit.map(coloured).unwrap_or_default());
    row
}

fn route_row(branch: &str, route: &Route) -> Vec<String> {
    let matches = route.matches.join(", ");
    let label = match matches.as_str() {
        "" => route.name.clone(),
        all => format!("{}: {}", route.name, console::truncate_str(all, MATCHES_WIDTH, "…")),
    };
    let mut row = vec![format!("{branch}{label}"), String::new()];
    row.extend(signals(&route.signals));
    row.push(match (route.timeout_ms.filter(|ms| *ms > 0.0), route.backend_timeout_ms) {
        (None, None) => "-".into(),
        (whole, None) => table::latency(whole),
        (whole, attempt) => format!("{}, {} each", table::latency(whole), table::latency(attempt)),
    });
    row.push(match &route.retry {
        None => "-".into(),
        Some(retry) => format!("{} on {}", retry.attempts, retry.on.join(",")),
    });
    row.push(String::new());
    row
}

fn backend_rows(indent: &str, backends: &[Backend]) -> impl Iterator<Item = Vec<String>> {
    backends.iter().enumerate().map(move |(index, backend)| {
        let branch = if index + 1 == backends.len() { "└─ " } else { "├─ " };
        let share = match (backend.share, backend.observed_share) {
            (None, None) => "-".into(),
            (configured, observed) => format!("{} → {}", percent(configured), percent(observed)),
        };
        let mut row = vec![format!("{indent}{branch}{}", backend.cluster), share];
        row.extend(signals(&backend.signals));
        row.extend([String::new(), String::new(), backend.breaker()]);
        row
    })
}

fn signals(signals: &Signals) -> [String; 4] {
    let latency = signals.latency_ms.unwrap_or_default();
    [
        table::success(signals.success_rate),
        table::rate(signals),
        table::latency(latency.p50),
        table::latency(latency.p99),
    ]
}

/// `90%`, `9.1%`; `-` when it is not known.
fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".into(),
        Some(share) if (share * 100.0).fract() == 0.0 => format!("{:.0}%", share * 100.0),
        Some(share) => format!("{:.1}%", share * 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Routes {
        console::set_colors_enabled(false);
        serde_json::from_str(include_str!("routes/shop.json")).expect("the API's JSON")
    }

    #[test]
    fn the_tree_shows_rules_shares_and_breakers() {
        let (routes, api) = (shop(), Api::new("127.0.0.1:8080").expect("valid"));
        insta::assert_snapshot!(tree(&filter(&routes, None).expect("all"), true, &api));
    }

    #[test]
    fn who_asks_for_a_quiet_service_sees_it() {
        let (routes, api) = (shop(), Api::new("127.0.0.1:8080").expect("valid"));
        let text = tree(&filter(&routes, Some("labels")).expect("there"), false, &api);
        assert!(text.contains("labels.shop:8080\n└─ default: /**"), "{text}");
    }

    #[test]
    fn a_service_may_be_named_in_every_usual_way() {
        let routes = shop();
        for name in ["orders", "orders.shop", "orders.shop:8080", "shop/orders"] {
            assert_eq!(filter(&routes, Some(name)).expect("there").len(), 1, "{name}");
        }
        let error = filter(&routes, Some("ordres")).expect_err("a typing error").to_string();
        assert!(error.contains("orders.shop:8080"), "{error}");
    }
}
