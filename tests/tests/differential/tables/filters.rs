//! Filters from seeds.

use fastrand::Rng;
use serde_json::{Value, json};

use super::routes::{BACKENDS, FORBIDDEN, Kind};
use super::words::{self, chance, path, pick};
use crate::differential::objects::PORT;

const REQUEST_HEADERS: &[&str] =
    &["x-team", "X-New", "x-twice", "user-agent", "x-flag", "cookie", "authorization"];
/// Such as the backend sends, and others.
const RESPONSE_HEADERS: &[&str] = &["x-app", "X-Internal", "x-new", "content-type", "vary", "server"];
const VALUES: &[&str] = &["blue", "a b", "50%", "%REQ(x-team)%", "", "a,b", "\"q\"", "\\1"];

/// By this response header a rule says that it was chosen.
pub(super) const RULE: &str = "x-rule";

/// The filters of the rule with this name, each kind at most once but mirrors. `prefixes`: all matches are prefixes.
pub(super) fn of_rule(rng: &mut Rng, name: &str, kind: Kind, prefixes: bool) -> Vec<Value> {
    let mut filters = Vec::new();
    if chance(rng, 30) {
        filters.push(request_headers(rng));
    }
    let mut said = response_headers(rng);
    if chance(rng, 70) {
        said["responseHeaderModifier"] = json!({});
    }
    if chance(rng, 95) {
        let own = json!({"name": RULE, "value": name});
        match &mut said["responseHeaderModifier"]["set"] {
            Value::Array(list) => list.push(own),
            none => *none = json!([own]),
        }
    }
    filters.push(said);
    if kind == Kind::Http {
        match rng.u32(..100) {
            0..14 => filters.push(redirect(rng, prefixes)),
            14..34 => filters.push(rewrite(rng, prefixes)),
            _ => {}
        }
        if chance(rng, 12) {
            filters.push(cors(rng));
        }
    }
    if chance(rng, 10) {
        filters.push(mirror(rng));
        if chance(rng, 20) {
            filters.push(mirror(rng));
        }
    }
    rng.shuffle(&mut filters);
    filters
}

/// The filters of a backend.
pub(super) fn of_backend(rng: &mut Rng) -> Vec<Value> {
    let mut filters = Vec::new();
    if chance(rng, 8) {
        filters.push(request_headers(rng));
    }
    if chance(rng, 8) {
        filters.push(response_headers(rng));
    }
    filters
}

fn request_headers(rng: &mut Rng) -> Value {
    json!({"type": "RequestHeaderModifier", "requestHeaderModifier": modifier(rng, REQUEST_HEADERS)})
}

fn response_headers(rng: &mut Rng) -> Value {
    json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": modifier(rng, RESPONSE_HEADERS)})
}

fn modifier(rng: &mut Rng, names: &[&str]) -> Value {
    let mut modifier = json!({});
    let pairs = |rng: &mut Rng| -> Value {
        let pair = |rng: &mut Rng| json!({"name": pick(rng, names), "value": pick(rng, VALUES)});
        (0..rng.usize(1..=2)).map(|_| pair(rng)).collect()
    };
    if chance(rng, 50) {
        modifier["set"] = pairs(rng);
    }
    if chance(rng, 50) {
        modifier["add"] = pairs(rng);
    }
    if chance(rng, 40) {
        modifier["remove"] = (0..rng.usize(1..=2)).map(|_| pick(rng, names)).collect();
    }
    modifier
}

fn path_edit(rng: &mut Rng, prefixes: bool) -> Value {
    if prefixes && chance(rng, 60) {
        let new = match rng.u32(..4) {
            0 => "/".to_owned(),
            1 => String::new(),
            2 => path(rng) + "/",
            _ => path(rng),
        };
        json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": new})
    } else {
        json!({"type": "ReplaceFullPath", "replaceFullPath": path(rng)})
    }
}

fn redirect(rng: &mut Rng, prefixes: bool) -> Value {
    let mut redirect = json!({});
    if chance(rng, 40) {
        redirect["scheme"] = pick(rng, &["http", "https"]).into();
    }
    if chance(rng, 50) {
        redirect["hostname"] = pick(rng, &["new.example", "a.new.example"]).into();
    }
    if chance(rng, 35) {
        redirect["port"] = [80, 443, 8443, 8080][rng.usize(..4)].into();
    }
    if chance(rng, 50) {
        redirect["path"] = path_edit(rng, prefixes);
    }
    if chance(rng, 60) {
        redirect["statusCode"] = [301, 302, 303, 307, 308][rng.usize(..5)].into();
    }
    json!({"type": "RequestRedirect", "requestRedirect": redirect})
}

fn rewrite(rng: &mut Rng, prefixes: bool) -> Value {
    let mut rewrite = json!({});
    if chance(rng, 40) {
        rewrite["hostname"] = pick(rng, &["new.example", "a.new.example"]).into();
    }
    if chance(rng, 80) {
        rewrite["path"] = path_edit(rng, prefixes);
    }
    json!({"type": "URLRewrite", "urlRewrite": rewrite})
}

fn cors(rng: &mut Rng) -> Value {
    let origins: &[&[&str]] = &[
        &["https://shop.example"],
        &["*"],
        &["https://*.example"],
        &["http://shop.example:8080", "https://a.eu.example"],
        &[],
    ];
    let names: &[&[&str]] = &[&[], &["*"], &["x-team", "X-User"], &["content-type"]];
    let methods: &[&[&str]] = &[&[], &["*"], &["GET", "PUT"], &["POST"]];
    let list = |rng: &mut Rng, lists: &[&[&str]]| json!(lists[rng.usize(..lists.len())]);
    let mut cors = json!({
        "allowOrigins": list(rng, origins),
        "allowMethods": list(rng, methods),
        "allowHeaders": list(rng, names),
        "exposeHeaders": list(rng, names),
    });
    if chance(rng, 50) {
        cors["allowCredentials"] = rng.bool().into();
    }
    if chance(rng, 50) {
        cors["maxAge"] = rng.i32(1..600).into();
    }
    json!({"type": "CORS", "cors": cors})
}

fn mirror(rng: &mut Rng) -> Value {
    let to = match rng.u32(..6) {
        0 => json!({"name": "ghost", "port": PORT}),
        1 => json!({"name": FORBIDDEN.0, "namespace": FORBIDDEN.1, "port": PORT}),
        _ => json!({"name": format!("b{}", rng.usize(..BACKENDS)), "port": PORT}),
    };
    let mut mirror = json!({"backendRef": to});
    match rng.u32(..4) {
        0 => mirror["percent"] = 100.into(),
        1 => mirror["fraction"] = json!({"numerator": 7, "denominator": 7}),
        2 => mirror["percent"] = 0.into(),
        _ => {}
    }
    json!({"type": "RequestMirror", "requestMirror": mirror})
}

/// Headers that a browser adds to a request of a page of another origin.
pub(super) fn browser(rng: &mut Rng) -> Vec<(String, String)> {
    let mut headers = vec![("origin".to_owned(), pick(rng, words::ORIGINS).to_owned())];
    if chance(rng, 60) {
        headers.push(("access-control-request-method".to_owned(), pick(rng, words::METHODS).to_owned()));
    }
    if chance(rng, 40) {
        let names = pick(rng, &["x-team", "x-team,x-user", "content-type"]);
        headers.push(("access-control-request-headers".to_owned(), names.to_owned()));
    }
    headers
}
