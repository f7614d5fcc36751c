//! Load on one running peer, by wrk for HTTP/1.1 and h2load for HTTP/2, and what it cost the peer.

use std::fmt;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, bail, ensure};
use weft_tests::package;

use crate::peer::{LOAD_CORE, Running};

/// Requests in flight on each HTTP/2 connection.
const STREAMS: u32 = 10;

/// The protocol on both sides of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    H1,
    H2,
}

impl Protocol {
    /// As a port declares it to Weft.
    pub(crate) fn declared(self) -> &'static str {
        match self {
            Self::H1 => "http",
            Self::H2 => "http2",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
        })
    }
}

impl FromStr for Protocol {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text {
            "h1" => Ok(Self::H1),
            "h2" => Ok(Self::H2),
            _ => bail!("unknown protocol {text}; known: h1, h2"),
        }
    }
}

/// What one load run showed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measure {
    pub(crate) cpu_us_per_request: f64,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
    rss_mb: f64,
}

impl Measure {
    /// The median of each figure by itself.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Self {
            cpu_us_per_request: of(|m| m.cpu_us_per_request),
            rps: of(|m| m.rps),
            p50_us: of(|m| m.p50_us),
            p99_us: of(|m| m.p99_us),
            rss_mb: of(|m| m.rss_mb),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cpu_us_per_request={:.1} rps={:.0} p50_us={:.0} p99_us={:.0} rss_mb={:.1}",
            self.cpu_us_per_request, self.rps, self.p50_us, self.p99_us, self.rss_mb
        )
    }
}

/// What a load generator reports.
struct Report {
    requests: f64,
    rps: f64,
    p50_us: f64,
    p99_us: f64,
}

/// Drives `running` for `seconds` and measures it.
pub(crate) fn run(
    running: &Running,
    protocol: Protocol,
    connections: u32,
    seconds: u32,
) -> anyhow::Result<Measure> {
    let before = running.cpu_nanos()?;
    let report = match protocol {
        Protocol::H1 => wrk(running.port, connections, seconds)?,
        Protocol::H2 => h2load(running.port, connections, seconds)?,
    };
    let after = running.cpu_nanos()?;
    ensure!(report.requests > 0.0, "no request was answered");
    Ok(Measure {
        cpu_us_per_request: (after - before) as f64 / 1e3 / report.requests,
        rps: report.rps,
        p50_us: report.p50_us,
        p99_us: report.p99_us,
        rss_mb: running.rss_bytes()? as f64 / 1e6,
    })
}

fn pinned(program: &std::path::Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", LOAD_CORE]).arg(program);
    command
}

fn wrk(port: u16, connections: u32, seconds: u32) -> anyhow::Result<Report> {
    let output = pinned(&package::debian("wrk", "wrk")?)
        .args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{seconds}s")])
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !text.contains("Non-2xx"), "wrk: {text}");
    ensure!(!text.contains("Socket errors"), "wrk: {text}");
    let after = |label: &str| -> anyhow::Result<&str> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        Ok(line.with_context(|| format!("no {label:?} in: {text}"))?.trim())
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .with_context(|| format!("no request count in: {text}"))?
        .0;
    Ok(Report {
        requests: requests.parse()?,
        rps: after("Requests/sec:")?.parse()?,
        p50_us: microseconds(after("50%")?)?,
        p99_us: microseconds(after("99%")?)?,
    })
}

/// wrk writes `123.00us`, `1.23ms` or `1.23s`.
fn microseconds(text: &str) -> anyhow::Result<f64> {
    let (number, factor) = if let Some(number) = text.strip_suffix("us") {
        (number, 1.0)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1e3)
    } else {
        (text.strip_suffix('s').with_context(|| format!("no unit in {text}"))?, 1e6)
    };
    Ok(number.parse::<f64>()? * factor)
}

fn h2load(port: u16, connections: u32, seconds: u32) -> anyhow::Result<Report> {
    let log = tempfile::NamedTempFile::new_in("/dev/shm")?;
    let output = pinned(&package::debian("h2load", "nghttp2-client")?)
        .args(["-t1", &format!("-c{connections}"), &format!("-m{STREAMS}"), &format!("-D{seconds}")])
        .arg(format!("--log-file={}", log.path().display()))
        .arg(format!("http://127.0.0.1:{port}/"))
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "h2load: {text}");
    let number_before = |label: &str| -> anyhow::Result<f64> {
        let head = text.split_once(label).with_context(|| format!("no {label:?} in: {text}"))?.0;
        let word = head.rsplit([' ', '\n']).next().context("a number stands before its label")?;
        Ok(word.parse()?)
    };
    ensure!(number_before(" failed,")? == 0.0, "h2load: {text}");
    // start in µs, status, duration in µs
    let lines = std::fs::read_to_string(log.path())?;
    let mut latencies: Vec<f64> =
        lines.lines().filter_map(|line| line.split('\t').nth(2)?.parse().ok()).collect();
    ensure!(!latencies.is_empty(), "h2load logged no request: {text}");
    latencies.sort_by(f64::total_cmp);
    Ok(Report {
        requests: latencies.len() as f64,
        rps: number_before(" req/s")?,
        p50_us: latencies[latencies.len() / 2],
        p99_us: latencies[latencies.len() * 99 / 100],
    })
}
