//! Requests for a table: such as its matches describe, such as nearly fit, and others.
//!
//! In: the objects of a table, and a seed. Out: requests. Pure. Surprise: they are made from the objects themselves, so that
//! a table that was written by hand, or made smaller, gets its own.

use bytes::Bytes;
use fastrand::Rng;
use http::Method;
use serde_json::Value;
use weft_tests::client::Ask;

use super::filters;
use super::words::{self, Expression, chance, path, pick};

/// A call with an empty message.
const MESSAGE: &[u8] = &[0, 0, 0, 0, 0];

/// `count` requests.
pub(super) fn requests(rng: &mut Rng, service: &str, routes: &[Value], count: usize) -> Vec<Ask> {
    let mut matches: Vec<(&Value, bool)> = Vec::new();
    for route in routes {
        let calls = route["kind"] == "GRPCRoute";
        for rule in route["spec"]["rules"].as_array().into_iter().flatten() {
            match rule["matches"].as_array() {
                Some(list) => matches.extend(list.iter().map(|one| (one, calls))),
                None => matches.push((&Value::Null, calls)),
            }
        }
    }
    let mut asks = Vec::with_capacity(count);
    for number in 0..count {
        // Each match at least once, then any.
        let one = matches.get(number).or_else(|| matches.get(rng.usize(..matches.len().max(1))));
        let (one, calls) = one.copied().unwrap_or((&Value::Null, false));
        let mut ask = fitting(rng, service, one, calls);
        for _ in 0..[0, 0, 1, 1, 2][rng.usize(..5)] {
            bend(rng, &mut ask);
        }
        proper(&mut ask);
        asks.push(ask);
    }
    asks
}

/// Leaves one line of those headers that are in the row about lines, and no space around values where HTTP has none.
fn proper(ask: &mut Ask) {
    if ask.h2 {
        ask.headers.iter_mut().for_each(|(_, value)| *value = value.trim().to_owned());
    }
    let mut seen: Vec<String> = Vec::new();
    ask.headers.retain(|(name, _)| {
        let again = seen.contains(name);
        seen.push(name.clone());
        !(again && words::JOINED.contains(&name.as_str()))
    });
}

/// A request that this match describes.
fn fitting(rng: &mut Rng, service: &str, one: &Value, calls: bool) -> Ask {
    let path = if calls { call_path(rng, one) } else { request_path(rng, one) };
    let host = if chance(rng, 80) { service } else { pick(rng, words::HOSTS) };
    let mut ask = Ask::get(&path, host);
    ask.h2 = chance(rng, if calls { 90 } else { 40 });
    let method = match one["method"].as_str() {
        Some(method) if !calls => method,
        _ if calls => "POST",
        _ if chance(rng, 65) => "GET",
        _ => pick(rng, words::METHODS),
    };
    ask.method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
    if calls {
        ask = ask.header("content-type", "application/grpc").header("te", "trailers");
        ask.body = Bytes::from_static(MESSAGE);
    } else if matches!(method, "POST" | "PUT" | "PATCH") && chance(rng, 70) {
        ask.body = Bytes::from_static(b"some text");
    }
    for header in one["headers"].as_array().into_iter().flatten() {
        let value = value_for(rng, header);
        ask = ask.header(&header["name"].as_str().unwrap_or_default().to_lowercase(), value);
    }
    let mut query = Vec::new();
    for parameter in one["queryParams"].as_array().into_iter().flatten() {
        query.push(format!(
            "{}={}",
            parameter["name"].as_str().unwrap_or_default(),
            value_for(rng, parameter)
        ));
    }
    if chance(rng, 15) {
        query.push(format!("{}={}", pick(rng, words::QUERY), pick(rng, words::VALUES)));
    }
    if !query.is_empty() {
        // A target is ASCII.
        ask.path = format!("{}?{}", ask.path, query.join("&").replace('é', "%C3%A9"));
    }
    if chance(rng, 15) {
        ask = ask.header(&pick(rng, words::HEADERS).to_lowercase(), pick(rng, words::VALUES));
    }
    if chance(rng, 8) {
        ask = ask.header("x-forwarded-proto", pick(rng, &["https", "http", "https"]));
    }
    if !calls && chance(rng, 15) {
        ask.headers.extend(filters::browser(rng));
        if chance(rng, 60) {
            ask.method = Method::OPTIONS;
            ask.body = Bytes::new();
        }
    }
    ask
}

fn request_path(rng: &mut Rng, one: &Value) -> String {
    let shape = &one["path"];
    let Some(value) = shape["value"].as_str() else { return path(rng) };
    match shape["type"].as_str() {
        Some("Exact") => value.to_owned(),
        Some("RegularExpression") => example(rng, words::PATHS, value),
        _ => {
            let base = value.trim_end_matches('/');
            let rest = match rng.u32(..4) {
                0 => String::new(),
                1 => "/".to_owned(),
                _ => path(rng),
            };
            let whole = format!("{base}{rest}");
            if whole.is_empty() { "/".to_owned() } else { whole }
        }
    }
}

fn call_path(rng: &mut Rng, one: &Value) -> String {
    let shape = &one["method"];
    let regex = shape["type"] == "RegularExpression";
    let mut part = |field: &str, expressions: &[Expression], exact: &[&str]| match shape[field].as_str() {
        Some(text) if regex => example(rng, expressions, text),
        Some(text) => text.to_owned(),
        None => pick(rng, exact).to_owned(),
    };
    let service = part("service", words::CALL_SERVICE_EXPRESSIONS, words::CALL_SERVICES);
    let method = part("method", words::CALL_METHOD_EXPRESSIONS, words::CALL_METHODS);
    format!("/{service}/{method}")
}

/// A text that matches the expression or nearly does; one that is not among the known ones has no examples.
fn example(rng: &mut Rng, known: &[Expression], text: &str) -> String {
    let expression = known.iter().find(|expression| expression.text == text);
    match expression {
        Some(expression) => pick(rng, expression.near).to_owned(),
        None => path(rng),
    }
}

fn value_for(rng: &mut Rng, shape: &Value) -> String {
    let value = shape["value"].as_str().unwrap_or_default();
    if shape["type"] == "RegularExpression" {
        let known = words::VALUE_EXPRESSIONS.iter().find(|expression| expression.text == value);
        return known.map_or("blue", |expression| pick(rng, expression.near)).to_owned();
    }
    value.to_owned()
}

/// Changes a request so that it may no longer fit.
fn bend(rng: &mut Rng, ask: &mut Ask) {
    match rng.u32(..20) {
        0..8 => bend_path(rng, ask),
        8..12 => bend_query(rng, ask),
        12..16 => bend_headers(rng, ask),
        16 => ask.method = Method::from_bytes(pick(rng, words::METHODS).as_bytes()).unwrap_or_default(),
        17 => ask.authority = pick(rng, words::HOSTS).to_owned(),
        18 => ask.h2 = !ask.h2,
        _ => ask.headers.clear(),
    }
}

fn bend_path(rng: &mut Rng, ask: &mut Ask) {
    if ask.path.starts_with("http://") {
        return;
    }
    let (path, query) = match ask.path.split_once('?') {
        Some((path, query)) => (path.to_owned(), format!("?{query}")),
        None => (ask.path.clone(), String::new()),
    };
    let bent = match rng.u32(..13) {
        0 => path + "/",
        1 => path + "b",
        2 => path.trim_end_matches('/').to_owned(),
        3 => path.to_uppercase(),
        4 => path.replacen('a', "%61", 1),
        5 => path.rsplit_once('/').map_or_else(String::new, |(above, last)| format!("{above}%2F{last}")),
        6 => path.replacen('/', "//", 1),
        7 => path + "//",
        8 => path + "/../b",
        9 => format!("/.{path}"),
        10 => path + ";v=1",
        // The form that is for proxies.
        11 if !ask.h2 => return ask.path = format!("http://{}{path}{query}", pick(rng, words::URL_HOSTS)),
        _ => path + "%20x",
    };
    ask.path = if bent.starts_with('/') { bent } else { format!("/{bent}") } + &query;
}

fn bend_query(rng: &mut Rng, ask: &mut Ask) {
    let (path, query) = match ask.path.split_once('?') {
        Some((path, query)) => (path.to_owned(), query.to_owned()),
        None => (ask.path.clone(), String::new()),
    };
    let name = query.split(['=', '&']).next().filter(|name| !name.is_empty()).unwrap_or("a").to_owned();
    let query = match rng.u32(..12) {
        0 => return ask.path = path,
        1 => String::new(),
        2 => format!("{query}&{name}=2"),
        3 => format!("{name}=2&{query}"),
        4 => name,
        5 => format!("{name}="),
        6 => query.replace('a', "%61"),
        7 => query.to_uppercase(),
        8 => format!("&{query}&&"),
        9 => query.replace('&', ";"),
        10 => format!("?{query}"),
        _ => query.replace('=', "=="),
    };
    ask.path = format!("{path}?{query}");
}

fn bend_headers(rng: &mut Rng, ask: &mut Ask) {
    // What makes a gRPC call one stays, and what is not the caller's to say.
    let own = |name: &str| matches!(name, "content-type" | "te" | "x-forwarded-proto");
    let Some(at) = ask.headers.iter().position(|(name, _)| !own(name)) else {
        ask.headers.push((pick(rng, words::HEADERS).to_lowercase(), pick(rng, words::VALUES).to_owned()));
        return;
    };
    let (name, value) = ask.headers[at].clone();
    match rng.u32(..7) {
        0 => drop(ask.headers.remove(at)),
        1 => ask.headers[at].1 = value.to_uppercase(),
        2 => ask.headers.push((name, value)),
        3 => ask.headers.insert(at, (name, "green".to_owned())),
        4 => ask.headers[at].1 = String::new(),
        5 => ask.headers[at].1 = format!(" {value} "),
        _ => ask.headers[at].1 = format!("{value},{value}"),
    }
}
