//! `weft graph`: the live call graph in a terminal.
//!
//! In: `GET /api/graph`. Out: a tree from those whom nobody calls down to those who call nobody, or the
//! same as Graphviz or JSON. Invariant: every edge is shown exactly once; a node that appears a second time
//! points up (`↑`) instead of repeating its calls, which also ends cycles.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;

use clap::ValueEnum;
use console::style;

use crate::api::{Api, CircuitCounts, Edge, Graph, Latency, Node};
use crate::{output, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft graph                        who calls whom, over the last minute
  weft graph --window 10s           the last ten seconds
  weft graph -o dot | dot -Tsvg     a picture
  weft graph -o json | jq '.edges[] | select(.success_rate < 0.99)'")]
pub(crate) struct GraphArgs {
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
    /// For Graphviz
    Dot,
}

pub(crate) async fn run(arguments: GraphArgs) -> anyhow::Result<()> {
    let GraphArgs { window, output: format, api } = arguments;
    let (api, window) = (api.open().await?, window.window);
    match format {
        Format::Tree => output::text(&tree(&api.graph(&window).await?, &api)),
        Format::Dot => output::text(&dot(&api.graph(&window).await?)),
        Format::Json => {
            let value: serde_json::Value = serde_json::from_slice(&api.graph_text(&window).await?)?;
            output::line(serde_json::to_string_pretty(&value)?);
        }
    }
    Ok(())
}

/// The graph for people.
fn tree(graph: &Graph, api: &Api) -> String {
    if graph.edges.is_empty() {
        return empty(graph, api);
    }
    let names = Names::new(graph);
    let mut walk = Walk::new(graph, &names);
    let called: HashSet<&str> = graph.edges.iter().map(|edge| edge.target.as_str()).collect();
    let mut roots: Vec<&str> = walk.calls.keys().copied().filter(|source| !called.contains(source)).collect();
    // Meshed callers first: theirs is the whole story, while callers without a sidecar only join in.
    roots.sort_by_key(|root| (!root.starts_with("workload:"), names.of(root)));
    for root in roots {
        walk.root(root);
    }
    // What is left is part of cycles that nobody outside calls.
    while let Some(source) = walk.calls.keys().copied().find(|source| !walk.shown.contains(source)) {
        walk.root(source);
    }
    let header = ["", "PROTOCOL", "TLS", ">SUCCESS", ">RPS", ">P50", ">P95", ">P99", ">ATTEMPTS", "CIRCUITS"];
    let headline = format!(
        "{}, {}, last {}{}\n\n",
        counted(graph.nodes.len(), "node"),
        counted(graph.edges.len(), "edge"),
        span(graph.window_seconds),
        names.common.as_deref().map(|namespace| format!(", namespace {namespace}")).unwrap_or_default()
    );
    let hint = format!("\n{} {}\n", style("in the browser:").dim(), style(api.base()).dim());
    headline + &table::render(&header, &walk.rows) + &hint
}

/// `1 edge`, `2 edges`.
fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// What the control plane says about the silence.
pub(crate) fn empty(graph: &Graph, api: &Api) -> String {
    let (why, hint) = match &graph.diagnosis {
        Some(diagnosis) => (diagnosis.text.as_str(), diagnosis.hint.as_str()),
        None => ("nothing was called", "look further back with --window 1h"),
    };
    let window = span(graph.window_seconds);
    format!(
        "no calls in the last {window}: {why}\n  {hint}\n  what is connected: curl {}/api/proxies\n",
        api.base()
    )
}

fn span(seconds: f64) -> String {
    if seconds >= 3600.0 {
        format!("{:.0} h", seconds / 3600.0)
    } else if seconds > 60.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{seconds:.0} s")
    }
}

/// How nodes are called on screen: without the namespace when there is only one.
pub(crate) struct Names<'a> {
    nodes: HashMap<&'a str, &'a Node>,
    common: Option<String>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(graph: &'a Graph) -> Self {
        let namespaces: HashSet<&str> = graph
            .nodes
            .iter()
            .filter_map(|node| node.namespace.as_deref())
            .filter(|name| !name.is_empty())
            .collect();
        let common = match namespaces.len() {
            1 => namespaces.into_iter().next().map(str::to_owned),
            _ => None,
        };
        Self { nodes: graph.by_id(), common }
    }

    pub(crate) fn of(&self, id: &str) -> String {
        let Some(node) = self.nodes.get(id) else { return id.to_owned() };
        let name = if self.common.is_some() { node.name.clone() } else { node.label() };
        match node.kind.as_str() {
            "external" => format!("{name} (external)"),
            "unmeshed" => format!("{name} (no sidecar)"),
            "service" => format!("{name} (no endpoint)"),
            _ => name,
        }
    }
}

struct Walk<'a> {
    names: &'a Names<'a>,
    calls: BTreeMap<&'a str, Vec<&'a Edge>>,
    shown: HashSet<&'a str>,
    rows: Vec<Vec<String>>,
}

impl<'a> Walk<'a> {
    fn new(graph: &'a Graph, names: &'a Names<'a>) -> Self {
        let mut calls: BTreeMap<&str, Vec<&Edge>> = BTreeMap::new();
        for edge in &graph.edges {
            calls.entry(&edge.source).or_default().push(edge);
        }
        for edges in calls.values_mut() {
            edges.sort_by_key(|edge| (names.of(&edge.target), edge.protocol.clone()));
        }
        Self { names, calls, shown: HashSet::new(), rows: Vec::new() }
    }

    fn root(&mut self, id: &'a str) {
        let mut row = vec![style(self.names.of(id)).bold().to_string()];
        row.resize(10, String::new());
        self.rows.push(row);
        self.children(id, "");
    }

    /// Recursion is as deep as the longest chain of distinct nodes.
    fn children(&mut self, id: &'a str, indent: &str) {
        self.shown.insert(id);
        let edges = self.calls.get(id).cloned().unwrap_or_default();
        for (index, edge) in edges.iter().enumerate() {
            let last = index + 1 == edges.len();
            let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            let seen =
                self.shown.contains(edge.target.as_str()) && self.calls.contains_key(edge.target.as_str());
            let up = if seen { " ↑" } else { "" };
            self.rows.push(row(format!("{indent}{branch}{}{up}", self.names.of(&edge.target)), edge));
            // Two edges of different protocols to the same target: its calls follow the last of them.
            let again = edges.get(index + 1).is_some_and(|next| next.target == edge.target);
            if !seen && !again {
                self.children(&edge.target, &format!("{indent}{below}"));
            }
        }
    }
}

fn row(label: String, edge: &Edge) -> Vec<String> {
    // For bytes, latency would be the connections' life, which says nothing about how good they were.
    let (rate, latency) = match edge.protocol.as_str() {
        "http" | "grpc" => (table::rate(&edge.signals), edge.signals.latency_ms.unwrap_or_default()),
        _ => (table::bytes_per_second(edge.bytes_per_second()), Latency::default()),
    };
    vec![
        label,
        edge.protocol.clone(),
        table::protection(edge),
        table::success(edge.signals.success_rate),
        rate,
        table::latency(latency.p50),
        table::latency(latency.p95),
        table::latency(latency.p99),
        table::attempts(edge.retries),
        circuits(edge.circuits),
    ]
}

/// `2 open`, `1 half-open`; nothing where all are closed.
fn circuits(circuits: Option<CircuitCounts>) -> String {
    match circuits {
        Some(CircuitCounts { open: open @ 1.., .. }) => {
            style(format!("{open} open")).red().bold().to_string()
        }
        Some(CircuitCounts { half_open: half @ 1.., .. }) => {
            style(format!("{half} half-open")).yellow().to_string()
        }
        _ => String::new(),
    }
}

/// The graph for Graphviz.
fn dot(graph: &Graph) -> String {
    let names = Names::new(graph);
    let mut text = String::from("digraph weft {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n");
    for node in &graph.nodes {
        let shape = match node.kind.as_str() {
            "external" => ", shape=ellipse, style=dashed",
            "unmeshed" => ", style=dashed",
            _ => "",
        };
        writeln!(text, "  {} [label={}{shape}];", quoted(&node.id), quoted(&names.of(&node.id))).ok();
    }
    for edge in &graph.edges {
        let latency = edge.signals.latency_ms.unwrap_or_default();
        let success = edge.signals.success_rate.map_or("-".into(), |rate| format!("{:.2}%", rate * 100.0));
        let label = format!(
            "{} {}\\n{success} p99 {}{}",
            edge.protocol,
            table::rate(&edge.signals),
            table::latency(latency.p99),
            match edge.tls.as_deref() {
                Some(word @ ("mutual" | "mixed")) => format!("\\n{word} TLS"),
                _ => String::new(),
            }
        );
        let colour =
            if edge.signals.success_rate.is_some_and(|rate| rate < 0.95) { ", color=red" } else { "" };
        writeln!(text, "  {} -> {} [label=\"{label}\"{colour}];", quoted(&edge.source), quoted(&edge.target))
            .ok();
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Graph {
        serde_json::from_str(include_str!("graph/shop.json")).expect("the API's JSON")
    }

    fn api() -> Api {
        Api::new("127.0.0.1:8080").expect("valid")
    }

    #[test]
    fn the_tree_shows_every_edge_once() {
        console::set_colors_enabled(false);
        insta::assert_snapshot!(tree(&shop(), &api()));
    }

    #[test]
    fn graphviz_can_draw_it() {
        insta::assert_snapshot!(dot(&shop()));
    }

    #[test]
    fn a_cycle_ends() {
        console::set_colors_enabled(false);
        let mut graph = shop();
        let mut back = graph.edges[0].clone();
        std::mem::swap(&mut back.source, &mut back.target);
        graph.edges = vec![graph.edges[0].clone(), back];
        let text = tree(&graph, &api());
        assert_eq!(text.matches(" http ").count(), 2, "{text}");
    }

    #[test]
    fn an_empty_graph_says_what_to_do() {
        let diagnosis = crate::api::Diagnosis {
            text: "no sidecar is connected".into(),
            hint: "start one with `weft run --name NAME --port PORT -- COMMAND`".into(),
        };
        let graph =
            Graph { window_seconds: 60.0, diagnosis: Some(diagnosis), nodes: Vec::new(), edges: Vec::new() };
        insta::assert_snapshot!(tree(&graph, &api()));
    }
}
