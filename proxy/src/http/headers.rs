//! Header hygiene: what may cross a hop and what may not (RFC 9110 §7.6, RFC 9112 §3, RFC 9113 §8).
//!
//! In: a head as hyper parsed it. Out: the head as the next hop may see it, and what the request is after
//! ([`Intent`]); or the [`Reason`] for refusing it. Invariants: exactly one `Host` or `:authority`, never two that
//! disagree; a header named in `Connection` does not pass, except those that frame or address the message,
//! which nobody may nominate away.
//!
//! Surprise: `Transfer-Encoding` stays. hyper has already decoded the body by it and frames it anew by it on the
//! other side; removing it would turn a chunked `GET` into one without a body. Non-goal: message framing itself
//! (`Content-Length` against `Transfer-Encoding`, bad chunks, folded lines), which is hyper's, with tests here.

use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use weft_wire::Reason;
use weft_wire::header::{DEADLINE, MIRRORED};

/// Bytes of a header section, names, values and separators, counted as HTTP/1 writes them. Envoy's default;
/// large enough for the 48 kB of cookies a browser can send to one site.
pub const HEADER_BYTES_MAX: usize = 60 * 1024;

/// Fields of a header section: hyper's own limit for HTTP/1, kept for HTTP/2 so that both speak alike.
pub const HEADER_FIELDS_MAX: usize = 100;

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// Who a caller says its certificate names. A certificate says so itself, or nobody does.
const CLIENT_CERTIFICATE: &str = "x-forwarded-client-cert";
const KEEP_ALIVE: &str = "keep-alive";
const PROXY_CONNECTION: &str = "proxy-connection";
const HTTP2_SETTINGS: &str = "http2-settings";

/// What a request is after, as far as it changes how it is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// A tunnel (`CONNECT`).
    Connect,
    /// It waits for `100 Continue` before it sends its body.
    Continue,
    /// One request, one response.
    Plain,
    /// Another protocol on this connection (`Upgrade`, for instance WebSocket).
    Upgrade,
}

/// What a request's head says to this proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// What it is after.
    pub intent: Intent,
    /// Its caller waits only so long.
    pub deadline: bool,
    /// It is a copy that nobody waits for.
    pub mirrored: bool,
}

/// In which form the request target is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As it came: the destination may itself be an HTTP proxy.
    AsIs,
    /// `/path?query`: the destination is an origin server.
    Origin,
}

#[derive(Default)]
struct Survey {
    bytes: usize,
    fields: usize,
    hosts: u8,
    client_certificate: bool,
    connection: bool,
    expect: bool,
    keep_alive: bool,
    proxy_authorization: bool,
    proxy_connection: bool,
    te: bool,
    upgrade: bool,
    http2_settings: bool,
    deadline: bool,
    mirrored: bool,
}

impl Survey {
    /// One walk over the headers costs less than one lookup for each name of interest.
    fn of(headers: &HeaderMap) -> Self {
        let mut survey = Self::default();
        for (name, value) in headers {
            let text = name.as_str();
            survey.fields += 1;
            survey.bytes += text.len() + value.len() + 4;
            match *name {
                header::CONNECTION => survey.connection = true,
                header::EXPECT => survey.expect = true,
                header::HOST => survey.hosts = survey.hosts.saturating_add(1),
                header::PROXY_AUTHORIZATION => survey.proxy_authorization = true,
                header::TE => survey.te = true,
                header::UPGRADE => survey.upgrade = true,
                _ => match text.len() {
                    10 if text == KEEP_ALIVE => survey.keep_alive = true,
                    12 if text == GRPC_TIMEOUT => survey.deadline = true,
                    14 if text == HTTP2_SETTINGS => survey.http2_settings = true,
                    15 if text == DEADLINE => survey.deadline = true,
                    15 if text == MIRRORED => survey.mirrored = true,
                    16 if text == PROXY_CONNECTION => survey.proxy_connection = true,
                    23 if text == CLIENT_CERTIFICATE => survey.client_certificate = true,
                    _ => {}
                },
            }
        }
        survey
    }
}

/// Makes a request fit to be passed on. `consume_proxy` says that this proxy is the one the client addressed as
/// its HTTP proxy, so credentials for a proxy end here.
///
/// # Errors
/// [`Reason::HeaderTooLarge`] beyond the limits; [`Reason::ProtocolError`] for what a recipient must refuse.
pub fn request(parts: &mut Parts, form: Form, consume_proxy: bool) -> Result<Said, Reason> {
    let survey = Survey::of(&parts.headers);
    if survey.bytes > HEADER_BYTES_MAX || survey.fields > HEADER_FIELDS_MAX {
        return Err(Reason::HeaderTooLarge);
    }
    address(parts, form, survey.hosts)?;
    let headers = &mut parts.headers;
    let mut intent = Intent::Plain;
    if parts.method == Method::CONNECT {
        intent = Intent::Connect;
    } else if survey.expect && expects_continue(headers) && parts.version >= Version::HTTP_11 {
        intent = Intent::Continue;
    }
    // Looked at before `Connection` goes.
    let upgrade = survey.upgrade
        && intent == Intent::Plain
        && parts.version == Version::HTTP_11
        && is_upgrade(headers)
        && !has_body(headers);
    let trailers = survey.te && accepts_trailers(headers);
    if survey.connection {
        remove_nominated(headers);
    }
    if survey.client_certificate {
        headers.remove(CLIENT_CERTIFICATE);
    }
    if survey.keep_alive {
        headers.remove(KEEP_ALIVE);
    }
    if survey.proxy_connection {
        headers.remove(PROXY_CONNECTION);
    }
    if survey.http2_settings {
        headers.remove(HTTP2_SETTINGS);
    }
    if survey.proxy_authorization && consume_proxy {
        headers.remove(header::PROXY_AUTHORIZATION);
    }
    if survey.te {
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        intent = Intent::Upgrade;
    } else if survey.upgrade {
        headers.remove(header::UPGRADE);
    }
    Ok(Said { intent, deadline: survey.deadline, mirrored: survey.mirrored })
}

/// Makes a response fit to be passed on.
pub fn response(status: StatusCode, headers: &mut HeaderMap) {
    let survey = Survey::of(headers);
    let switching = status == StatusCode::SWITCHING_PROTOCOLS;
    if survey.connection {
        remove_nominated(headers);
        if switching {
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
    }
    if survey.keep_alive {
        headers.remove(KEEP_ALIVE);
    }
    if survey.proxy_connection {
        headers.remove(PROXY_CONNECTION);
    }
    // 426 has to say to what; everywhere else the offer is between the neighbours.
    if survey.upgrade && !switching && status != StatusCode::UPGRADE_REQUIRED {
        headers.remove(header::UPGRADE);
    }
}

/// Turns an HTTP/1 head into one that HTTP/2 allows: absolute target, no `Host`, no connection-specific fields.
pub fn to_h2(parts: &mut Parts) -> Result<(), Reason> {
    for name in [header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE] {
        parts.headers.remove(name);
    }
    let host = parts.headers.remove(header::HOST);
    let authority = match (parts.uri.authority(), host) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => Authority::try_from(host.as_bytes()).map_err(|_| Reason::ProtocolError)?,
        (None, None) => return Err(Reason::ProtocolError),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(http::uri::Scheme::HTTP);
    uri.authority = Some(authority);
    uri.path_and_query =
        Some(parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(uri).map_err(|_| Reason::ProtocolError)?;
    parts.version = Version::HTTP_2;
    Ok(())
}

/// The host and port that a request names, from its target or its `Host`.
#[must_use]
pub fn authority(parts: &Parts) -> Option<&str> {
    match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST)?.to_str().ok(),
    }
}

/// Whether `Connection` has this option.
#[must_use]
pub(super) fn connection_lists(headers: &HeaderMap, option: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| lists(value, option))
}

/// Whether trailers of a response may be sent: the request said `TE: trailers` (always true for HTTP/2).
fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| lists(value, "trailers"))
}

fn expects_continue(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn is_upgrade(headers: &HeaderMap) -> bool {
    connection_lists(headers, "upgrade")
        // HTTP/2 is spoken with prior knowledge or not at all (RFC 9113 §3.1 retired the upgrade).
        && !headers.get_all(header::UPGRADE).iter().any(|value| lists(value, "h2c"))
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
}

/// Whether a comma separated list has this token (parameters ignored).
fn lists(value: &HeaderValue, token: &str) -> bool {
    value.as_bytes().split(|&byte| byte == b',').any(|item| {
        let item = item.split(|&byte| byte == b';').next().unwrap_or_default();
        item.trim_ascii().eq_ignore_ascii_case(token.as_bytes())
    })
}

/// Removes `Connection` and what it names. Fields that frame or address the message stay whatever it says:
/// nominating them is an attack, not a wish.
fn remove_nominated(headers: &mut HeaderMap) {
    // The usual values name nothing.
    let mut lines = headers.get_all(header::CONNECTION).iter();
    if let (Some(only), None) = (lines.next(), lines.next())
        && is_persistence(only.as_bytes())
    {
        headers.remove(header::CONNECTION);
    } else {
        remove_named(headers);
    }
}

/// Whether an item of `Connection` is about the connection itself.
fn is_persistence(item: &[u8]) -> bool {
    item.eq_ignore_ascii_case(b"close") || item.eq_ignore_ascii_case(b"keep-alive")
}

#[cold]
fn remove_named(headers: &mut HeaderMap) {
    let values: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    headers.remove(header::CONNECTION);
    for item in values.iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b',')) {
        let item = item.trim_ascii();
        if is_persistence(item) {
            continue;
        }
        // A token that is no field name nominates nothing.
        let Ok(name) = HeaderName::from_bytes(item) else { continue };
        let kept = matches!(
            name,
            header::CONTENT_LENGTH
                | header::HOST
                | header::TE
                | header::TRAILER
                | header::TRANSFER_ENCODING
                | header::UPGRADE
        );
        if !kept {
            headers.remove(name);
        }
    }
}

/// One authority, in one place.
fn address(parts: &mut Parts, form: Form, hosts: u8) -> Result<(), Reason> {
    if hosts > 1 {
        return Err(Reason::ProtocolError);
    }
    let host = if hosts == 1 { parts.headers.get(header::HOST) } else { None };
    if host.is_some_and(|host| !is_authority(host.as_bytes())) {
        return Err(Reason::ProtocolError);
    }
    let named = parts.uri.authority();
    if parts.version >= Version::HTTP_2 {
        // Two apps may read what is before an `@` differently (RFC 9113 §8.3.1 forbids it).
        if named.is_some_and(|named| !is_authority(named.as_str().as_bytes())) {
            return Err(Reason::ProtocolError);
        }
        // RFC 9113 §8.3.1: a Host that differs from :authority makes the request malformed.
        if let (Some(named), Some(host)) = (named, host) {
            if !named.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) {
                return Err(Reason::ProtocolError);
            }
            parts.headers.remove(header::HOST);
        }
        return Ok(());
    }
    match named {
        None if host.is_none() && parts.version == Version::HTTP_11 => Err(Reason::ProtocolError),
        None => Ok(()),
        Some(named) => {
            // RFC 9112 §3.2.2: the target wins, whatever Host says.
            if !is_authority(named.as_str().as_bytes()) {
                return Err(Reason::ProtocolError);
            }
            if host.is_none_or(|host| host.as_bytes() != named.as_str().as_bytes()) {
                let value = HeaderValue::try_from(named.as_str()).map_err(|_| Reason::ProtocolError)?;
                parts.headers.insert(header::HOST, value);
            }
            if form == Form::Origin && parts.method != Method::CONNECT {
                to_origin_form(&mut parts.uri);
            }
            Ok(())
        }
    }
}

/// `http://host/path?query` → `/path?query`, without writing it anew.
fn to_origin_form(uri: &mut Uri) {
    let path = match uri.path_and_query() {
        // `http://host` alone has the path "/" (RFC 9112 §3.2.1), `http://host?q` likewise.
        Some(path) if path.as_str().starts_with('/') => path.clone(),
        Some(path) => {
            PathAndQuery::try_from(format!("/{path}")).unwrap_or_else(|_| PathAndQuery::from_static("/"))
        }
        None => PathAndQuery::from_static("/"),
    };
    *uri = Uri::from(path);
}

/// Host and optional port: no user information, nothing that another parser could split differently. Empty is
/// allowed for `Host` by RFC 9110 §7.2.
fn is_authority(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']' | b'~' | b'%')
    })
}

#[cfg(test)]
mod tests;
