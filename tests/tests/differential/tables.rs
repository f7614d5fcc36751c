//! Route tables from seeds, at both.
//!
//! In: seeds. Out: nothing, or what the two disagree about, as small as it could be made. Each table is about a service
//! of its own, so that many share one pair. Invariant: the same seed makes the same table and the same requests.
//!
//! To repeat one table: `WEFT_SEED=17 cargo test -p weft-tests differential`; several: `WEFT_SEED=1000..2000`.

mod filters;
mod oracle;
mod regressions;
mod requests;
mod routes;
mod shrink;
mod trial;
mod words;

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use fastrand::Rng;
use serde_json::Value;
use weft_tests::client::Ask;
use weft_tests::envoy;

use super::objects;
use trial::Disagreement;

/// Tables of one run.
const TABLES: Range<u64> = 0..520;
/// Requests for each.
const REQUESTS: usize = 24;
/// Tables that share a pair.
const BATCH: usize = 52;

/// What is said about one service, and what is asked of it.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Whose it is; no other word in it contains this one.
    service: String,
    /// What its port is declared to speak.
    speaks: &'static str,
    routes: Vec<Value>,
    asks: Vec<Ask>,
    /// How it can be made again.
    origin: String,
}

impl Table {
    fn of_seed(seed: u64) -> Self {
        let service = format!("table-{seed}");
        let mut rng = Rng::with_seed(seed);
        let routes = routes::routes(&mut rng, &service);
        let asks = requests::requests(&mut rng, &service, &routes, REQUESTS);
        let speaks = ["http", "http", "", "grpc"][rng.usize(..4)];
        let origin = format!("WEFT_SEED={seed} cargo test -p weft-tests differential");
        Self { service, speaks, routes, asks, origin }
    }

    /// Whether chance chooses a backend somewhere.
    fn splits(&self) -> bool {
        let rules =
            self.routes.iter().flat_map(|route| route["spec"]["rules"].as_array().into_iter().flatten());
        rules.into_iter().any(|rule| {
            let backends = rule["backendRefs"].as_array().into_iter().flatten();
            backends.filter(|backend| backend["weight"] != 0).count() > 1
        })
    }

    fn yaml(&self) -> String {
        objects::yaml(&self.routes).unwrap_or_default()
    }
}

fn seeds() -> anyhow::Result<Range<u64>> {
    let Ok(text) = std::env::var("WEFT_SEED") else { return Ok(TABLES) };
    let range = match text.split_once("..") {
        Some((from, to)) => from.parse().context("WEFT_SEED")?..to.parse().context("WEFT_SEED")?,
        None => text.parse().map(|seed: u64| seed..seed + 1).context("WEFT_SEED")?,
    };
    Ok(range)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_tables_mean_the_same_to_both() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let tables: Vec<Table> = seeds()?.map(Table::of_seed).collect();
    let started = Instant::now();
    let mut found = Vec::new();
    let mut asked = 0;
    for batch in tables.chunks(BATCH) {
        let outcome = trial::run(binary, batch).await?;
        asked += outcome.asked;
        found.extend(outcome.disagreements);
    }
    report(format!("{} tables, {asked} requests at each, in {:.0?}", tables.len(), started.elapsed()));
    verdict(binary, found).await
}

/// Fails with the smallest of what was found for a few tables.
async fn verdict(binary: &Path, found: Vec<Disagreement>) -> anyhow::Result<()> {
    /// Tables that are made smaller: one cause is usually behind many.
    const SHOWN: usize = 4;
    if found.is_empty() {
        return Ok(());
    }
    let mut seen: Vec<&str> = Vec::new();
    let mut text = format!("{} requests, on which Envoy and Weft disagree\n", found.len());
    for one in &found {
        if seen.contains(&one.table.origin.as_str()) {
            continue;
        }
        seen.push(&one.table.origin);
        if seen.len() <= SHOWN {
            text += &shrink::shrink(binary, one.clone()).await?.to_string();
        }
    }
    bail!("{text}\nall: {seen:#?}");
}

#[expect(clippy::print_stderr, reason = "what a run covered belongs in its log")]
fn report(text: String) {
    eprintln!("{text}");
}

#[test]
fn a_seed_makes_the_same_table_again() {
    let (one, other) = (Table::of_seed(7), Table::of_seed(7));
    assert_eq!((one.routes, one.asks), (other.routes, other.asks));
}
