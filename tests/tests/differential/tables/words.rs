//! What generated tables and requests are made of: few words, so that rules overlap and requests nearly match.

use fastrand::Rng;

/// Segments of paths: such as begin with each other, differ in case, or are spelled in another way.
pub(super) const SEGMENTS: &[&str] = &["a", "a", "b", "b", "ab", "A", "a.b", "v1", "%61", "x-y", "~", "a+b"];

/// An expression, and texts that match it or nearly do.
pub(super) struct Expression {
    pub(super) text: &'static str,
    pub(super) near: &'static [&'static str],
}

const fn expression(text: &'static str, near: &'static [&'static str]) -> Expression {
    Expression { text, near }
}

pub(super) const PATHS: &[Expression] = &[
    expression("/a/.*", &["/a/", "/a/b", "/a", "/a/b/c", "/b/a/"]),
    expression("/[ab]+", &["/a", "/ab", "/abc", "/a/"]),
    expression("/(a|b)/v[0-9]+", &["/a/v1", "/b/v22", "/a/v", "/a/v1/"]),
    expression("(?i)/a(/.*)?", &["/A", "/a/B", "/ab", "/A/"]),
    expression("/a.b", &["/a.b", "/axb", "/a/b", "/a.b.c"]),
    expression(".*", &["/", "/anything", "/a/b"]),
    expression("/a|/b/.+", &["/a", "/b/x", "/b/", "/a/b/x"]),
    expression("/a/?", &["/a", "/a/", "/a//"]),
    expression(r"/\w+/\d{1,3}", &["/a/42", "/ab/1234", "/v1/7"]),
    expression("/%61", &["/%61", "/a"]),
    expression("/[^/]+/b", &["/a/b", "/x/b", "//b", "/a/b/"]),
    expression("^/b$", &["/b", "/b/", "/a/b"]),
];

pub(super) const HEADERS: &[&str] = &["x-team", "X-User", "x-twice", "user-agent", "x-flag", "accept"];
/// Those of all whose lines Envoy joins when they arrive.
pub(super) const JOINED: &[&str] =
    &["accept", "access-control-request-headers", "access-control-request-method", "origin", "user-agent"];
pub(super) const QUERY: &[&str] = &["a", "b", "A", "q", "a.b", "%61"];

/// Values of headers and query parameters.
pub(super) const VALUES: &[&str] =
    &["blue", "Blue", "green", "b", "1", "0", "a,b", "blue,blue", "x=y", "50%", "é"];

pub(super) const VALUE_EXPRESSIONS: &[Expression] = &[
    expression("b.*", &["blue", "b", "ab", ""]),
    expression("blue|green", &["blue", "green", "bluegreen", "blu"]),
    expression("(?i)BLUE", &["blue", "Blue", "bluE"]),
    expression("[0-9]+", &["1", "42", "x1", ""]),
    expression(".*", &["", "anything"]),
    expression("^b$", &["b", "bb"]),
    expression(".+,.+", &["a,b", "blue,blue", "a"]),
];

/// Methods that the Gateway API can match.
pub(super) const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"];

pub(super) const CALL_SERVICES: &[&str] = &["shop.Orders", "shop.Users", "shop", "Orders"];
pub(super) const CALL_METHODS: &[&str] = &["Get", "List", "get", "GetAll"];
pub(super) const CALL_SERVICE_EXPRESSIONS: &[Expression] = &[
    expression(r"shop\..*", &["shop.Orders", "shop.", "shop"]),
    expression("shop.Orders|shop", &["shop", "shop.Orders", "shopxOrders"]),
    expression("[A-Za-z]+", &["shop", "Orders", "shop.Users"]),
];
pub(super) const CALL_METHOD_EXPRESSIONS: &[Expression] = &[
    expression("Get.*", &["Get", "GetAll", "get"]),
    expression("Get|List", &["Get", "List", "GetAll"]),
    expression("(?i)get", &["get", "GET"]),
];

pub(super) const ORIGINS: &[&str] = &[
    "https://shop.example",
    "http://shop.example:8080",
    "https://a.eu.example",
    "https://evil.example",
    "null",
];

/// `Host` or `:authority`.
pub(super) const HOSTS: &[&str] = &[
    "shop.example",
    "Shop.Example",
    "shop.example.",
    "shop.example:80",
    "shop.example:443",
    "shop.example:8080",
    "10.0.0.1",
    "[fd00::1]:80",
    "[fd00::1]",
    "a_b",
];

/// Those that Envoy takes in a URL.
pub(super) const URL_HOSTS: &[&str] = &["shop.example", "Shop.Example", "shop.example:8080", "10.0.0.1:80"];

/// One of these.
pub(super) fn pick<'a, T: ?Sized>(rng: &mut Rng, words: &[&'a T]) -> &'a T {
    words[rng.usize(..words.len())]
}

/// True that often.
pub(super) fn chance(rng: &mut Rng, percent: u32) -> bool {
    rng.u32(..100) < percent
}

/// A path of one to three segments.
pub(super) fn path(rng: &mut Rng) -> String {
    let depth = [1, 1, 2, 2, 3][rng.usize(..5)];
    (0..depth).fold(String::new(), |path, _| path + "/" + pick(rng, SEGMENTS))
}
