//! The kubelet's probes of the app, asked by the sidecar.
//!
//! In: `WEFT_PROBES`, JSON that the injector made of the pod's probes, and the kubelet's requests at
//! `/probe/<container>/<kind>`. Out: an answer by which the kubelet judges as it would have judged the app's own. The app is
//! asked at the pod's own address, as the kubelet would, and around this sidecar's pipelines: no metric counts it and no policy
//! refuses it.
//!
//! Invariants: every question has the probe's own deadline; of an answer at most [`ANSWER_MAX`] is read; whoever asks chooses
//! one of the questions that the pod's author wrote and nothing in it; and of a hook, which does something, they must know the
//! headers that its author wrote, as if they asked the app itself. Surprise: what the kubelet calls a success is answered
//! with 200 even where the app said 302, because the kubelet would follow that itself. Non-goal: `exec`, which needs no network.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use weft_wire::pod::{PROBES_MAX, ProbeKind, is_sent_as_written};

use crate::check;
use crate::connect::{ConnectOptions, connect};
use crate::tls::Stream;

mod http_get;

pub use http_get::ANSWER_MAX;

/// Deadlines are clipped to this: the kubelet has gone long before.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// What the kubelet may ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probes(BTreeMap<String, Probe>);

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Probe {
    ask: Ask,
    port: u16,
    timeout: Duration,
    is_hook: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ask {
    Http(Get),
    Tcp,
    Grpc { service: String },
}

/// An HTTP question.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Get {
    tls: bool,
    path: String,
    host: Option<HeaderValue>,
    headers: HeaderMap,
}

/// What is wrong with the JSON.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is none of ours.
    #[error("{0}")]
    Json(String),
    /// A key that is no `<container>/<kind>`.
    #[error("{0:?} is not <container>/<kind> with one of liveness, readiness, startup, post-start, pre-stop")]
    Key(String),
    /// Not exactly one question.
    #[error("{0} must have one of httpGet, tcpSocket and grpc, and a port from 1 to 65535")]
    Question(String),
    /// A header that cannot be sent.
    #[error("{0} has a header that cannot be sent: {1:?}")]
    Header(String, String),
    /// More than a pod can have.
    #[error("there are {0} probes; at most {PROBES_MAX} are possible")]
    TooMany(usize),
}

/// An entry as the injector writes it. The handlers are Kubernetes' own and may have fields that nobody knows yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    http_get: Option<HttpGet>,
    tcp_socket: Option<serde::de::IgnoredAny>,
    grpc: Option<Grpc>,
    port: u16,
    timeout_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpGet {
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    scheme: Option<String>,
    #[serde(default)]
    http_headers: Option<Vec<Header>>,
}

#[derive(Deserialize)]
struct Header {
    name: String,
    value: String,
}

#[derive(Deserialize)]
struct Grpc {
    #[serde(default)]
    service: Option<String>,
}

impl FromStr for Probes {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let entries: BTreeMap<String, Entry> =
            serde_json::from_str(text).map_err(|error| Invalid::Json(error.to_string()))?;
        if entries.len() > PROBES_MAX {
            return Err(Invalid::TooMany(entries.len()));
        }
        let probes = entries.into_iter().map(|(key, entry)| {
            let probe = Probe::new(&key, entry)?;
            Ok((key, probe))
        });
        probes.collect::<Result<_, _>>().map(Self)
    }
}

impl Probes {
    /// What can be asked, for people.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

impl Probe {
    fn new(key: &str, entry: Entry) -> Result<Self, Invalid> {
        let kind = key.split_once('/').and_then(|(container, word)| {
            let kind = ProbeKind::ALL.into_iter().find(|kind| kind.word() == word)?;
            (!container.is_empty()).then_some(kind)
        });
        let kind = kind.ok_or_else(|| Invalid::Key(key.to_owned()))?;
        let Entry { http_get, tcp_socket, grpc, port, timeout_seconds } = entry;
        let ask = match (http_get, tcp_socket, grpc) {
            (Some(get), None, None) => Ask::Http(Get::new(key, get)?),
            (None, Some(_), None) => Ask::Tcp,
            (None, None, Some(grpc)) => Ask::Grpc { service: grpc.service.unwrap_or_default() },
            _ => return Err(Invalid::Question(key.to_owned())),
        };
        if port == 0 {
            return Err(Invalid::Question(key.to_owned()));
        }
        let timeout = Duration::from_secs(timeout_seconds.max(1)).min(TIMEOUT_MAX);
        Ok(Self { ask, port, timeout, is_hook: kind.is_hook() })
    }
}

impl Probe {
    /// Whether whoever asks has what the author of a hook wrote into it: in its headers the sidecar would otherwise lend a
    /// secret to everybody. Of any other question the answer is all there is.
    fn is_shown_by(&self, from: &HeaderMap) -> bool {
        let Ask::Http(get) = &self.ask else { return true };
        !self.is_hook || get.headers.keys().all(|name| is_shown(name, &get.headers, from))
    }
}

/// Whether `from` has the values of this header as they are written; how long the answer takes says nothing of them.
fn is_shown(name: &HeaderName, written: &HeaderMap, from: &HeaderMap) -> bool {
    let mut shown = from.get_all(name).iter();
    let wanted = written.get_all(name).iter().map(|value| value.as_bytes().trim_ascii());
    let mut wanted =
        wanted.filter(|value| is_sent_as_written(name.as_str(), &String::from_utf8_lossy(value)));
    let is_same = |value: &[u8], shown: Option<&HeaderValue>| {
        shown.is_some_and(|shown| verify_slices_are_equal(shown.as_bytes().trim_ascii(), value).is_ok())
    };
    wanted.all(|value| is_same(value, shown.next()))
}

impl Get {
    fn new(key: &str, get: HttpGet) -> Result<Self, Invalid> {
        let mut headers = HeaderMap::new();
        let mut host = None;
        for Header { name, value } in get.http_headers.unwrap_or_default() {
            let invalid = || Invalid::Header(key.to_owned(), name.clone());
            let parsed = name.parse::<HeaderName>().map_err(|_| invalid())?;
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| invalid())?;
            if parsed == http::header::HOST {
                host = Some(value);
            } else {
                headers.append(parsed, value);
            }
        }
        let tls = get.scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        Ok(Self { tls, path: http_get::path(get.path.as_deref().unwrap_or_default()), host, headers })
    }
}

/// How the app answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What the kubelet is told.
    pub status: StatusCode,
    /// Why, for people.
    pub words: String,
}

impl Verdict {
    fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self { status, words: words.into() }
    }
}

/// Asks the app what the kubelet would ask.
#[derive(Debug, Clone)]
pub struct Asker {
    /// The questions.
    pub probes: Arc<Probes>,
    /// The pod's address.
    pub address: IpAddr,
    /// The sidecar's mark on its own sockets.
    pub mark: Option<u32>,
}

impl Asker {
    /// The answer to `key`, which is `<container>/<kind>`; `None` if there is no such probe. `from` are the kubelet's own
    /// headers.
    pub async fn ask(&self, key: &str, from: &HeaderMap) -> Option<Verdict> {
        let probe = self.probes.0.get(key)?;
        if !probe.is_shown_by(from) {
            let words = "this hook is for the kubelet: it comes with headers (lifecycle, httpGet.httpHeaders) that this request lacks";
            return Some(Verdict::new(StatusCode::FORBIDDEN, words));
        }
        let address = SocketAddr::new(self.address, probe.port);
        let asked = tokio::time::timeout(probe.timeout, self.question(probe, address, from)).await;
        let verdict = asked.unwrap_or_else(|_elapsed| {
            let words = format!("no answer from {address} within {:?}", probe.timeout);
            Verdict::new(StatusCode::GATEWAY_TIMEOUT, words)
        });
        if !verdict.status.is_success() {
            tracing::debug!(
                probe = key,
                status = verdict.status.as_u16(),
                words = verdict.words,
                "probe failed"
            );
        }
        Some(verdict)
    }

    async fn question(&self, probe: &Probe, address: SocketAddr, from: &HeaderMap) -> Verdict {
        let options = ConnectOptions { timeout: probe.timeout, mark: self.mark };
        match &probe.ask {
            Ask::Http(get) => match http_get::ask(get, address, &options, from).await {
                // A hook is done when there was an answer, whatever it says.
                Ok(status) if probe.is_hook => {
                    Verdict::new(StatusCode::OK, format!("the app answered {status}"))
                }
                Ok(status) if (200..400).contains(&status.as_u16()) => {
                    Verdict::new(StatusCode::OK, format!("the app answered {status}"))
                }
                Ok(status) => {
                    // What is no final status cannot be passed on.
                    let passed = if status.as_u16() < 400 { StatusCode::BAD_GATEWAY } else { status };
                    Verdict::new(passed, format!("the app answered {status}"))
                }
                Err(error) => Verdict::new(StatusCode::BAD_GATEWAY, chain(&error)),
            },
            Ask::Tcp => match connect(address, &options).await {
                Ok(_) => Verdict::new(StatusCode::OK, "the app accepts connections"),
                Err(error) => Verdict::new(StatusCode::BAD_GATEWAY, chain(&error)),
            },
            Ask::Grpc { service } => match connect(address, &options).await {
                Ok(stream) => match check::is_serving(Stream::Plain(stream), address, service).await {
                    Ok(true) => Verdict::new(StatusCode::OK, "the app is serving"),
                    Ok(false) => {
                        Verdict::new(StatusCode::SERVICE_UNAVAILABLE, "the app says that it is not serving")
                    }
                    Err(error) => Verdict::new(StatusCode::BAD_GATEWAY, chain(&*error)),
                },
                Err(error) => Verdict::new(StatusCode::BAD_GATEWAY, chain(&error)),
            },
        }
    }
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    use fmt::Write as _;
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // A text takes everything.
        write!(words, ": {error}").ok();
        cause = error.source();
    }
    words
}

#[cfg(test)]
mod tests;
