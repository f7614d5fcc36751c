//! `loadBalancer` of a TrafficPolicy.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::At;
use super::schema::{self, Rule};
use crate::resources::gateway;
use crate::resources::{Refusal, Segment};
use crate::world::policy::{Algorithm, Balancer, HashOn, SlowStart, ZonePreference};

/// Longest life of a cookie that makes a caller come back: a year.
const COOKIE_TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How endpoints are chosen.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(BALANCER)))]
pub struct LoadBalancerSpec {
    /// `PeakEwma`, `LeastRequest`, `RoundRobin`, `Random`, `RingHash` or `Maglev`.
    #[serde(default, rename = "type")]
    #[schemars(extend("enum" = ["PeakEwma", "LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"]))]
    pub kind: Option<String>,
    /// What of a request is hashed, for `RingHash` and `Maglev`; the caller's address if absent.
    #[serde(default)]
    pub hash_on: Option<HashOnSpec>,
    /// New endpoints get their share by and by. Not with `Random`, `RingHash` and `Maglev`.
    #[serde(default)]
    pub slow_start: Option<SlowStartSpec>,
    /// Share of healthy endpoints below which all are called, percent; 0 is never.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub panic_threshold: Option<i64>,
    /// Whether endpoints of the caller's own zone come first.
    #[serde(default)]
    pub zone_preference: Option<ZonePreferenceSpec>,
}

/// What of a request is hashed: one of these.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(HASH_ON)))]
pub struct HashOnSpec {
    /// This header.
    #[serde(default)]
    #[schemars(with = "Option<schema::Token>")]
    pub header: Option<String>,
    /// This cookie.
    #[serde(default)]
    pub cookie: Option<CookieSpec>,
    /// The caller's address.
    #[serde(default)]
    pub source: Option<bool>,
}

/// A cookie.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(COOKIE)))]
pub struct CookieSpec {
    /// Its name.
    #[schemars(with = "schema::Token")]
    pub name: String,
    /// With this, a caller without the cookie is given one that lasts so long; `0s` is as long as its session.
    #[serde(default)]
    #[schemars(with = "Option<schema::Time>")]
    pub ttl: Option<String>,
}

/// New endpoints get their share by and by.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SlowStartSpec {
    /// For how long an endpoint is new.
    #[schemars(with = "schema::Span")]
    pub window: String,
    /// Shape of the growth; 1 (linear) if absent, more is steeper at first.
    #[serde(default)]
    #[schemars(with = "Option<schema::Factor>")]
    pub aggression: Option<f64>,
    /// Share at the very beginning, percent; 10 if absent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub min_weight_percent: Option<i64>,
}

/// Whether endpoints of the caller's own zone come first.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ZonePreferenceSpec {
    /// Whether they do.
    pub enabled: bool,
    /// Share of them that must be healthy, percent.
    #[serde(default)]
    #[schemars(with = "Option<schema::Percent>")]
    pub min_healthy_percent: Option<i64>,
}

const BALANCER: &[Rule] = &[
    (
        "hashOn",
        "!has(self.hashOn) || !has(self.type) || self.type in ['RingHash', 'Maglev']",
        "is for RingHash and Maglev only",
    ),
    (
        "slowStart",
        "!has(self.slowStart) || !has(self.type) || self.type in ['PeakEwma', 'LeastRequest', 'RoundRobin']",
        "is for PeakEwma, LeastRequest and RoundRobin only",
    ),
];

const HASH_ON: &[Rule] = &[(
    "",
    "[has(self.header), has(self.cookie), has(self.source)].exists_one(there, there) && \
     (!has(self.source) || self.source)",
    "is not one of header, cookie, source: true",
)];

const COOKIE: &[Rule] =
    &[("ttl", "!has(self.ttl) || duration(self.ttl) <= duration('8760h')", "is longer than a year")];

pub(super) fn balancer(spec: &LoadBalancerSpec, path: &[Segment]) -> Result<Balancer, Refusal> {
    let at = At(path);
    let algorithm = spec.kind.as_deref().map(|word| algorithm(word, at)).transpose()?;
    let hash_on = match &spec.hash_on {
        Some(spec) => Some(hash_on(spec, &path![@path; "hashOn"])?),
        None => None,
    };
    if let (Some(_), Some(algorithm)) = (&hash_on, algorithm)
        && !algorithm.hashes()
    {
        return Err((at.field("hashOn"), "is for RingHash and Maglev only".into()));
    }
    let slow_start = match &spec.slow_start {
        Some(spec) => Some(slow_start(spec, &path![@path; "slowStart"])?),
        None => None,
    };
    if slow_start.is_some()
        && algorithm.is_some_and(|algorithm| algorithm.hashes() || algorithm == Algorithm::Random)
    {
        let reason = "is for PeakEwma, LeastRequest and RoundRobin only";
        return Err((at.field("slowStart"), reason.into()));
    }
    let zone_preference = match &spec.zone_preference {
        Some(spec) => {
            let at = path![@path; "zonePreference"];
            let min = At(&at).percent("minHealthyPercent", spec.min_healthy_percent, 0)?;
            Some(ZonePreference { enabled: spec.enabled, min_healthy_percent: min })
        }
        None => None,
    };
    let panic_threshold = at.percent("panicThreshold", spec.panic_threshold, 0)?;
    Ok(Balancer { algorithm, hash_on, slow_start, panic_threshold, zone_preference })
}

fn algorithm(word: &str, at: At<'_>) -> Result<Algorithm, Refusal> {
    Ok(match word {
        "LeastRequest" => Algorithm::LeastRequest,
        "Maglev" => Algorithm::Maglev,
        "PeakEwma" => Algorithm::PeakEwma,
        "Random" => Algorithm::Random,
        "RingHash" => Algorithm::RingHash,
        "RoundRobin" => Algorithm::RoundRobin,
        other => {
            let all = "PeakEwma, LeastRequest, RoundRobin, Random, RingHash, Maglev";
            return Err((at.field("type"), format!("{other:?} is not one of {all}")));
        }
    })
}

fn hash_on(spec: &HashOnSpec, path: &[Segment]) -> Result<HashOn, Refusal> {
    match (&spec.header, &spec.cookie, spec.source) {
        (Some(name), None, None) => Ok(HashOn::Header(gateway::header_name(name, path![@path; "header"])?)),
        (None, Some(cookie), None) => {
            let at = path![@path; "cookie"];
            let ttl = At(&at).time("ttl", cookie.ttl.as_ref())?;
            if ttl.is_some_and(|ttl| ttl > COOKIE_TTL_MAX) {
                return Err((path![@at; "ttl"], "is longer than a year".into()));
            }
            // A cookie's name is a token, as a header's is; its case counts.
            gateway::header_name(&cookie.name, path![@at; "name"])
                .map_err(|(at, _)| (at, format!("{:?} is not a cookie's name", cookie.name)))?;
            Ok(HashOn::Cookie { name: cookie.name.as_str().into(), ttl })
        }
        (None, None, Some(true)) => Ok(HashOn::Source),
        _ => Err((path.to_vec(), "is not one of header, cookie, source: true".into())),
    }
}

fn slow_start(spec: &SlowStartSpec, path: &[Segment]) -> Result<SlowStart, Refusal> {
    let at = At(path);
    let aggression = spec.aggression.map(|number| at.thousandths("aggression", number, 100.0)).transpose()?;
    Ok(SlowStart {
        window: at.span("window", Some(&spec.window))?.unwrap_or_default(),
        aggression_thousandths: aggression.unwrap_or(1000),
        min_weight_percent: at.percent("minWeightPercent", spec.min_weight_percent, 0)?.unwrap_or(10),
    })
}
