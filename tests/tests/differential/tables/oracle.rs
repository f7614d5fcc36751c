//! Which rule of a table the Gateway API has a request go by, told without any of Weft's code.
//!
//! In: the objects of a table and a request. Out: the rule's name. The two proxies follow one control plane, so that they
//! agree does not say that it is right: this does. Written as the API is, from a request to the best of all matches that
//! it fulfils; nothing is ordered beforehand.
//!
//! Where the API leaves it to implementations, this has what Weft documents: expressions come after exact paths and before
//! prefixes, the longer one first, and of several lines of a header any may match.

use std::cmp::Reverse;

use regex::Regex;
use serde_json::Value;
use weft_tests::client::Ask;

use super::filters::RULE;
use crate::differential::objects::{NAMESPACE, PORT};

/// What the API expects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    /// No route is attached: everything goes to the service.
    Unrouted,
    /// Routes are attached, and none fits.
    NotFound,
    /// A rule, by what it says of itself, if it does.
    Rule(Option<String>),
    /// What is asked for is no call, and calls are all that is routed.
    Unspecified,
}

pub(super) fn expect(service: &str, routes: &[Value], ask: &Ask) -> Expected {
    let mut attached: Vec<&Value> = routes.iter().filter(|route| concerns(route, service)).collect();
    // Both kinds must not be merged.
    if attached.iter().any(|route| route["kind"] == "GRPCRoute") {
        attached.retain(|route| route["kind"] == "GRPCRoute");
        if path_of(ask).matches('/').count() != 2 {
            return Expected::Unspecified;
        }
    }
    if attached.is_empty() {
        return Expected::Unrouted;
    }
    let mut best = None;
    for route in attached {
        for (index, rule) in items(&route["spec"]["rules"]).enumerate() {
            let any = [Value::Null];
            let matches: Vec<&Value> = match rule["matches"].as_array() {
                Some(list) => list.iter().collect(),
                None => any.iter().collect(),
            };
            for one in matches {
                let grpc = route["kind"] == "GRPCRoute";
                let path = if grpc { call(&one["method"], ask) } else { path(&one["path"], ask) };
                let Some(path) = path.filter(|_| holds(one, grpc, ask)) else { continue };
                let method = grpc || one["method"].is_null();
                let counts = [names(&one["headers"], true), names(&one["queryParams"], false)].map(Reverse);
                let name = text(&route["metadata"]["name"]);
                // Timestamps of one form sort as text.
                let created = route["metadata"]["creationTimestamp"].as_str();
                let age = (created.is_none(), created);
                let rank = (path, method, counts, age, name, index);
                if best.as_ref().is_none_or(|(known, _)| rank < *known) {
                    best = Some((rank, said(rule)));
                }
            }
        }
    }
    best.map_or(Expected::NotFound, |(_, said)| Expected::Rule(said))
}

/// What a rule says that it is.
fn said(rule: &Value) -> Option<String> {
    let modifiers =
        items(&rule["filters"]).flat_map(|filter| items(&filter["responseHeaderModifier"]["set"]));
    let mut own = modifiers.filter(|header| header["name"] == RULE);
    Some(text(&own.next()?["value"]).to_owned())
}

fn concerns(route: &Value, service: &str) -> bool {
    // A route of another namespace is for that namespace's callers.
    route["metadata"]["namespace"] == NAMESPACE
        && items(&route["spec"]["parentRefs"]).any(|parent| {
            parent["kind"] == "Service"
                && parent["name"] == service
                && (parent["port"].is_null() || parent["port"] == PORT)
                && (parent["sectionName"].is_null() || parent["sectionName"] == "main")
        })
}

/// The path of the target, which may be a URL.
fn path_of(ask: &Ask) -> &str {
    let target = ask.path.split('?').next().unwrap_or_default();
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    }
}

/// The lower, the better: what kind it is, and how long.
type Worth = [(u8, Reverse<usize>); 2];

const NOTHING: (u8, Reverse<usize>) = (9, Reverse(0));

fn path(shape: &Value, ask: &Ask) -> Option<Worth> {
    let path = path_of(ask);
    let value = shape["value"].as_str().unwrap_or("/");
    let (kind, holds, length) = match shape["type"].as_str().unwrap_or("PathPrefix") {
        "Exact" => (0, path == value, 0),
        "RegularExpression" => (1, whole(value, path), value.len()),
        _ => {
            let prefix = value.strip_suffix('/').unwrap_or(value);
            let rest = path.strip_prefix(prefix);
            (2, rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')), prefix.len().max(1))
        }
    };
    holds.then_some([(kind, Reverse(length)), NOTHING])
}

fn call(shape: &Value, ask: &Ask) -> Option<Worth> {
    let path = path_of(ask);
    let regex = shape["type"] == "RegularExpression";
    if shape.is_null() {
        return Some([NOTHING, NOTHING]);
    }
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let part = |field: &str, asked: &str| match shape[field].as_str() {
        None => (!asked.is_empty() && !asked.contains('/')).then_some(NOTHING),
        Some(text) if regex => whole(text, asked).then_some((1, Reverse(text.len()))),
        Some(text) => (text == asked).then_some((0, Reverse(text.len()))),
    };
    // A service alone is all that begins with it.
    let method = match shape["method"].as_str() {
        None if !regex => Some(NOTHING),
        _ => part("method", method),
    };
    Some([part("service", service)?, method?])
}

fn holds(one: &Value, grpc: bool, ask: &Ask) -> bool {
    let method = one["method"].as_str().filter(|_| !grpc);
    let query = ask.path.split_once('?').map_or("", |(_, query)| query);
    method.is_none_or(|method| method == ask.method.as_str())
        && firsts(&one["headers"], true).iter().all(|header| {
            let name = text(&header["name"]).to_lowercase();
            let mut lines = ask.headers.iter().filter(|(known, _)| *known == name);
            // HTTP/1 has optional space around a value, HTTP/2 does not.
            lines.any(|(_, value)| value_holds(header, if ask.h2 { value } else { value.trim() }))
        })
        && firsts(&one["queryParams"], false).iter().all(|parameter| {
            let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
            let found = pairs.find(|(name, _)| *name == text(&parameter["name"]));
            found.is_some_and(|(_, value)| value_holds(parameter, value))
        })
}

fn value_holds(shape: &Value, value: &str) -> bool {
    let wanted = text(&shape["value"]);
    if shape["type"] == "RegularExpression" { whole(wanted, value) } else { wanted == value }
}

fn whole(expression: &str, text: &str) -> bool {
    Regex::new(&format!(r"\A(?:{expression})\z")).is_ok_and(|regex| regex.is_match(text))
}

/// Of several for one name the first counts.
fn firsts(list: &Value, any_case: bool) -> Vec<&Value> {
    let name = |one: &Value| {
        let name = text(&one["name"]);
        if any_case { name.to_lowercase() } else { name.to_owned() }
    };
    let mut firsts: Vec<&Value> = Vec::new();
    for one in items(list) {
        if firsts.iter().all(|known| name(known) != name(one)) {
            firsts.push(one);
        }
    }
    firsts
}

fn names(list: &Value, any_case: bool) -> usize {
    firsts(list, any_case).len()
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
