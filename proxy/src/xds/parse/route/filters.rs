//! What changes in heads, and what a route says to the filters in front of the router.

use std::collections::HashMap;
use std::time::Instant;

use envoy_types::pb::envoy::config::core::v3::{HeaderValueOption, header_value_option::HeaderAppendAction};
use envoy_types::pb::envoy::config::route::v3::{
    self as proto, FilterConfig, weighted_cluster::ClusterWeight,
};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::google::protobuf::Any;
use http::{HeaderName, HeaderValue, header};
use prost::Name;

use super::matches::{header_name, runtime_fraction, string};
use super::policies;
use super::{Invalid, decode, refuse};
use crate::policy::fault::FaultPolicy;
use crate::route::cors::Cors;
use crate::route::fraction::Fraction;
use crate::route::mutation::{Existing, Group, PUTS_MAX, Put};
use crate::route::policies::RateLimit;

/// What one place says about the headers of requests and responses.
#[derive(Debug, Clone, Default)]
pub(super) struct Headers {
    pub(super) request: Group,
    pub(super) response: Group,
}

/// Names of the four lists.
const LISTS: [&str; 4] = [
    "request_headers_to_add",
    "request_headers_to_remove",
    "response_headers_to_add",
    "response_headers_to_remove",
];

type Lists<'a> = [(&'a [HeaderValueOption], &'a [String]); 2];

impl Headers {
    pub(super) fn of_table(config: &proto::RouteConfiguration) -> Result<Vec<Self>, Invalid> {
        let lists = [
            (&*config.request_headers_to_add, &*config.request_headers_to_remove),
            (&*config.response_headers_to_add, &*config.response_headers_to_remove),
        ];
        Ok(vec![Self::read(lists, "")?])
    }

    pub(super) fn of_host(host: &proto::VirtualHost, place: &str) -> Result<Self, Invalid> {
        let lists = [
            (&*host.request_headers_to_add, &*host.request_headers_to_remove),
            (&*host.response_headers_to_add, &*host.response_headers_to_remove),
        ];
        Self::read(lists, &format!("{place}."))
    }

    pub(super) fn of_route(route: &proto::Route, place: &str) -> Result<Self, Invalid> {
        let lists = [
            (&*route.request_headers_to_add, &*route.request_headers_to_remove),
            (&*route.response_headers_to_add, &*route.response_headers_to_remove),
        ];
        Self::read(lists, &format!("{place}."))
    }

    pub(super) fn of_backend(backend: &ClusterWeight, place: &str) -> Result<Self, Invalid> {
        let lists = [
            (&*backend.request_headers_to_add, &*backend.request_headers_to_remove),
            (&*backend.response_headers_to_add, &*backend.response_headers_to_remove),
        ];
        Self::read(lists, &format!("{place}."))
    }

    fn read([request, response]: Lists<'_>, place: &str) -> Result<Self, Invalid> {
        let [add, remove, response_add, response_remove] = LISTS.map(|list| format!("{place}{list}"));
        Ok(Self {
            request: group(request.0, request.1, &add, &remove)?,
            response: group(response.0, response.1, &response_add, &response_remove)?,
        })
    }
}

fn group(add: &[HeaderValueOption], remove: &[String], adds: &str, removes: &str) -> Result<Group, Invalid> {
    if add.len() > PUTS_MAX {
        return Err(Invalid::unsupported(adds, format!("more than {PUTS_MAX} headers")));
    }
    let remove = remove.iter().enumerate();
    let remove = remove.map(|(position, name)| changeable(name, &format!("{removes}[{position}]")));
    let remove = remove.collect::<Result<_, _>>()?;
    let mut puts = Vec::with_capacity(add.len());
    for (position, option) in add.iter().enumerate() {
        puts.extend(put(option, &format!("{adds}[{position}]"))?);
    }
    Ok(Group { remove, put: puts.into() })
}

/// A header that may be changed here: what addresses a request has fields of its own.
fn changeable(name: &str, place: &str) -> Result<HeaderName, Invalid> {
    if name.starts_with(':') || name.eq_ignore_ascii_case(header::HOST.as_str()) {
        return Err(Invalid::value(place, name, "may not be changed as a header"));
    }
    header_name(name, place)
}

/// `None` for an empty value, which adds nothing unless it says so.
fn put(option: &HeaderValueOption, place: &str) -> Result<Option<Put>, Invalid> {
    let Some(header) = &option.header else { return Err(Invalid::missing(format!("{place}.header"))) };
    let name = changeable(&header.key, &format!("{place}.header.key"))?;
    let place_of_value = format!("{place}.header.value");
    let text = if header.raw_value.is_empty() {
        literal(&header.value, &place_of_value)?
    } else {
        header.raw_value.clone()
    };
    let value = HeaderValue::from_bytes(&text)
        .map_err(|_| Invalid::value(&place_of_value, &header.value, "is not a header's value"))?;
    #[expect(deprecated, reason = "older control planes still write it")]
    let append = option.append.as_ref().map(|append| append.value);
    let existing = match (append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(false), _) => Existing::Overwrite,
        (Some(true), _) | (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => Existing::Append,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => Existing::Keep,
        (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => Existing::Overwrite,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => Existing::OverwriteOnly,
        (None, Err(_)) => {
            return Err(Invalid::unsupported(format!("{place}.append_action"), "this action"));
        }
    };
    Ok((!value.is_empty() || option.keep_empty_value).then_some(Put { name, value, existing }))
}

/// A value without commands: `%%` is a percent sign, a single one would begin a command.
fn literal(text: &str, place: &str) -> Result<Vec<u8>, Invalid> {
    let mut parts = text.split("%%");
    let first = parts.next().unwrap_or_default();
    let mut value = first.to_owned();
    let mut command = first.contains('%');
    for part in parts {
        value.push('%');
        value.push_str(part);
        command |= part.contains('%');
    }
    if command {
        return Err(Invalid::unsupported(place, format!("a computed value ({text:?})")));
    }
    Ok(value.into_bytes())
}

/// The filters that a route can speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FilterKind {
    Cors,
    Fault,
    RateLimit,
}

/// What was said to one filter.
#[derive(Debug, Clone, Default)]
enum Said<T> {
    /// Nothing.
    #[default]
    Nothing,
    /// That it is not to act.
    Off,
    /// This.
    This(T),
}

impl<T: Clone> Said<T> {
    /// What counts, where the less specific place said `other`.
    fn or(&self, other: &Self) -> Self {
        if matches!(self, Self::Nothing) { other.clone() } else { self.clone() }
    }

    fn heard(&self) -> Option<&T> {
        match self {
            Self::This(this) => Some(this),
            Self::Nothing | Self::Off => None,
        }
    }
}

/// What one place says to the filters.
#[derive(Debug, Clone, Default)]
pub(super) struct FilterConfigs {
    cors: Said<Cors>,
    fault: Said<FaultPolicy>,
    rate_limit: Said<policies::LimitDraft>,
}

impl FilterConfigs {
    /// What counts, where the less specific place said `other`. Envoy would mix two CORS policies field by field.
    pub(super) fn or(&self, other: &Self, place: &str) -> Result<Self, Invalid> {
        if let (Said::This(_), Said::This(_)) = (&self.cors, &other.cors) {
            let field = format!("{place}.typed_per_filter_config");
            return Err(Invalid::unsupported(field, "a CORS policy over another"));
        }
        Ok(Self {
            cors: self.cors.or(&other.cors),
            fault: self.fault.or(&other.fault),
            rate_limit: self.rate_limit.or(&other.rate_limit),
        })
    }

    pub(super) fn cors(&self) -> Option<Cors> {
        self.cors.heard().cloned()
    }

    pub(super) fn fault(&self) -> Option<FaultPolicy> {
        self.fault.heard().cloned()
    }

    pub(super) fn rate_limit(&self, by_caller: bool, place: &str) -> Result<Option<RateLimit>, Invalid> {
        let limit = self.rate_limit.heard().map(|limit| limit.join(by_caller, place)).transpose()?;
        Ok(limit.map(|limit| RateLimit::new(limit, Instant::now())))
    }
}

/// Reads `typed_per_filter_config`.
pub(super) fn read(configs: &HashMap<String, Any>, place: &str) -> Result<FilterConfigs, Invalid> {
    let mut read = FilterConfigs::default();
    let mut keys: Vec<_> = configs.keys().collect();
    // Of several faults the same one is always told.
    keys.sort_unstable();
    for key in keys {
        let place = format!("{place}[{key}]");
        let (config, off, optional) = unwrap(&configs[key], &place)?;
        let known = kind(&config.type_url);
        match known {
            Some(FilterKind::Cors) if off => read.cors = Said::Off,
            Some(FilterKind::Fault) if off => read.fault = Said::Off,
            Some(FilterKind::RateLimit) if off => read.rate_limit = Said::Off,
            Some(FilterKind::Cors) => read.cors = Said::This(cors(&decode(&config, &place)?, &place)?),
            Some(FilterKind::Fault) => {
                let fault: HttpFault = decode(&config, &place)?;
                read.fault = Said::This(policies::fault(&fault, &place)?);
            }
            Some(FilterKind::RateLimit) => {
                let limit: LocalRateLimit = decode(&config, &place)?;
                read.rate_limit = match policies::rate_limit(&limit, &place)? {
                    Some(limit) => Said::This(limit),
                    None => Said::Off,
                };
            }
            None if optional => {}
            None => {
                return Err(Invalid::unsupported(place, format!("a filter of type {:?}", config.type_url)));
            }
        }
    }
    Ok(read)
}

/// The filter that a configuration is for.
fn kind(type_url: &str) -> Option<FilterKind> {
    let name = type_url.rsplit('/').next()?;
    if name == CorsPolicy::full_name() {
        Some(FilterKind::Cors)
    } else if name == HttpFault::full_name() {
        Some(FilterKind::Fault)
    } else if name == LocalRateLimit::full_name() {
        Some(FilterKind::RateLimit)
    } else {
        None
    }
}

/// The configuration out of its wrapper, whether it is switched off, and whether it may be unknown.
fn unwrap(config: &Any, place: &str) -> Result<(Any, bool, bool), Invalid> {
    if config.type_url.rsplit('/').next() != Some(FilterConfig::full_name().as_str()) {
        return Ok((config.clone(), false, false));
    }
    let wrapper: FilterConfig = decode(config, place)?;
    let inner = wrapper.config.ok_or_else(|| Invalid::missing(format!("{place}.config")))?;
    Ok((inner, wrapper.disabled, wrapper.is_optional))
}

fn cors(policy: &CorsPolicy, place: &str) -> Result<Cors, Invalid> {
    let shadow = policy.shadow_enabled.as_ref().and_then(|shadow| shadow.default_value.as_ref());
    let shadow = shadow.is_some_and(|share| share.numerator > 0);
    refuse(place, &[(shadow, "shadow_enabled", "judging without acting")])?;
    let value = |text: &str, field: &str| match text {
        "" => Ok(None),
        text => HeaderValue::from_str(text)
            .map(Some)
            .map_err(|_| Invalid::value(format!("{place}.{field}"), text, "is not a header's value")),
    };
    let origins = policy.allow_origin_string_match.iter().enumerate();
    let origins = origins
        .map(|(position, origin)| string(origin, &format!("{place}.allow_origin_string_match[{position}]")));
    Ok(Cors {
        origins: origins.collect::<Result<_, _>>()?,
        methods: value(&policy.allow_methods, "allow_methods")?,
        headers: value(&policy.allow_headers, "allow_headers")?,
        expose: value(&policy.expose_headers, "expose_headers")?,
        max_age: value(&policy.max_age, "max_age")?,
        credentials: policy.allow_credentials.as_ref().is_some_and(|allow| allow.value),
        private_network: policy.allow_private_network_access.as_ref().is_some_and(|allow| allow.value),
        forward_not_matching_preflights: policy
            .forward_not_matching_preflights
            .as_ref()
            .is_none_or(|forward| forward.value),
        enabled: runtime_fraction(
            policy.filter_enabled.as_ref(),
            Fraction::ALL,
            &format!("{place}.filter_enabled"),
        )?,
    })
}
