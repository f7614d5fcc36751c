//! One sidecar hop beside its peers: weft-proxy with everything on, Envoy, HAProxy and nginx.
//!
//! All in one run, one worker each, pinned to core 0, while load and backend share core 1; rounds alternate between the
//! peers so that a machine that slows down slows them all. The figure is CPU time per request as the kernel accounts it
//! for the proxy's process, not throughput: throughput here is limited by core 1. `weft-limited` and `weft-policies` are the
//! same sidecar with 100 routes and every policy; the load takes the last of the routes. A pair is a caller's and a callee's
//! proxy with mutual TLS in between, both on core 0, and its figure the sum of both.
//!
//! `cargo bench -p weft-tests --bench sidecar [-- --rounds 5 --seconds 3 --peers weft,envoy --proto h1 --connections 64]`

#![expect(clippy::print_stdout, reason = "the figures are this program's purpose")]

#[path = "sidecar/envoy.rs"]
mod envoy;
#[path = "sidecar/handshakes.rs"]
mod handshakes;
#[path = "sidecar/idle.rs"]
mod idle;
#[path = "sidecar/load.rs"]
mod load;
#[path = "sidecar/objects.rs"]
mod objects;
#[path = "sidecar/peer.rs"]
mod peer;
#[path = "sidecar/pki.rs"]
mod pki;

use std::collections::BTreeMap;

use anyhow::Context as _;
use load::{Measure, Protocol};
use peer::{Peer, Stage};

/// What to run; everything by default.
struct Plan {
    rounds: usize,
    seconds: u32,
    peers: Vec<Peer>,
    protocols: Vec<Protocol>,
    connections: Vec<u32>,
    idle: bool,
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut plan = Self {
            rounds: 5,
            seconds: 3,
            peers: Peer::ALL.to_vec(),
            protocols: vec![Protocol::H1, Protocol::H2],
            connections: vec![64, 8, 1],
            idle: true,
        };
        while let Some(arg) = args.next() {
            // cargo passes `--bench` to every bench.
            if arg == "--bench" {
                continue;
            }
            let value = args.next().with_context(|| format!("{arg} wants a value"))?;
            match arg.as_str() {
                "--rounds" => plan.rounds = value.parse()?,
                "--seconds" => plan.seconds = value.parse()?,
                "--peers" => plan.peers = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--proto" => plan.protocols = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--connections" => {
                    plan.connections = value.split(',').map(str::parse).collect::<Result<_, _>>()?;
                }
                "--idle" => plan.idle = value.parse()?,
                _ => anyhow::bail!(
                    "unknown option {arg}; known: --rounds --seconds --peers --proto --connections --idle"
                ),
            }
        }
        Ok(plan)
    }
}

fn main() -> anyhow::Result<()> {
    let plan = Plan::from_args(std::env::args().skip(1))?;
    let stage = Stage::set_up(&plan.peers)?;
    for &protocol in &plan.protocols {
        for &connections in &plan.connections {
            compare(&plan, &stage, protocol, connections)?;
        }
    }
    let pairs = plan.peers.iter().filter(|peer| peer.is_pair());
    for &peer in pairs {
        let mut rounds = Vec::new();
        for _ in 0..plan.rounds {
            let running = stage.start(peer, Protocol::H1)?;
            handshakes::measure(&running, stage.pki(), 1).with_context(|| format!("warm up {peer}"))?;
            rounds.push(handshakes::measure(&running, stage.pki(), plan.seconds)?);
        }
        rounds.sort_by(|one, other| one.cpu_us().total_cmp(&other.cpu_us()));
        println!("peer={peer} {}", rounds[rounds.len() / 2]);
    }
    if plan.idle {
        for &peer in plan.peers.iter().filter(|peer| !peer.is_pair()) {
            let running = stage.start(peer, Protocol::H1)?;
            println!("peer={peer} {}", idle::measure(&running)?);
        }
    }
    Ok(())
}

/// Alternating rounds of one load over all peers; prints the median of each and the ratios to weft.
fn compare(plan: &Plan, stage: &Stage, protocol: Protocol, connections: u32) -> anyhow::Result<()> {
    let mut rounds: BTreeMap<Peer, Vec<Measure>> = BTreeMap::new();
    for _ in 0..plan.rounds {
        for &peer in plan.peers.iter().filter(|peer| peer.speaks(protocol)) {
            let running = stage.start(peer, protocol)?;
            load::run(&running, protocol, connections, 1).with_context(|| format!("warm up {peer}"))?;
            let measure = load::run(&running, protocol, connections, plan.seconds)
                .with_context(|| format!("measure {peer}"))?;
            rounds.entry(peer).or_default().push(measure);
        }
    }
    let medians: BTreeMap<Peer, Measure> =
        rounds.into_iter().map(|(peer, measures)| (peer, Measure::median(&measures))).collect();
    for (peer, measure) in &medians {
        println!("peer={peer} proto={protocol} connections={connections} {measure}");
    }
    if let Some(weft) = medians.get(&Peer::Weft) {
        for (peer, other) in medians.iter().filter(|(peer, _)| **peer != Peer::Weft && !peer.is_pair()) {
            let ratio = weft.cpu_us_per_request / other.cpu_us_per_request;
            println!("ratio weft/{peer}={ratio:.2} proto={protocol} connections={connections}");
        }
    }
    if let (Some(weft), Some(envoy)) = (medians.get(&Peer::WeftPair), medians.get(&Peer::EnvoyPair)) {
        let ratio = weft.cpu_us_per_request / envoy.cpu_us_per_request;
        println!("ratio weft-pair/envoy-pair={ratio:.2} proto={protocol} connections={connections}");
    }
    for (peer, configured) in &medians {
        if let Some((plain, bare)) = peer.plain().and_then(|plain| Some((plain, medians.get(&plain)?))) {
            let ratio = configured.cpu_us_per_request / bare.cpu_us_per_request;
            println!("ratio {peer}/{plain}={ratio:.3} proto={protocol} connections={connections}");
        }
    }
    Ok(())
}
