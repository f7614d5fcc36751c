//! A batch of tables before both proxies.
//!
//! In: tables. Out: every request on which the two disagree. What a request became is compared twice: what the caller got, at
//! once; and everything that arrived at backends in its name, copies included, when all is over.
//! Surprise: where a backend is drawn, a request is repeated until both have shown the same set of outcomes.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use serde_json::Value;
use weft_tests::backend::{KEY, Troupe};
use weft_tests::client::{Answer, Ask, Client};

use super::Table;
use super::filters;
use super::oracle::{self, Expected};
use super::routes::{BACKENDS, FORBIDDEN};
use crate::differential::differences::{Arrived, Outcome};
use crate::differential::objects;
use crate::differential::pair::{Pair, Side};

/// Tables that are asked at the same time.
const AT_ONCE: usize = 4;
/// Draws after which an outcome with a quarter of the weight has been seen, but for one time in 10¹².
const DRAWS_MAX: usize = 100;
/// Longest wait for what is still on its way when the last answer is there.
const LATE: Duration = Duration::from_secs(5);

/// A request that became two things.
#[derive(Debug, Clone)]
pub(super) struct Disagreement {
    pub(super) table: Table,
    pub(super) ask: Ask,
    pub(super) envoy: String,
    pub(super) weft: String,
}

/// What came of a batch.
pub(super) struct Tried {
    /// Requests that each proxy was asked.
    pub(super) asked: usize,
    pub(super) disagreements: Vec<Disagreement>,
}

pub(super) async fn run(binary: &Path, tables: &[Table]) -> anyhow::Result<Tried> {
    let troupe = Troupe::start(BACKENDS + 2)?;
    let services: Vec<String> = tables.iter().map(|table| table.service.clone()).collect();
    let mut all = stage(&troupe);
    for table in tables {
        all.extend(objects::service_that_speaks(
            table.speaks,
            &table.service,
            &[troupe.backends[BACKENDS].address],
        ));
        all.extend(table.routes.iter().cloned());
    }
    let pair = Pair::start(binary, &all, &services).await?;
    let trials = tables.iter().enumerate().map(|(index, table)| trial(&pair, index, table));
    let trials: Vec<_> = stream::iter(trials).buffer_unordered(AT_ONCE).collect().await;
    let mut tried = Tried { asked: 0, disagreements: Vec::new() };
    for trial in trials {
        let trial = trial?;
        tried.asked += trial.asked;
        tried.disagreements.extend(trial.disagreements);
    }
    tried.disagreements.extend(arrived(&troupe, tables).await);
    pair.stop().await?;
    Ok(tried)
}

/// The services that tables refer to.
fn stage(troupe: &Troupe) -> Vec<Value> {
    let mut all = Vec::new();
    for (index, backend) in troupe.backends.iter().take(BACKENDS).enumerate() {
        let protocol =
            ["http", "http", "", "kubernetes.io/h2c", "grpc"].get(index).copied().unwrap_or_default();
        all.extend(objects::service_that_speaks(protocol, &backend.name, &[backend.address]));
    }
    let forbidden = objects::service(FORBIDDEN.0, &[troupe.backends[BACKENDS + 1].address]);
    all.extend(objects::moved(forbidden, FORBIDDEN.1));
    all
}

/// One proxy, and what tells its requests from the other's.
struct Judged {
    client: Client,
    word: &'static str,
}

async fn trial(pair: &Pair, index: usize, table: &Table) -> anyhow::Result<Tried> {
    let mut envoy = Judged { client: Client::new(pair.address(Side::Envoy, index)?), word: "envoy" };
    let mut weft = Judged { client: Client::new(pair.address(Side::Weft, index)?), word: "weft" };
    let mut tried = Tried { asked: 0, disagreements: Vec::new() };
    for (number, ask) in table.asks.iter().enumerate() {
        let (mut one, mut other) = (BTreeSet::new(), BTreeSet::new());
        let mut broken = String::new();
        let draws = if table.splits() { DRAWS_MAX } else { 1 };
        for draw in 0..draws {
            let key = key(table, number, draw);
            let (from_envoy, from_weft) = tokio::join!(envoy.ask(ask, &key), weft.ask(ask, &key));
            for (side, answer) in [(&envoy, &from_envoy), (&weft, &from_weft)] {
                if let Err(error) = answer {
                    broken += &format!("{}: {error:#}\n", side.word);
                }
            }
            one.insert(words(&from_envoy));
            other.insert(words(&from_weft));
            tried.asked += 1;
            if one == other {
                tried.disagreements.extend(against_the_api(table, ask, from_weft.ok().as_ref()));
                break;
            }
        }
        if one != other {
            let envoy = one.into_iter().collect();
            let weft = other.into_iter().chain([broken]).collect();
            tried.disagreements.push(Disagreement { table: table.clone(), ask: ask.clone(), envoy, weft });
        }
    }
    Ok(tried)
}

fn key(table: &Table, number: usize, draw: usize) -> String {
    format!("{}/{number}/{draw}", table.service)
}

impl Judged {
    async fn ask(&mut self, ask: &Ask, key: &str) -> anyhow::Result<Answer> {
        let ask = ask.clone().header(KEY, format!("{key}/{}", self.word));
        self.client.send(&ask).await
    }
}

/// What the caller gets.
fn words(answer: &anyhow::Result<Answer>) -> String {
    match answer {
        Ok(answer) => format!("{:#?}\n", Outcome::of(answer)),
        // How a connection breaks is a matter of timing; that it does is compared.
        Err(_) => "no answer\n".to_owned(),
    }
}

/// What both say by another rule than the API would have it.
fn against_the_api(table: &Table, ask: &Ask, answer: Option<&Answer>) -> Option<Disagreement> {
    let answer = answer?;
    let expected = oracle::expect(&table.service, &table.routes, ask);
    let agrees = match (answer.header(filters::RULE), &expected) {
        (_, Expected::Unspecified) => true,
        (Some(rule), expected) => *expected == Expected::Rule(Some(rule.to_owned())),
        // An answer without a rule's name may have another reason; that no rule fits has one.
        (None, Expected::Rule(_)) => answer.status != StatusCode::NOT_FOUND,
        (None, Expected::Unrouted | Expected::NotFound) => true,
    };
    (!agrees).then(|| Disagreement {
        table: table.clone(),
        ask: ask.clone(),
        envoy: format!("as Weft; the Gateway API has {expected:?}\n"),
        weft: format!("{:#?}\n", Outcome::of(answer)),
    })
}

/// Compares what arrived, as soon as it is equal or nothing more can come.
async fn arrived(troupe: &Troupe, tables: &[Table]) -> Vec<Disagreement> {
    let end = Instant::now() + LATE;
    loop {
        let found = compare(&troupe.keyed(), tables);
        if found.is_empty() || Instant::now() > end {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

type Keyed = HashMap<String, Vec<weft_tests::backend::Arrival>>;

fn compare(keyed: &Keyed, tables: &[Table]) -> Vec<Disagreement> {
    let mut found = Vec::new();
    // Where a backend is drawn, what arrived may differ.
    for table in tables.iter().filter(|table| !table.splits()) {
        for (number, ask) in table.asks.iter().enumerate() {
            let under = |word: &str| {
                let arrivals = keyed.get(&format!("{}/{word}", key(table, number, 0)));
                let mut all: Vec<_> = arrivals.into_iter().flatten().cloned().map(Arrived::of).collect();
                all.sort_unstable();
                all
            };
            let (one, other) = (under("envoy"), under("weft"));
            if one != other {
                found.push(Disagreement {
                    table: table.clone(),
                    ask: ask.clone(),
                    envoy: format!("{one:#?}\n"),
                    weft: format!("{other:#?}\n"),
                });
            }
        }
    }
    found
}
