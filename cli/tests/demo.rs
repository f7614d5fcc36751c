//! `weft demo` on every kind of ground: the picture is right, the words are few, nothing is left behind.

use std::collections::HashSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use weft_cli::fabric::{Fabric, Isolation};

/// Debug builds of thirty processes on a busy machine with two cores.
const PATIENCE: Duration = Duration::from_secs(120);

struct Demo {
    weft: Child,
    output: BufReader<ChildStdout>,
    lines: Vec<String>,
    api: String,
}

impl Demo {
    /// Starts it and reads up to the dashboard's address.
    fn start(isolation: &str) -> Self {
        let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["demo", "--listen", "127.0.0.1:0", "--isolation", isolation])
            .stdout(Stdio::piped())
            .spawn()
            .expect("weft starts");
        let output = BufReader::new(weft.stdout.take().expect("piped"));
        let mut demo = Self { weft, output, lines: Vec::new(), api: String::new() };
        while demo.api.is_empty() {
            let mut line = String::new();
            let read = demo.output.read_line(&mut line).expect("text");
            assert!(read > 0, "the demo ended early: {:#?}", demo.lines);
            if let Some(address) = line.trim().strip_prefix("Dashboard") {
                demo.api = address.trim().to_owned();
            }
            demo.lines.push(line.trim_end().to_owned());
        }
        demo
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.weft.id()).expect("small"))
    }

    /// Edges as `source protocol target`.
    fn edges(&self) -> HashSet<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["graph", "-o", "json", "--api", &self.api])
            .output()
            .expect("weft graph runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let graph: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let edges = graph["edges"].as_array().expect("edges").iter();
        edges
            .map(|edge| {
                format!("{} {} {}", text(&edge["source"]), text(&edge["protocol"]), text(&edge["target"]))
                    .replace("workload:shop/", "")
            })
            .collect()
    }

    fn until_edges(&self, wanted: &[&str]) {
        let mut seen = HashSet::new();
        let all = until(|| {
            seen = self.edges();
            wanted.iter().all(|edge| seen.contains(*edge))
        });
        assert!(all, "wanted {wanted:#?}, seen {seen:#?}");
    }

    /// Everything it started: its children, and theirs.
    fn descendants(&self) -> Vec<String> {
        let mut family = HashSet::from([self.weft.id().to_string()]);
        let mut found = Vec::new();
        loop {
            let children: Vec<String> = processes()
                .into_iter()
                .filter(|(pid, parent)| family.contains(parent) && !family.contains(pid))
                .map(|(pid, _)| pid)
                .collect();
            if children.is_empty() {
                return found;
            }
            family.extend(children.iter().cloned());
            found.extend(children);
        }
    }
}

/// A failed test must not leave a shop behind.
impl Drop for Demo {
    fn drop(&mut self) {
        self.weft.kill().and_then(|()| self.weft.wait()).ok();
    }
}

/// Process ids with those of their parents; the dead that nobody has buried yet do not count.
fn processes() -> Vec<(String, String)> {
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().into_string().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(Path::new("/proc").join(&pid).join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (fields.next()?, fields.next()?);
        (state != "Z").then(|| (pid, parent.to_owned()))
    })
    .collect()
}

fn alive(pids: &[String]) -> bool {
    processes().iter().any(|(pid, _)| pids.contains(pid))
}

fn until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    true
}

/// Who calls whom, on every ground.
const PICTURE: [&str; 9] = [
    "shopper http web",
    "web http catalog",
    "web http cart",
    "web http orders",
    "web http recommendations",
    "cart tcp cache",
    "orders http inventory",
    "orders http notifications",
    "orders grpc payments",
];

/// What only interception sees: names on the internet and callers without a sidecar.
const OUTSIDERS: [&str; 2] = ["payments http external:api.bank.example:80", "unmeshed:shop/cron http orders"];

/// Whether this machine allows such namespaces; CI must.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn allowed(isolation: Isolation) -> bool {
    match Fabric::builder().helper(env!("CARGO_BIN_EXE_weft")).isolation(isolation).build() {
        Ok(_) => true,
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must be able to run this: {error}");
            eprintln!("skipped: {error}");
            false
        }
    }
}

fn tells_its_story(isolation: &str, more: &[&str]) {
    let mut demo = Demo::start(isolation);
    demo.until_edges(&[&PICTURE, more].concat());
    let family = demo.descendants();
    kill(demo.pid(), Signal::SIGINT).expect("the demo runs");
    let mut rest = String::new();
    demo.output.read_to_string(&mut rest).expect("text");
    assert!(demo.weft.wait().expect("ends").success());
    demo.lines.extend(rest.lines().map(str::to_owned));
    // What a breaker did meanwhile is a line each; all else fits on any screen.
    let story = demo.lines.iter().filter(|line| !line.trim_start().starts_with('+')).count();
    assert!(story <= 18, "{story} lines: {:#?}", demo.lines);
    assert!(rest.contains("everything is gone"), "{rest}");
    assert!(!alive(&family), "{family:?}");
}

#[test]
fn as_root() {
    if allowed(Isolation::Root) {
        tells_its_story("root", &OUTSIDERS);
    }
}

#[test]
fn in_a_user_namespace() {
    if allowed(Isolation::User) {
        tells_its_story("user", &OUTSIDERS);
    }
}

#[test]
fn on_loopback() {
    tells_its_story("loopback", &["payments http external:127.77.0.2:10080"]);
}

#[test]
fn not_even_sigkill_leaves_anything_behind() {
    let mut demo = Demo::start("auto");
    let family = demo.descendants();
    assert!(family.len() > 20, "{family:?}");
    demo.weft.kill().expect("the demo runs");
    demo.weft.wait().expect("ends");
    assert!(until(|| !alive(&family)), "{family:?}");
}
