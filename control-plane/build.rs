//! Builds the dashboard with npm and Vite and puts it where the API embeds it from.
//!
//! In: `dashboard/`. Out: `$OUT_DIR/dashboard`. With `WEFT_SKIP_DASHBOARD=1`, or where the sources are not
//! there, a small page that says so is embedded instead, so that the control plane builds without Node.
//! Invariant: what is embedded was built from the sources as they are, or the build fails and says why.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the dashboard is built from; everything else in its folder is made by tools.
const SOURCES: [&str; 8] = [
    "index.html",
    "package-lock.json",
    "package.json",
    "public",
    "src",
    "svelte.config.js",
    "tsconfig.json",
    "vite.config.ts",
];
/// The oldest Node that the build tools run on.
const NODE_MAJOR: u32 = 20;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=WEFT_SKIP_DASHBOARD");
    let sources = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("dashboard");
    let out = PathBuf::from(variable("OUT_DIR")).join("dashboard");
    let skip = std::env::var("WEFT_SKIP_DASHBOARD").is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    // Watched even where it is missing, so that it is built as soon as it appears.
    println!("cargo::rerun-if-changed={}", sources.join("package.json").display());
    let built = if skip || !sources.join("package.json").exists() {
        placeholder(&out)
    } else {
        for name in SOURCES {
            println!("cargo::rerun-if-changed={}", sources.join(name).display());
        }
        build(&sources, &out)
    };
    if let Err(reason) = built {
        println!("cargo::error={reason}");
        println!("cargo::error=set WEFT_SKIP_DASHBOARD=1 to build the control plane without its dashboard");
        std::process::exit(1);
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).expect("set by cargo")
}

fn placeholder(out: &Path) -> Result<(), String> {
    const PAGE: &str = "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>Weft</title>\n\
        <p>This control plane was built without its dashboard (WEFT_SKIP_DASHBOARD). \
        The API is there: <a href=\"/api/graph\">/api/graph</a>, <a href=\"/api/openapi.json\">its description</a>.\n";
    if out.exists() {
        fs::remove_dir_all(out).map_err(|error| format!("cannot clear {}: {error}", out.display()))?;
    }
    fs::create_dir_all(out)
        .and_then(|()| fs::write(out.join("index.html"), PAGE))
        .map_err(|error| format!("cannot write {}: {error}", out.display()))
}

fn build(sources: &Path, out: &Path) -> Result<(), String> {
    check_node()?;
    let lock_file = sources.join("package-lock.json");
    // Builds for several target folders share one node_modules; they take turns.
    let lock =
        File::open(&lock_file).map_err(|error| format!("cannot read {}: {error}", lock_file.display()))?;
    lock.lock().map_err(|error| format!("cannot lock {}: {error}", lock_file.display()))?;
    if !is_installed(sources) {
        npm(sources, out, &["ci", "--no-audit", "--no-fund"])?;
    }
    npm(sources, out, &["run", "build"])?;
    match out.join("index.html").exists() {
        true => Ok(()),
        false => Err(format!("`npm run build` left no index.html in {}", out.display())),
    }
}

fn check_node() -> Result<(), String> {
    let needed = format!("the dashboard needs Node {NODE_MAJOR} or newer, with npm");
    let output = Command::new("node").arg("--version").output();
    let output = output.map_err(|error| format!("{needed}, but `node` cannot be started: {error}"))?;
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(major) if major >= NODE_MAJOR => Ok(()),
        _ => Err(format!("{needed}, but this is {version:?}")),
    }
}

/// Whether node_modules holds what the lock file says: npm writes its own copy of it there last.
fn is_installed(sources: &Path) -> bool {
    let modified = |path: PathBuf| fs::metadata(path).and_then(|data| data.modified());
    let installed = modified(sources.join("node_modules/.package-lock.json"));
    let wanted = modified(sources.join("package-lock.json"));
    matches!((installed, wanted), (Ok(installed), Ok(wanted)) if installed >= wanted)
}

fn npm(sources: &Path, out: &Path, arguments: &[&str]) -> Result<(), String> {
    let command = format!("npm {}", arguments.join(" "));
    let output = Command::new("npm")
        .args(arguments)
        .current_dir(sources)
        .env("WEFT_DASHBOARD_OUT", out)
        .output()
        .map_err(|error| format!("`{command}` cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    for line in String::from_utf8_lossy(&said).lines() {
        println!("cargo::warning={line}");
    }
    Err(format!("`{command}` failed in {}", sources.display()))
}
