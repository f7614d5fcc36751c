//! Letting a sidecar into the mesh: a join token, made through the control plane's API.
//!
//! In: whom the sidecar will speak for. Out: a token that is good for that one sidecar, once. Surprise: whoever may ask the API
//! may let anybody in; on loopback that is everybody on this machine, as it is for everything else the API does.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::api::{Api, Error};

#[derive(Serialize)]
struct Wanted<'a> {
    name: &'a str,
    namespace: &'a str,
}

#[derive(Deserialize)]
struct Made {
    token: String,
}

/// Makes a token for one sidecar of a workload.
pub(crate) async fn token(api: &Api, namespace: &str, name: &str) -> Result<String, Error> {
    let wanted = serde_json::to_string(&Wanted { name, namespace }).expect("two names are JSON");
    let Made { token } = api.read(&api.post("/api/tokens", "application/json", wanted).await?)?;
    Ok(token)
}

/// Puts a token where only this user reads it; whoever looks for the file finds all of it or nothing.
pub(crate) fn keep(token: &str, path: &Path) -> std::io::Result<()> {
    let unfinished = path.with_extension("tmp");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(token.as_bytes())?;
    fs::rename(unfinished, path)
}
