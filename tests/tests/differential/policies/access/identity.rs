//! The same with callers who are somebody: a client with certificates of one authority calls both.
//!
//! In: identities, and who is nobody to the mesh. Out: nothing, or the call that one of the two let in and the other did not.
//! Invariants: Envoy has the compiled listener with its TLS context, and all that is changed of it is where its two secrets
//! come from; it is a member itself, and so is each sidecar. Surprise: who is refused by TLS looks like who is cut off,
//! so that members are served at all is made sure of beside.

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::PATIENCE;
use weft_tests::member::{Authority, Member};
use weft_tests::{envoy, poll};
use weft_wire::SpiffeId;

use super::super::generated::seed;
use super::super::scene::{compare, get};
use super::{Callees, Guarded, Side, ask, guarded};

/// Envoy's own name. It asks for the configuration of other workloads of its namespace, as any member may.
pub(super) const ENVOY: &str = "spiffe://cluster.local/ns/shop/sa/envoy";

const MEMBERS: [&str; 5] = [
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/webshop",
    "spiffe://cluster.local/ns/tools/sa/web",
    "spiffe://cluster.local/ns/tools/sa/cli",
    "spiffe://cluster.local/ns/tools-of-old/sa/cli",
];
/// Who has a certificate of the authority that names nobody of the mesh.
const STRANGERS: [&str; 4] = [
    "spiffe://elsewhere.org/ns/shop/sa/web",
    "spiffe://cluster.local.elsewhere.org/ns/shop/sa/web",
    "https://cluster.local/ns/shop/sa/web",
    "spiffe://elsewhere.org/spiffe://cluster.local/ns/shop/sa/web",
];
/// What a caller may say of itself, which is nothing to anybody.
const FORGED: &str = "By=spiffe://cluster.local/ns/shop/sa/callee0;URI=spiffe://cluster.local/ns/shop/sa/web";

impl Callees {
    async fn of(
        binary: &std::path::Path,
        guarded: &[Guarded],
        authority: &Authority,
    ) -> anyhow::Result<Self> {
        let callees = Self::before(binary, guarded, Vec::new(), Some(authority), |own| own).await?;
        for sidecar in &callees.sidecars {
            poll::until("the sidecar has its identity", PATIENCE, async || {
                let ask = Ask::get("/metrics", "localhost");
                let page = client::once(sidecar.address("/metrics")?, &ask).await?;
                let page = String::from_utf8(page.body.to_vec())?;
                let expiry = "weft_certificate_expiry_timestamp_seconds ";
                let expiry = page.lines().find_map(|line| line.strip_prefix(expiry)).context("no expiry")?;
                ensure!(expiry.parse::<f64>()? > 0.0, "none yet");
                anyhow::Ok(())
            })
            .await?;
        }
        Ok(callees)
    }
}

fn own(callee: usize) -> anyhow::Result<SpiffeId> {
    Ok(format!("spiffe://cluster.local/ns/shop/sa/callee{callee}").parse()?)
}

/// Callers in turn, and `None`, who is nobody.
fn members(authority: &Authority) -> anyhow::Result<Vec<Option<Member>>> {
    let members = MEMBERS.into_iter().map(|id| authority.member(id).map(Some));
    std::iter::once(Ok(None)).chain(members).collect()
}

/// A request of this caller at this callee. To a port of bytes, bytes.
fn asked(random: &mut Rng, callee: usize, guarded: &Guarded, member: Option<&Member>) -> anyhow::Result<Ask> {
    let ask = ask(random, guarded.protocol);
    let ask = if random.u8(..4) == 0 { ask.header("x-forwarded-client-cert", FORGED) } else { ask };
    let call = member.map(|member| member.calls(&own(callee)?)).transpose()?;
    let call = call.map(|call| if guarded.protocol == "tcp" { call.opaque() } else { call });
    Ok(Ask { member: call, ..ask })
}

async fn any_policy_lets_the_same_members_in(callees: usize, requests: usize) -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let seed = seed();
    let again = || format!("WEFT_SEED={seed} makes it again");
    let mut random = Rng::with_seed(seed);
    let authority = Authority::new()?;
    let members = members(&authority)?;
    // Whoever is anybody may enter the last one.
    let open = Guarded::http(&["{rules: [{from: [{authenticated: true}]}]}"]);
    let all: Vec<Guarded> = (0..callees).map(|_| guarded(&mut random)).chain([open]).collect();
    let stage = Callees::of(binary, &all, &authority).await?;
    let mut failures = Vec::new();
    for (callee, guarded) in all.iter().enumerate() {
        for number in 0..requests {
            let member = members[random.usize(..members.len())].as_ref();
            let ask = asked(&mut random, callee, guarded, member)?;
            if let Err(error) = compare(&stage.both(callee, number, &ask).await?) {
                failures.push(format!("{guarded:#?}\n{ask:?}: {error:#}"));
            }
        }
    }
    ensure!(
        failures.is_empty(),
        "{}; {} differ:\n{}",
        again(),
        failures.len(),
        failures[..failures.len().min(3)].join("\n")
    );
    for (number, member) in members.iter().enumerate() {
        let call = member.as_ref().map(|member| member.calls(&own(callees)?)).transpose()?;
        let status = if member.is_some() { 200 } else { 403 };
        let told = stage.both(callees, requests + number, &Ask { member: call, ..get("200") }).await?;
        for (side, told) in Side::BOTH.iter().zip(&told) {
            ensure!(told.status() == Some(status), "{side:?}: {told:?}");
        }
    }
    stage.counted_alike().await.with_context(again)?;
    stage.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_policy_lets_the_same_identities_in() -> anyhow::Result<()> {
    any_policy_lets_the_same_members_in(20, 30).await
}

/// The same, short enough to be run with all that mutual TLS is about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_identities_are_let_in_as_envoy_lets_them_in() -> anyhow::Result<()> {
    any_policy_lets_the_same_members_in(4, 20).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mtls_strangers_are_nobodys_callers() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let authority = Authority::new()?;
    let everybody = Guarded::http(&["{rules: [{}]}"]);
    let callees = Callees::of(binary, &[everybody], &authority).await?;
    let mut strangers = vec![
        ("nobody", authority.nobody()?),
        // Whom another root vouches for as whoever it likes.
        ("forger", Member::with("forger", Some(&Authority::new()?.papers(MEMBERS[0])?), &authority.roots())?),
    ];
    for id in STRANGERS {
        strangers.push((id, authority.member(id)?));
    }
    let mut number = 0;
    for h2 in [false, true] {
        for (who, stranger) in &strangers {
            number += 1;
            let call = Some(stranger.calls(&own(0)?)?);
            let told = callees.both(0, number, &Ask { member: call, h2, ..get("200") }).await?;
            for (side, told) in Side::BOTH.iter().zip(&told) {
                ensure!(told.status().is_none(), "{who} is answered by {side:?}: {told:?}");
                ensure!(told.attempts.is_empty(), "{who} reached the app through {side:?}");
            }
        }
        number += 1;
        let member = authority.member(MEMBERS[0])?.calls(&own(0)?)?;
        let told = callees.both(0, number, &Ask { member: Some(member), h2, ..get("200") }).await?;
        compare(&told)?;
        ensure!(told[0].status() == Some(200), "{told:?}");
    }
    callees.stop().await
}
