//! What requests that belong together have in common: the hash that ring hash and maglev send by.
//!
//! In: a request's head, the caller's address, the rule's policies in order. Out: one hash, or none when the request has
//! nothing of what is asked for. Pure. The function is XXH64 and its combination Envoy's, so that both choose the same
//! endpoint.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use http::request::Parts;
use http::{HeaderName, HeaderValue, header};
use twox_hash::XxHash64;

/// Lines of one header that are hashed; further ones are left out.
const LINES_MAX: usize = 16;

/// One thing to hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HashPolicy {
    /// What is hashed.
    pub on: HashOn,
    /// Whether a hash found up to here is enough.
    pub terminal: bool,
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashOn {
    /// A header's values, whatever their order.
    Header(HeaderName),
    /// A cookie's value.
    Cookie(Cookie),
    /// The caller's address.
    Source,
    /// The first value of a query parameter.
    Query(Box<str>),
}

/// A cookie that keeps a client with its endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cookie {
    /// Its name.
    pub name: Box<str>,
    /// How long a cookie lives that the proxy gives to a client without one; `None` = it gives none.
    pub ttl: Option<Duration>,
    /// Its `Path`; empty for none.
    pub path: Box<str>,
    /// Further attributes; an empty value is left out.
    pub attributes: Box<[(Box<str>, Box<str>)]>,
}

/// A hash, and the cookies that make it last.
#[derive(Debug, Default)]
pub struct Affinity {
    /// The hash.
    pub hash: Option<u64>,
    /// `Set-Cookie` for the response.
    pub cookie: Option<HeaderValue>,
}

/// The hash of a request. `fresh` is the value of a cookie for a client that has none.
#[must_use]
pub fn affinity(policies: &[HashPolicy], request: &Parts, client: Option<IpAddr>, fresh: u64) -> Affinity {
    let mut found = Affinity::default();
    for policy in policies {
        let hash = match &policy.on {
            HashOn::Header(name) => header_hash(request, name),
            HashOn::Source => client.map(|client| of(client.to_string().as_bytes())),
            HashOn::Query(name) => query(request, name).map(|value| of(value.as_bytes())),
            HashOn::Cookie(cookie) => match cookie.of(request) {
                Some(value) => Some(of(value.as_bytes())),
                None => cookie.ttl.map(|ttl| {
                    let value = format!("{fresh:x}");
                    found.cookie = cookie.set(&value, ttl);
                    of(value.as_bytes())
                }),
            },
        };
        if let Some(hash) = hash {
            // Turned by one bit, so that the same thing twice does not cancel itself out.
            found.hash = Some(found.hash.unwrap_or_default().rotate_left(1) ^ hash);
        }
        if policy.terminal && found.hash.is_some() {
            break;
        }
    }
    found
}

fn of(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

fn header_hash(request: &Parts, name: &HeaderName) -> Option<u64> {
    let mut lines = request.headers.get_all(name).iter();
    let first = lines.next()?.as_bytes();
    let mut sorted: [&[u8]; LINES_MAX] = [first; LINES_MAX];
    let mut count = 1;
    for (place, line) in sorted[1..].iter_mut().zip(lines) {
        *place = line.as_bytes();
        count += 1;
    }
    let sorted = &mut sorted[..count];
    sorted.sort_unstable();
    Some(sorted.iter().fold(0, |seed, line| XxHash64::oneshot(seed, line)))
}

fn query<'a>(request: &'a Parts, name: &str) -> Option<&'a str> {
    let pairs = request.uri.query()?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
}

impl Cookie {
    fn of<'a>(&self, request: &'a Parts) -> Option<&'a str> {
        let lines = request.headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
        let (_, value) = pairs.find(|(name, _)| name.trim_start_matches(' ') == &*self.name)?;
        let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        (!bare.is_empty()).then_some(bare)
    }

    fn set(&self, value: &str, ttl: Duration) -> Option<HeaderValue> {
        let mut text = format!("{}=\"{value}\"", self.name);
        // Writing to a String does not fail.
        if ttl.as_secs() > 0 {
            write!(text, "; Max-Age={}", ttl.as_secs()).ok()?;
        }
        if !self.path.is_empty() {
            write!(text, "; Path={}", self.path).ok()?;
        }
        for (name, value) in &self.attributes {
            match &**value {
                "" => write!(text, "; {name}").ok()?,
                value => write!(text, "; {name}={value}").ok()?,
            }
        }
        text.push_str("; HttpOnly");
        HeaderValue::try_from(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::get("/?user=7&user=8&empty");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn on(on: HashOn) -> HashPolicy {
        HashPolicy { on, terminal: false }
    }

    fn header(name: &'static str) -> HashPolicy {
        on(HashOn::Header(HeaderName::from_static(name)))
    }

    fn cookie(ttl: Option<u64>) -> Cookie {
        Cookie {
            name: "sid".into(),
            ttl: ttl.map(Duration::from_secs),
            path: "/shop".into(),
            attributes: [("Secure".into(), "".into()), ("SameSite".into(), "Lax".into())].into(),
        }
    }

    fn hash(policies: &[HashPolicy], request: &Parts) -> Option<u64> {
        affinity(policies, request, Some("10.0.0.7".parse().expect("an address")), 255).hash
    }

    #[test]
    fn each_policy_hashes_what_it_names() {
        let with = request(&[("x-user", "ann"), ("cookie", "a=b; sid=\"s1\""), ("cookie", "sid=s2")]);
        let user = of(b"ann");
        for (policies, expected) in [
            (vec![header("x-user")], Some(user)),
            (vec![header("x-none")], None),
            (vec![on(HashOn::Source)], Some(of(b"10.0.0.7"))),
            (vec![on(HashOn::Query("user".into()))], Some(of(b"7"))),
            (vec![on(HashOn::Query("empty".into()))], Some(of(b""))),
            (vec![on(HashOn::Query("none".into()))], None),
            (vec![on(HashOn::Cookie(cookie(None)))], Some(of(b"s1"))),
            (vec![header("x-none"), header("x-user")], Some(user)),
            (vec![header("x-user"), on(HashOn::Source)], Some(user.rotate_left(1) ^ of(b"10.0.0.7"))),
            (vec![HashPolicy { terminal: true, ..header("x-user") }, on(HashOn::Source)], Some(user)),
            (
                vec![HashPolicy { terminal: true, ..header("x-none") }, on(HashOn::Source)],
                Some(of(b"10.0.0.7")),
            ),
            (vec![], None),
        ] {
            assert_eq!(hash(&policies, &with), expected, "{policies:?}");
        }
        // The reference value of XXH64 with seed 0.
        assert_eq!(of(b""), 0xef46_db37_51d8_e999);
    }

    #[test]
    fn the_order_of_lines_does_not_count() {
        let one = hash(&[header("x-user")], &request(&[("x-user", "ann"), ("x-user", "bob")]));
        let other = hash(&[header("x-user")], &request(&[("x-user", "bob"), ("x-user", "ann")]));
        assert!(one.is_some() && one == other);
    }

    #[test]
    fn a_client_without_a_cookie_gets_one() {
        let policies = [on(HashOn::Cookie(cookie(Some(60))))];
        let given = affinity(&policies, &request(&[]), None, 255);
        assert_eq!(given.hash, Some(of(b"ff")));
        assert_eq!(
            given.cookie.as_ref().and_then(|cookie| cookie.to_str().ok()),
            Some("sid=\"ff\"; Max-Age=60; Path=/shop; Secure; SameSite=Lax; HttpOnly")
        );
        let kept = affinity(&policies, &request(&[("cookie", "sid=ff")]), None, 3);
        assert_eq!(kept.hash, given.hash, "the next request goes the same way");
        assert!(kept.cookie.is_none());
        assert!(affinity(&[on(HashOn::Cookie(cookie(None)))], &request(&[]), None, 3).hash.is_none());
    }
}
