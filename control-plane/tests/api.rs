//! Who may use the API, as somebody with a socket meets it: a real control plane on port 0 that asks who comes.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "api/audit.rs"]
mod audit;
#[path = "api/client.rs"]
mod client;
#[path = "api/cluster.rs"]
mod cluster;
#[path = "api/oidc.rs"]
mod oidc;
#[path = "api/page.rs"]
mod page;
#[path = "api/provider.rs"]
mod provider;
#[path = "api/session.rs"]
mod session;
#[path = "api/tokens.rs"]
mod tokens;

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use clap::Parser as _;
use weft_control_plane::app::App;
use weft_control_plane::auth::Role;
use weft_control_plane::auth::tokens::{Minted, mint};
use weft_control_plane::config::Config;

use client::Client;

/// No test waits for this; it only ends one that would wait for ever.
const FAR: Duration = Duration::from_secs(15);

/// A control plane without sidecars, started as from a command line.
async fn start(flags: &[&str]) -> anyhow::Result<App> {
    let off = ["--control-listen=off", "--otlp-grpc-listen=off", "--otlp-http-listen=off"];
    let usual = ["--api-listen=127.0.0.1:0", "--control-tls-listen=off"];
    let told = |flag: &str| flags.iter().any(|other| other.split('=').next() == flag.split('=').next());
    let usual: Vec<&str> = usual.into_iter().filter(|flag| !told(flag)).collect();
    let line = [&["weft-control-plane"], &off[..], &usual, flags].concat();
    App::start(Config::try_parse_from(line)?).await
}

async fn stop(app: App) {
    tokio::time::timeout(FAR, app.stop(std::future::pending())).await.expect("ends");
}

fn client(app: &App) -> Client {
    Client::new(app.bound().api.unwrap())
}

/// A token by a seed, so that a test can name it again.
fn token(name: &str, role: Role, seed: u8) -> Minted {
    mint(name, role, None, &[seed; 32]).unwrap()
}

/// The file of tokens, for its owner only.
fn write_tokens(path: &Path, tokens: &[&Minted]) {
    let temporary = path.with_extension("tmp");
    let text: String = tokens.iter().map(|one| format!("{}\n", one.line)).collect();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    std::fs::rename(temporary, path).unwrap();
}
