//! Who may call: access policies at the callee, whose sidecar stands against an Envoy with the very listener that the control
//! plane compiles for it.
//!
//! In: services whose one endpoint is a sidecar's inbound port, with access policies each. Out: nothing, or the call that one
//! of the two let in and the other did not, or that reached the app in another spelling. Invariant: what is counted is
//! compared too, so that a policy that is only audited says the same at both. [`identity`] is the same with callers who have
//! one.

mod identity;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use envoy_types::pb::envoy::config::listener::v3::Listener;
use fastrand::Rng;
use http::Method;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weft_control_plane::resources::{self, Content};
use weft_control_plane::world::{Trust, World};
use weft_control_plane::xds::Kind;
use weft_control_plane::{compile, world};
use weft_tests::backend::Troupe;
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::envoy::{self, Envoy, Follow};
use weft_tests::member::Authority;
use weft_tests::poll;
use weft_wire::tls::TRUST_DOMAIN_DEFAULT;

use super::super::objects::{self, NAMESPACE};
use super::super::pair::Side;
use super::generated::{seed, some};
use super::scene::{Told, compare, get, grpc, policy, witness};

/// What stands before an app, and what the app is declared to speak.
#[derive(Debug, Clone)]
struct Guarded {
    /// AccessPolicies, as specs without targets.
    policies: Vec<String>,
    protocol: &'static str,
}

impl Guarded {
    fn http(policies: &[&str]) -> Self {
        Self { policies: policies.iter().map(|&policy| policy.to_owned()).collect(), protocol: "http" }
    }
}

/// Callees, in the order of what guards them.
struct Callees {
    troupe: Troupe,
    plane: Plane,
    envoy: Envoy,
    sidecars: Vec<Sidecar>,
    _directory: tempfile::TempDir,
}

impl Callees {
    async fn start(binary: &Path, guarded: &[Guarded], further: Vec<Value>) -> anyhow::Result<Self> {
        Self::before(binary, guarded, further, None, |own| own).await
    }

    /// The same before other apps than the troupe's, or as members of the mesh of this authority.
    async fn before(
        binary: &Path,
        guarded: &[Guarded],
        further: Vec<Value>,
        authority: Option<&Authority>,
        app: impl Fn(SocketAddr) -> SocketAddr,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let plane = match authority {
            None => Plane::start("").await?,
            Some(authority) => {
                authority.write(directory.path())?;
                let brought = format!("--ca-dir={}", directory.path().display());
                Plane::start_mutual("", &[&brought]).await?
            }
        };
        let troupe = Troupe::start(guarded.len())?;
        let (mut sidecars, mut follow, mut all) = (Vec::new(), Vec::new(), further);
        for (index, (guarded, own)) in guarded.iter().zip(&troupe.backends).enumerate() {
            let app = app(own.address);
            let forward = format!("--inbound-forward={app}");
            let flags = [forward.as_str(), "--discovery-timeout=20s", "--access-log=off"];
            let (workload, directory) = (format!("callee{index}"), directory.path());
            let callee = match authority {
                None => Sidecar::start(directory, plane.control, &workload, &flags).await?,
                Some(_) => Sidecar::join(directory, &plane, &workload, &flags).await?,
            };
            let address = callee.address("/inbound")?;
            let name = format!("inbound/{address}");
            follow.push(Follow { routes: name.clone(), clusters: vec![(name, app)] });
            let service = format!("s{index}");
            all.extend(objects::service_that_speaks(guarded.protocol, &service, &[address]));
            let targets = json!([{"kind": "Service", "name": service}]);
            for (number, spec) in guarded.policies.iter().enumerate() {
                all.push(policy("AccessPolicy", &format!("{service}-{number}"), &targets, spec)?);
            }
            sidecars.push(callee);
        }
        let yaml = objects::yaml(&all)?;
        plane.apply(&yaml)?;
        let listeners = listeners(&yaml, authority, &follow)?;
        let papers = authority.map(|authority| authority.papers(identity::ENVOY)).transpose()?;
        let envoy = Envoy::serving(binary, plane.control, &follow, listeners, papers.as_ref()).await?;
        envoy.accepted().await?;
        Ok(Self { troupe, plane, envoy, sidecars, _directory: directory })
    }

    fn address(&self, side: Side, callee: usize) -> anyhow::Result<SocketAddr> {
        let own = self.sidecars[callee].address("/inbound")?;
        match side {
            Side::Envoy => self.envoy.served(&format!("inbound/{own}")),
            Side::Weft => Ok(own),
        }
    }

    /// One request to both, the `number`th.
    async fn both(&self, callee: usize, number: usize, ask: &Ask) -> anyhow::Result<[Told; 2]> {
        let mut told = Vec::new();
        for side in Side::BOTH {
            let key = format!("{callee}/{number}/{side:?}");
            told.push(witness(&self.troupe, self.address(side, callee)?, &key, ask).await);
        }
        told.try_into().map_err(|_| anyhow::anyhow!("two sides"))
    }

    /// How often each of the two kept out, and would have kept out.
    async fn counts(&self) -> anyhow::Result<[[u64; 2]; 2]> {
        let words = ["denied", "would_deny"];
        let mut weft = [0; 2];
        for sidecar in &self.sidecars {
            let page = client::once(sidecar.address("/metrics")?, &Ask::get("/metrics", "localhost")).await?;
            let page = String::from_utf8(page.body.to_vec())?;
            for line in page.lines().filter(|line| line.starts_with("weft_access_decisions_total{")) {
                for (count, word) in weft.iter_mut().zip(words) {
                    if line.contains(&format!("weft_access_verdict=\"{word}\"")) {
                        *count += line.rsplit(' ').next().context("a value")?.parse::<f64>()? as u64;
                    }
                }
            }
        }
        let stats = self.envoy.admin("/stats?format=json&filter=rbac").await?;
        let mut envoy = [0; 2];
        for stat in stats["stats"].as_array().context("no stats")? {
            let name = stat["name"].as_str().unwrap_or_default();
            // Those of each rule would count everything twice.
            if name.contains(".policy.") {
                continue;
            }
            let which = match () {
                () if name.ends_with(".shadow_denied") => 1,
                () if name.ends_with(".denied") => 0,
                () => continue,
            };
            envoy[which] += stat["value"].as_u64().unwrap_or_default();
        }
        Ok([envoy, weft])
    }

    async fn counted_alike(&self) -> anyhow::Result<()> {
        poll::until("both have counted the same", PATIENCE, async || {
            let [envoy, weft] = self.counts().await?;
            ensure!(envoy == weft, "denied and would deny: Envoy {envoy:?}, Weft {weft:?}");
            anyhow::Ok(())
        })
        .await
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.envoy.accepted().await?;
        for sidecar in self.sidecars {
            sidecar.stop().await?;
        }
        self.plane.stop().await;
        Ok(())
    }
}

/// The listeners that the control plane would compile for these callees.
fn listeners(yaml: &str, authority: Option<&Authority>, follow: &[Follow]) -> anyhow::Result<Vec<Listener>> {
    let mut world = World::default();
    let mut events: Vec<world::Event> = Vec::new();
    events.extend(authority.map(|authority| {
        let roots = authority.roots().into();
        world::Event::TrustSet(Trust { domain: TRUST_DOMAIN_DEFAULT.into(), roots })
    }));
    for document in resources::parse(yaml) {
        match document.content {
            Content::Object(object) => events.push(object.set()),
            other => anyhow::bail!("{:?}: {other:?}", document.label),
        }
    }
    world.apply_all(events, Instant::now());
    let compiled = follow.iter().map(|follow| {
        let resource = compile::resource(&world, Kind::Listener, &follow.routes, NAMESPACE);
        let resource = resource.with_context(|| format!("no {}", follow.routes))?;
        Ok(Listener::decode(resource.body.value.as_slice())?)
    });
    compiled.collect()
}

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "DELETE", "PURGE"];
/// As policies write paths.
const PATHS: [&str; 9] = [
    "{type: Exact, value: /admin}",
    "{type: Exact, value: /}",
    "{value: /admin}",
    "{value: /a/b/}",
    "{value: /}",
    "{type: RegularExpression, value: '/a/[0-9]+'}",
    "{type: RegularExpression, value: '.*secret.*'}",
    "{type: Exact, value: /shop.Orders/Get}",
    "{value: /A}",
];
/// As callers write them: the same ones, and what they might try to be taken for another.
const TARGETS: [&str; 37] = [
    "/",
    "/admin",
    "/admin/",
    "/admin/x",
    "/administrator",
    "/a/b",
    "/a/b/c",
    "/a/42",
    "/a/42/",
    "/A",
    "/Admin",
    "//admin",
    "/admin//x",
    "/./admin",
    "/x/../admin",
    "/x/..//admin",
    "/%61dmin",
    "/adm%69n/x",
    "/%2e/admin",
    "/x/%2e%2e/admin",
    "/x/.%2E/admin",
    "/admin/..",
    "/admin/../a/42",
    "/admin%2fx",
    "/admin%5cx",
    "/admin;x/y",
    "/x/..;/admin",
    "/admin?x=/../a",
    "/a/b/..%3b/x",
    "/admin%00",
    "/admin%",
    "/a/b%20secret",
    "/a\\b\\c",
    "/..",
    "/a/b/../../../admin",
    "/shop.Orders/Get",
    "/a%7Eb",
];

fn source(random: &mut Rng) -> &'static str {
    let all = [
        "{unauthenticated: true}",
        "{authenticated: true}",
        "{authenticated: true, notNamespace: shop}",
        "{serviceAccount: web}",
        "{namespace: tools}",
        "{namespace: tools, serviceAccount: web}",
        "{notNamespace: tools}",
        "{notServiceAccount: web}",
        "{namespace: shop, notServiceAccount: web}",
        "{namespace: tools, notServiceAccount: cli}",
        "{trustDomain: elsewhere.org}",
        "{trustDomain: elsewhere.org, namespace: shop}",
    ];
    all[random.usize(..all.len())]
}

fn operation(random: &mut Rng) -> String {
    let mut fields = Vec::new();
    if random.bool() {
        fields.push(format!("methods: [{}]", some(random, &METHODS, 3).join(", ")));
    }
    match random.u8(..4) {
        0 => {}
        1 if fields.is_empty() => {
            let part = ["service: shop.Orders", "method: Get", "service: shop.Orders, method: Get"];
            fields.push(format!("grpc: {{{}}}", part[random.usize(..part.len())]));
        }
        _ => fields.push(format!("paths: [{}]", some(random, &PATHS, 3).join(", "))),
    }
    if fields.is_empty() || random.u8(..4) == 0 {
        let value = ["blue", "'b.*'", "''"][random.usize(..3)];
        let kind = if value == "'b.*'" { "type: RegularExpression, " } else { "" };
        fields.push(format!("headers: [{{{kind}name: X-Team, value: {value}}}]"));
    }
    if random.u8(..8) == 0 {
        // A port that nobody has.
        fields.push("ports: [1]".to_owned());
    }
    format!("{{{}}}", fields.join(", "))
}

fn rule(random: &mut Rng) -> String {
    let mut fields = Vec::new();
    if random.bool() {
        let sources: Vec<&str> = (0..random.usize(1..=2)).map(|_| source(random)).collect();
        fields.push(format!("from: [{}]", sources.join(", ")));
    }
    if random.u8(..4) > 0 {
        let operations: Vec<String> = (0..random.usize(1..=2)).map(|_| operation(random)).collect();
        fields.push(format!("to: [{}]", operations.join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}

fn spec(random: &mut Rng) -> String {
    let deny = random.bool();
    let rules = (0..random.usize(usize::from(deny)..=3)).map(|_| rule(random)).collect::<Vec<_>>().join(", ");
    let mode = if random.u8(..3) == 0 { "Audit" } else { "Enforce" };
    format!("{{action: {}, mode: {mode}, rules: [{rules}]}}", if deny { "Deny" } else { "Allow" })
}

fn guarded(random: &mut Rng) -> Guarded {
    let policies = (0..random.usize(1..=3)).map(|_| spec(random)).collect();
    Guarded { policies, protocol: if random.u8(..5) == 0 { "tcp" } else { "http" } }
}

fn ask(random: &mut Rng, protocol: &str) -> Ask {
    let ask = match random.u8(..5) {
        0 => grpc("200"),
        _ => Ask { path: TARGETS[random.usize(..TARGETS.len())].to_owned(), ..get("200") },
    };
    let method = METHODS[random.usize(..METHODS.len())];
    let is_grpc = ask.headers.iter().any(|(_, value)| value == "application/grpc");
    let method =
        if is_grpc { Method::POST } else { Method::from_bytes(method.as_bytes()).unwrap_or_default() };
    // What has no version of its own is bytes to either.
    let ask = Ask { method, h2: is_grpc || protocol == "http" && random.bool(), ..ask };
    match random.u8(..4) {
        0 => ask.header("x-team", "blue"),
        1 => ask.header("x-team", "brown").header("X-Team", "red"),
        _ => ask,
    }
}

/// Callees for one seed, and requests for each.
const CALLEES: usize = 20;
const REQUESTS: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_policy_lets_the_same_callers_in() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let seed = seed();
    let mut random = Rng::with_seed(seed);
    let all: Vec<Guarded> = (0..CALLEES).map(|_| guarded(&mut random)).collect();
    let callees = Callees::start(binary, &all, Vec::new()).await?;
    let mut failures = Vec::new();
    for (callee, guarded) in all.iter().enumerate() {
        for number in 0..REQUESTS {
            let ask = ask(&mut random, guarded.protocol);
            if let Err(error) = compare(&callees.both(callee, number, &ask).await?) {
                failures.push(format!("{guarded:#?}\n{ask:?}: {error:#}"));
            }
        }
    }
    ensure!(
        failures.is_empty(),
        "WEFT_SEED={seed} makes it again; {} differ:\n{}",
        failures.len(),
        failures[..failures.len().min(3)].join("\n")
    );
    callees.counted_alike().await.with_context(|| format!("WEFT_SEED={seed} makes it again"))?;
    callees.stop().await
}

/// What was tried at other meshes, and must not work: each is refused at both, and no app hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_path_gets_around_a_policy() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let deny = Guarded::http(&["{action: Deny, rules: [{to: [{paths: [{value: /admin}]}]}]}"]);
    let callees = Callees::start(binary, &[deny], Vec::new()).await?;
    let spellings = [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "/admin//",
        "/./admin",
        "/x/../admin",
        "/x//../../admin",
        "/%61dmin",
        "/%2e/admin",
        "/x/%2e%2e/admin",
        "/x/..;/admin",
        "/x/..;y=z/admin",
        "\\admin",
        "/x\\..\\admin",
        "/admin%2fx",
        "/admin%5Cx",
        "/x/..%2fadmin",
        "/admin%00",
        "/admin?a=b",
        "/.%2e/admin",
    ];
    for (number, path) in spellings.into_iter().enumerate() {
        // A target begins with a slash.
        let path = if path.starts_with('\\') { format!("/{path}") } else { path.to_owned() };
        let told = callees.both(0, number, &Ask { path: path.clone(), ..get("200") }).await?;
        for (side, told) in Side::BOTH.iter().zip(&told) {
            ensure!(matches!(told.status(), Some(400 | 403)), "{path} at {side:?}: {told:?}");
            ensure!(told.attempts.is_empty(), "{path} reached the app through {side:?}");
        }
    }
    callees.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_may_be_closed_to_all_whom_nobody_lets_in() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let namespace = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "annotations": {"weft.dev/default-access": "deny"}},
    });
    let open = "{rules: [{to: [{paths: [{value: /open}]}]}]}";
    let audited = "{mode: Audit, rules: [{}]}";
    let all = [Guarded::http(&[]), Guarded::http(&[open]), Guarded::http(&[audited])];
    let callees = Callees::start(binary, &all, vec![namespace]).await?;
    for (callee, path, status) in [(0, "/open", 403), (1, "/open/x", 200), (1, "/", 403), (2, "/open", 403)] {
        let told = callees.both(callee, 0, &Ask { path: path.to_owned(), ..get("200") }).await?;
        compare(&told)?;
        ensure!(told[0].status() == Some(status), "{callee} {path}: {told:?}");
    }
    callees.counted_alike().await?;
    callees.stop().await
}

/// Each side's row of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weft_resolves_what_some_servers_would() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let deny = Guarded::http(&["{action: Deny, rules: [{to: [{paths: [{value: /admin}]}]}]}"]);
    let callees = Callees::start(binary, &[deny], Vec::new()).await?;
    for (number, (path, envoy, weft)) in
        [("/x/%2e%2e;y/admin", Some("/x/..;y/admin"), None), ("///", Some("//"), Some("/"))]
            .into_iter()
            .enumerate()
    {
        let told = callees.both(0, number, &Ask { path: path.to_owned(), ..get("200") }).await?;
        for (told, path) in told.iter().zip([envoy, weft]) {
            let seen = callees.troupe.arrivals(&told.key);
            let seen = seen.first().map(|arrival| arrival.path.as_str());
            ensure!(seen == path, "{seen:?} instead of {path:?}: {told:?}");
        }
    }
    callees.stop().await
}

/// An app that says something to whoever connects.
async fn greeting() -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The other side may have gone.
                drop(stream.write_all(b"hello").await);
                drop(stream.read_u8().await);
            });
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weft_refuses_before_a_server_speaks() -> anyhow::Result<()> {
    let Some(binary) = envoy::available() else { return Ok(()) };
    let closed = Guarded { policies: vec!["{rules: []}".to_owned()], protocol: "tcp" };
    let app = greeting().await?;
    let callees = Callees::before(binary, &[closed], Vec::new(), None, |_| app).await?;
    for (side, heard) in Side::BOTH.into_iter().zip(["hello", ""]) {
        let mut stream = TcpStream::connect(callees.address(side, 0)?).await?;
        let mut said = [0; 5];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut said)).await?;
        let read = read.unwrap_or_default();
        ensure!(&said[..read] == heard.as_bytes(), "{side:?}: {:?}", &said[..read]);
    }
    callees.stop().await
}
