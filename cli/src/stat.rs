//! `weft stat`: the golden signals of every edge, or of every route, as a table.
//!
//! In: `GET /api/graph` and filters. Out: one row per edge or route, busiest first within a caller. A
//! filter that matches nothing is explained instead of answered with an empty table.

use clap::ValueEnum;

use crate::api::{Api, Edge, Graph, Node, Signals};
use crate::graph::Names;
use crate::{output, table};

/// Stands for "anyone" where a name is expected.
const ANYONE: [&str; 3] = ["-", "*", "any"];

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft stat                    every edge
  weft stat orders             what orders calls
  weft stat - orders           who calls orders
  weft stat web orders         one edge
  weft stat web --routes       per route
  weft stat --window 10s -o json")]
pub(crate) struct StatArgs {
    /// Only calls of this one: a name, namespace/name or node id; `-` for anyone
    source: Option<String>,
    /// Only calls to this one
    target: Option<String>,
    /// A row per route instead of per edge
    #[arg(long)]
    routes: bool,
    #[command(flatten)]
    window: crate::args::WindowArgs,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    api: crate::args::ApiArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

pub(crate) async fn run(arguments: StatArgs) -> anyhow::Result<()> {
    let StatArgs { source, target, routes, window, output: format, api } = arguments;
    let (api, window) = (api.open().await?, window.window);
    let filter = Filter { source: named(source), target: named(target) };
    match format {
        Format::Table => {
            let graph = api.graph(&window).await?;
            if graph.edges.is_empty() {
                output::text(&crate::graph::empty(&graph, &api));
                return Ok(());
            }
            let edges = filter.edges(&graph)?;
            output::text(&if routes { by_route(&graph, &edges, &api) } else { by_edge(&graph, &edges) });
        }
        Format::Json => {
            // Filtered by position, so that programs get every field that the server sent.
            let text = api.graph_text(&window).await?;
            let graph: Graph = serde_json::from_slice(&text)?;
            let edges = filter.edges(&graph)?;
            let mut value: serde_json::Value = serde_json::from_slice(&text)?;
            let wanted: Vec<bool> =
                graph.edges.iter().map(|edge| edges.iter().any(|kept| std::ptr::eq(*kept, edge))).collect();
            let all = value["edges"].as_array_mut().map(std::mem::take).unwrap_or_default();
            let kept: Vec<_> =
                all.into_iter().zip(wanted).filter_map(|(edge, keep)| keep.then_some(edge)).collect();
            output::line(serde_json::to_string_pretty(&kept)?);
        }
    }
    Ok(())
}

fn named(name: Option<String>) -> Option<String> {
    name.filter(|name| !ANYONE.contains(&name.as_str()))
}

struct Filter {
    source: Option<String>,
    target: Option<String>,
}

impl Filter {
    /// The edges that match, busiest first within a caller.
    fn edges<'a>(&self, graph: &'a Graph) -> anyhow::Result<Vec<&'a Edge>> {
        let nodes = graph.by_id();
        for name in [&self.source, &self.target].into_iter().flatten() {
            if !graph.nodes.iter().any(|node| is(node, name)) {
                return Err(unknown(graph, name));
            }
        }
        let matches = |id: &str, name: &Option<String>| {
            name.as_ref().is_none_or(|name| nodes.get(id).is_some_and(|node| is(node, name)))
        };
        let mut edges: Vec<&Edge> = graph
            .edges
            .iter()
            .filter(|edge| matches(&edge.source, &self.source) && matches(&edge.target, &self.target))
            .collect();
        if edges.is_empty()
            && let Some(source) = &self.source
        {
            match &self.target {
                None => anyhow::bail!("{source} has called nobody\n  see who calls it: weft stat - {source}"),
                Some(target) => {
                    anyhow::bail!("{source} has not called {target}\n  see what it calls: weft stat {source}")
                }
            }
        }
        let traffic = |edge: &Edge| {
            edge.signals.requests_per_second.unwrap_or_default()
                + edge.bytes_per_second().unwrap_or_default() / 1e9
        };
        edges.sort_by(|a, b| a.source.cmp(&b.source).then_with(|| traffic(b).total_cmp(&traffic(a))));
        Ok(edges)
    }
}

fn is(node: &Node, name: &str) -> bool {
    let host = node.name.rsplit_once(':').map_or(node.name.as_str(), |(host, _)| host);
    node.name == name || node.label() == name || node.id == name || host == name
}

fn unknown(graph: &Graph, name: &str) -> anyhow::Error {
    let mut names: Vec<&str> = graph.nodes.iter().map(|node| node.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0 => anyhow::anyhow!("the graph is empty, so there is no {name:?}"),
        _ => anyhow::anyhow!("the graph has no {name:?}\n  it has: {}", names.join(", ")),
    }
}

fn by_edge(graph: &Graph, edges: &[&Edge]) -> String {
    let names = Names::new(graph);
    let header = [
        "SOURCE",
        "TARGET",
        "PROTOCOL",
        "TLS",
        ">SUCCESS",
        ">RPS",
        ">LATENCY_P50",
        ">LATENCY_P95",
        ">LATENCY_P99",
        ">ATTEMPTS",
        ">TCP_CONN",
        ">BYTES",
    ];
    let rows: Vec<Vec<String>> = edges
        .iter()
        .map(|edge| {
            let mut row = vec![
                names.of(&edge.source),
                names.of(&edge.target),
                edge.protocol.clone(),
                table::protection(edge),
            ];
            // Of bytes, latency would be the life of connections.
            let is_http = matches!(edge.protocol.as_str(), "http" | "grpc");
            let latency_ms = edge.signals.latency_ms.filter(|_| is_http);
            row.extend(signals(&Signals { latency_ms, ..edge.signals }));
            row.push(table::attempts(edge.retries));
            row.push(
                edge.connections.as_ref().map_or("-".into(), |connections| connections.opened.to_string()),
            );
            row.push(table::bytes_per_second(edge.bytes_per_second()));
            row
        })
        .collect();
    table::render(&header, &rows)
}

fn by_route(graph: &Graph, edges: &[&Edge], api: &Api) -> String {
    let names = Names::new(graph);
    let header = [
        "SOURCE",
        "TARGET",
        "METHOD",
        "ROUTE",
        ">SUCCESS",
        ">RPS",
        ">LATENCY_P50",
        ">LATENCY_P95",
        ">LATENCY_P99",
    ];
    let mut rows = Vec::new();
    let mut more = String::new();
    for edge in edges {
        for route in &edge.routes {
            let method = route.method.clone().unwrap_or_else(|| "-".into());
            let mut row = vec![names.of(&edge.source), names.of(&edge.target), method, route.route.clone()];
            row.extend(signals(&route.signals));
            rows.push(row);
        }
        let hidden = edge.routes_total.saturating_sub(edge.routes.len());
        if hidden > 0 {
            let (source, target) = (names.of(&edge.source), names.of(&edge.target));
            let url = format!("{}/api/edges/{}", api.base(), edge.id);
            more.push_str(&format!("… and {hidden} quieter routes of {source} to {target}: curl {url}\n"));
        }
    }
    if rows.is_empty() {
        return "no routes: nothing here spoke HTTP in this window\n".into();
    }
    table::render(&header, &rows) + &more
}

fn signals(signals: &Signals) -> [String; 5] {
    let latency = signals.latency_ms.unwrap_or_default();
    [
        table::success(signals.success_rate),
        table::rate(signals),
        table::latency(latency.p50),
        table::latency(latency.p95),
        table::latency(latency.p99),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Graph {
        console::set_colors_enabled(false);
        serde_json::from_str(include_str!("graph/shop.json")).expect("the API's JSON")
    }

    fn filter(source: &str, target: &str) -> Filter {
        Filter { source: named(Some(source.into())), target: named(Some(target.into())) }
    }

    #[test]
    fn every_edge_has_a_row() {
        let graph = shop();
        insta::assert_snapshot!(by_edge(&graph, &filter("-", "-").edges(&graph).expect("edges")));
    }

    #[test]
    fn every_route_has_a_row() {
        let graph = shop();
        let api = Api::new("127.0.0.1:8080").expect("valid");
        insta::assert_snapshot!(by_route(&graph, &filter("web", "-").edges(&graph).expect("edges"), &api));
    }

    #[test]
    fn names_may_be_short_long_or_ids() {
        let graph = shop();
        for name in ["orders", "shop/orders", "workload:shop/orders"] {
            assert_eq!(filter("-", name).edges(&graph).expect("edges").len(), 2, "{name}");
        }
        assert_eq!(filter("-", "api.bank.example").edges(&graph).expect("edges").len(), 1);
    }

    #[test]
    fn what_matches_nothing_is_explained() {
        let graph = shop();
        let error = filter("cache", "-").edges(&graph).expect_err("calls nobody");
        assert!(error.to_string().contains("weft stat - cache"), "{error}");
        let error = filter("ordres", "-").edges(&graph).expect_err("a typing error");
        assert!(error.to_string().contains("orders"), "{error}");
    }
}
