//! `weft circuits`: every circuit of the mesh, the open ones first, with the reason.
//!
//! In: `GET /api/circuits` and filters. Out: a table, once or again and again. Invariant: ages and countdowns
//! are by the server's clock, which stands in the answer, so a wrong clock on this machine changes nothing.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use console::style;
use jiff::Timestamp;
use serde::Deserialize;

use crate::api::Api;
use crate::{output, table};

/// How often `--watch` asks: the server writes a new document at most once a second.
const PERIOD: Duration = Duration::from_secs(1);
/// What `--check` ends with when a circuit is open: neither success (0), nor failure (1), nor misuse (2).
const OPEN: u8 = 3;

/// The kind of a circuit that stands for a limit.
const LIMIT: &str = "limit";

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft circuits                    all of them, the open ones first
  weft circuits -w                 again every second
  weft circuits orders             those in front of one service, workload or pod
  weft circuits --state open       only the open ones
  weft circuits --check            exit with 3 if one is open
  weft circuits -o json | jq '.circuits[] | select(.state == \"open\") | .cause_text'

closed = calls go through, open = calls are refused or go elsewhere, half-open = a few calls try.")]
pub(crate) struct CircuitsArgs {
    /// Only those that have this in the name of their service, workload, pod or address
    name: Option<String>,
    /// Only those in this state; may be given several times
    #[arg(long, value_enum, value_delimiter = ',')]
    state: Vec<State>,
    /// Ask again every second, until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Exit with 3 if a circuit among those shown is open
    #[arg(long, conflicts_with = "watch")]
    check: bool,
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
    /// As the API says it
    Json,
}

/// Worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Calls are refused, or go elsewhere
    Open,
    /// A few calls try whether it has recovered
    HalfOpen,
    /// Calls go through
    #[serde(other)]
    Closed,
}

/// `GET /api/circuits`, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Circuits {
    at: Timestamp,
    circuits: Vec<Circuit>,
}

#[derive(Debug, Deserialize)]
struct Circuit {
    id: String,
    kind: String,
    service: String,
    #[serde(default)]
    endpoint: Option<Endpoint>,
    state: State,
    #[serde(default)]
    cause: Option<String>,
    #[serde(default)]
    cause_text: Option<String>,
    #[serde(default)]
    since: Option<Timestamp>,
    #[serde(default)]
    next_probe_at: Option<Timestamp>,
    #[serde(default)]
    calls: u64,
    #[serde(default)]
    errors: u64,
    #[serde(default)]
    open_on: u64,
    #[serde(default)]
    observers_total: u64,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: String,
    #[serde(default)]
    workload: Option<String>,
    #[serde(default)]
    pod: Option<String>,
}

pub(crate) async fn run(arguments: CircuitsArgs) -> anyhow::Result<ExitCode> {
    let CircuitsArgs { name, mut state, watch, check, output: format, api } = arguments;
    let api = api.open().await?;
    state.sort_unstable();
    let filter = Filter { name: name.map(|name| name.to_lowercase()), states: state };
    let once = async || -> anyhow::Result<(String, bool)> {
        let body = api.get("/api/circuits").await?;
        let document: Circuits = api.read(&body)?;
        let shown = filter.circuits(&document);
        let open = shown.iter().any(|circuit| circuit.state == State::Open);
        let text = match format {
            Format::Table => show(&document, &shown, &filter, &api),
            Format::Json => json(&body, &shown, watch)?,
        };
        Ok((text, open))
    };
    if watch {
        let redraw = matches!(format, Format::Table);
        return output::again(PERIOD, redraw, async || Ok(once().await?.0)).await;
    }
    let (text, open) = once().await?;
    output::text(&text);
    Ok(if check && open { ExitCode::from(OPEN) } else { ExitCode::SUCCESS })
}

/// What the reader asked for.
#[derive(Debug, Default)]
struct Filter {
    name: Option<String>,
    states: Vec<State>,
}

impl Filter {
    /// Those that match, worst first.
    fn circuits<'a>(&self, document: &'a Circuits) -> Vec<&'a Circuit> {
        let mut shown: Vec<&Circuit> =
            document.circuits.iter().filter(|circuit| self.matches(circuit)).collect();
        shown.sort_by(|a, b| {
            let calm = |circuit: &Circuit| circuit.state == State::Closed;
            let news = if calm(a) { std::cmp::Ordering::Equal } else { b.since.cmp(&a.since) };
            a.state.cmp(&b.state).then(news).then_with(|| a.id.cmp(&b.id))
        });
        shown
    }

    fn matches(&self, circuit: &Circuit) -> bool {
        let named = |name: &String| {
            let endpoint = circuit.endpoint.as_ref();
            let texts = [
                Some(&circuit.service),
                endpoint.map(|endpoint| &endpoint.address),
                endpoint.and_then(|endpoint| endpoint.workload.as_ref()),
                endpoint.and_then(|endpoint| endpoint.pod.as_ref()),
            ];
            texts.into_iter().flatten().any(|text| text.to_lowercase().contains(name.as_str()))
        };
        (self.states.is_empty() || self.states.contains(&circuit.state))
            && self.name.as_ref().is_none_or(named)
    }
}

/// The answer for programs: every field that the server sent, of the circuits that match. Watched, one line each.
fn json(body: &[u8], shown: &[&Circuit], lines: bool) -> anyhow::Result<String> {
    let mut document: serde_json::Value = serde_json::from_slice(body)?;
    if let Some(all) = document["circuits"].as_array_mut() {
        all.retain(|one| shown.iter().any(|circuit| one["id"] == circuit.id.as_str()));
    }
    Ok(if lines { format!("{document}\n") } else { format!("{document:#}\n") })
}

/// The answer for people. Limits that nobody reaches are only counted, unless somebody asks for something in particular.
fn show(document: &Circuits, shown: &[&Circuit], filter: &Filter, api: &Api) -> String {
    if document.circuits.is_empty() {
        return "no circuits yet: one appears with the first call through a sidecar\n  see one trip, probe and recover: weft demo\n".into();
    }
    let calm = |circuit: &&Circuit| circuit.kind == LIMIT && circuit.state == State::Closed;
    let limits = document.circuits.iter().filter(calm).count();
    let count =
        |state| document.circuits.iter().filter(|circuit| !calm(circuit) && circuit.state == state).count();
    let states = [State::Open, State::HalfOpen, State::Closed];
    let mut text = states.map(|state| format!("{} {}", count(state), word(state))).join(", ");
    match limits {
        0 => {}
        1 => text.push_str("; 1 limit is not reached"),
        many => write!(text, "; {many} limits are not reached").unwrap_or_default(),
    }
    text.push_str("\n\n");
    let everything = filter.name.is_none() && filter.states.is_empty();
    let shown: Vec<&Circuit> =
        shown.iter().copied().filter(|circuit| !(everything && calm(circuit))).collect();
    if shown.is_empty() {
        let what = match (&filter.name, filter.states.as_slice()) {
            (Some(name), []) => format!("no circuit has {name:?} in its name"),
            (Some(name), _) => format!("no circuit with {name:?} in its name is in that state"),
            (None, _) => "no circuit is in that state".into(),
        };
        text.push_str(&what);
        text.push('\n');
    } else {
        text.push_str(&rows(document.at, &shown));
    }
    let wall = format!("{}/?view=circuits", api.base());
    writeln!(text, "\n{} {}", style("on the wall:").dim(), style(wall).dim()).ok();
    text
}

fn rows(now: Timestamp, shown: &[&Circuit]) -> String {
    let header = ["STATE", "CIRCUIT", "WHY", ">SINCE", ">NEXT PROBE", ">ERRORS", ">CALLS", "SEEN BY"];
    let rows: Vec<Vec<String>> = shown
        .iter()
        .map(|circuit| {
            let calm = circuit.state == State::Closed;
            let since = circuit.since.filter(|_| !calm);
            vec![
                coloured(circuit.state),
                name(circuit),
                why(circuit).filter(|_| !calm).unwrap_or("-").to_owned(),
                since.map_or_else(|| "-".into(), |since| table::age(seconds(since, now))),
                probe(circuit, now),
                table::errors(circuit.errors, circuit.calls),
                circuit.calls.to_string(),
                match circuit.state {
                    State::Open => format!("open on {} of {}", circuit.open_on, circuit.observers_total),
                    _ => format!("{}", circuit.observers_total),
                },
            ]
        })
        .collect();
    table::render(&header, &rows)
}

/// `orders.shop:8080 → orders-7d9`, or the service alone when the circuit is that of a whole service.
fn name(circuit: &Circuit) -> String {
    match &circuit.endpoint {
        Some(endpoint) => {
            format!("{} → {}", circuit.service, endpoint.pod.as_deref().unwrap_or(&endpoint.address))
        }
        None if circuit.kind == LIMIT => format!("{} (limit)", circuit.service),
        None => circuit.service.clone(),
    }
}

fn why(circuit: &Circuit) -> Option<&str> {
    circuit.cause_text.as_deref().or(circuit.cause.as_deref())
}

fn probe(circuit: &Circuit, now: Timestamp) -> String {
    match (circuit.state, circuit.next_probe_at) {
        (State::HalfOpen, _) => "now".into(),
        (State::Open, Some(at)) if at > now => format!("in {}", table::age(seconds(now, at))),
        (State::Open, Some(_)) => "next call".into(),
        _ => "-".into(),
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_secs()).unwrap_or_default()
}

fn word(state: State) -> &'static str {
    match state {
        State::Open => "open",
        State::HalfOpen => "half-open",
        State::Closed => "closed",
    }
}

/// The word carries the meaning; the colour only helps to find it.
pub(crate) fn coloured(state: State) -> String {
    let text = style(word(state));
    match state {
        State::Open => text.red().bold(),
        State::HalfOpen => text.yellow().bold(),
        State::Closed => text.green(),
    }
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shop() -> Circuits {
        console::set_colors_enabled(false);
        serde_json::from_str(include_str!("circuits/shop.json")).expect("the API's JSON")
    }

    fn api() -> Api {
        Api::new("127.0.0.1:8080").expect("valid")
    }

    fn shown(filter: &Filter) -> String {
        let document = shop();
        show(&document, &filter.circuits(&document), filter, &api())
    }

    #[test]
    fn open_circuits_come_first_with_their_reason() {
        insta::assert_snapshot!(shown(&Filter::default()));
    }

    #[test]
    fn filters_narrow_it_down() {
        let open = shown(&Filter { states: vec![State::Open], ..Filter::default() });
        assert!(open.contains("orders-7d9f2") && !open.contains("cart"), "{open}");
        let cart = shown(&Filter { name: Some("cart".into()), ..Filter::default() });
        assert!(cart.contains("cart.shop:8080") && !cart.contains("orders"), "{cart}");
        let none = shown(&Filter { name: Some("nobody".into()), states: vec![State::Open] });
        assert!(none.contains("no circuit with \"nobody\""), "{none}");
    }

    #[test]
    fn programs_get_every_field_of_what_matches() {
        let (body, document) = (include_bytes!("circuits/shop.json"), shop());
        let filter = Filter { states: vec![State::HalfOpen], ..Filter::default() };
        let text = json(body, &filter.circuits(&document), true).expect("JSON");
        assert_eq!(text.lines().count(), 1);
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["circuits"].as_array().map(Vec::len), Some(1));
        assert_eq!(value["circuits"][0]["observers"][0]["workload"], "web");
        assert!(value["events"].is_array());
    }

    #[test]
    fn a_mesh_without_circuits_says_how_to_see_one() {
        let document = Circuits { at: shop().at, circuits: Vec::new() };
        assert!(show(&document, &[], &Filter::default(), &api()).contains("weft demo"));
    }
}
