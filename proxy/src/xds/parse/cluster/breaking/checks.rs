//! What is asked of endpoints actively: `health_checks`.
//!
//! Surprise: a payload's `text` is hexadecimal. Passed over is what says nothing about the check: where to log it, whether
//! its connection is kept, and TLS, which no endpoint is spoken to by.

use std::ops::Range;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::health_check::{
    GrpcHealthCheck, HealthChecker, HttpHealthCheck, Payload, TcpHealthCheck, payload,
};
use envoy_types::pb::envoy::config::core::v3::{HealthCheck, RequestMethod};
use envoy_types::pb::envoy::r#type::v3::{CodecClientType, Int64Range};
use envoy_types::pb::google::protobuf::{Duration as ProtoDuration, UInt32Value};
use http::Method;
use http::uri::{Authority, PathAndQuery};

use super::super::super::Invalid;
use super::{extra, time};
use crate::balance::breaker::health::{NO_TRAFFIC_INTERVAL, Probe, Settings};

/// Bytes of one payload, sent or expected. More is no check but a load.
const PAYLOAD_MAX: usize = 4096;

/// Pieces that are expected in an answer.
const PIECES_MAX: usize = 16;

/// Reads a cluster's checks: none or, as in Envoy, one.
pub(super) fn read(checks: &[HealthCheck]) -> Result<Vec<Settings>, Invalid> {
    match checks {
        [] => Ok(vec![]),
        [check] => Ok(vec![read_check(check, "health_checks[0]")?]),
        _ => Err(Invalid::unsupported("health_checks[1]", "more than one check")),
    }
}

fn read_check(check: &HealthCheck, place: &str) -> Result<Settings, Invalid> {
    if check.alt_port.is_some() {
        return Err(Invalid::unsupported(format!("{place}.alt_port"), "a port for checks only"));
    }
    let at = |field: &str| format!("{place}.{field}");
    let required = |value: &Option<ProtoDuration>, field: &str| {
        time(value.as_ref(), &at(field))?.ok_or_else(|| Invalid::missing(at(field)))
    };
    let or = |value: &Option<ProtoDuration>, field: &str, default: Duration| {
        time(value.as_ref(), &at(field)).map(|time| time.unwrap_or(default))
    };
    let interval = required(&check.interval, "interval")?;
    let unhealthy_interval = or(&check.unhealthy_interval, "unhealthy_interval", interval)?;
    let no_traffic = or(&check.no_traffic_interval, "no_traffic_interval", NO_TRAFFIC_INTERVAL)?;
    Ok(Settings {
        probe: read_probe(check.health_checker.as_ref(), place)?,
        timeout: required(&check.timeout, "timeout")?,
        interval,
        unhealthy_interval,
        healthy_edge_interval: or(&check.healthy_edge_interval, "healthy_edge_interval", interval)?,
        unhealthy_edge_interval: or(
            &check.unhealthy_edge_interval,
            "unhealthy_edge_interval",
            unhealthy_interval,
        )?,
        no_traffic_interval: no_traffic,
        no_traffic_healthy_interval: or(
            &check.no_traffic_healthy_interval,
            "no_traffic_healthy_interval",
            no_traffic,
        )?,
        initial_jitter: extra(check.initial_jitter.as_ref(), &at("initial_jitter"))?,
        interval_jitter: extra(check.interval_jitter.as_ref(), &at("interval_jitter"))?,
        interval_jitter_percent: check.interval_jitter_percent,
        unhealthy_threshold: threshold(check.unhealthy_threshold.as_ref(), at("unhealthy_threshold"))?,
        healthy_threshold: threshold(check.healthy_threshold.as_ref(), at("healthy_threshold"))?,
    })
}

fn threshold(value: Option<&UInt32Value>, place: String) -> Result<u32, Invalid> {
    match value {
        None => Err(Invalid::missing(place)),
        Some(value) if value.value > 0 => Ok(value.value),
        Some(_) => Err(Invalid::value(place, "0", "is never reached")),
    }
}

fn read_probe(checker: Option<&HealthChecker>, place: &str) -> Result<Probe, Invalid> {
    match checker {
        None => Err(Invalid::missing(format!("{place}.health_checker"))),
        Some(HealthChecker::HttpHealthCheck(check)) => {
            read_http(check, &format!("{place}.http_health_check"))
        }
        Some(HealthChecker::GrpcHealthCheck(check)) => {
            read_grpc(check, &format!("{place}.grpc_health_check"))
        }
        Some(HealthChecker::TcpHealthCheck(check)) => read_tcp(check, &format!("{place}.tcp_health_check")),
        Some(HealthChecker::CustomHealthCheck(_)) => {
            Err(Invalid::unsupported(format!("{place}.custom_health_check"), "a plugin"))
        }
    }
}

fn read_http(check: &HttpHealthCheck, place: &str) -> Result<Probe, Invalid> {
    let unsupported = [
        (check.send.is_some(), "send", "a check with a body"),
        (!check.receive.is_empty(), "receive", "a look at the answer's body"),
        (!check.request_headers_to_add.is_empty(), "request_headers_to_add", "headers of a check"),
        (!check.request_headers_to_remove.is_empty(), "request_headers_to_remove", "headers of a check"),
        (check.service_name_matcher.is_some(), "service_name_matcher", "asking for the service's name"),
    ];
    for (set, field, what) in unsupported {
        if set {
            return Err(Invalid::unsupported(format!("{place}.{field}"), what));
        }
    }
    if !check.path.starts_with('/') || check.path.parse::<PathAndQuery>().is_err() {
        return Err(Invalid::value(format!("{place}.path"), &check.path, "is not a path"));
    }
    let expected = statuses(&check.expected_statuses, &format!("{place}.expected_statuses"))?;
    Ok(Probe::Http {
        method: method(check.method, &format!("{place}.method"))?,
        host: host(&check.host, &format!("{place}.host"))?,
        path: check.path.as_str().into(),
        http2: match CodecClientType::try_from(check.codec_client_type) {
            Ok(CodecClientType::Http1) => false,
            Ok(CodecClientType::Http2) => true,
            Ok(CodecClientType::Http3) => {
                return Err(Invalid::unsupported(format!("{place}.codec_client_type"), "HTTP/3"));
            }
            Err(_) => {
                let text = check.codec_client_type.to_string();
                return Err(Invalid::value(format!("{place}.codec_client_type"), &text, "is not a codec"));
            }
        },
        expected: if expected.is_empty() { vec![Range { start: 200, end: 201 }] } else { expected },
        retriable: statuses(&check.retriable_statuses, &format!("{place}.retriable_statuses"))?,
    })
}

fn method(number: i32, place: &str) -> Result<Method, Invalid> {
    match RequestMethod::try_from(number) {
        Ok(RequestMethod::MethodUnspecified | RequestMethod::Get) => Ok(Method::GET),
        Ok(RequestMethod::Head) => Ok(Method::HEAD),
        Ok(RequestMethod::Post) => Ok(Method::POST),
        Ok(RequestMethod::Put) => Ok(Method::PUT),
        Ok(RequestMethod::Delete) => Ok(Method::DELETE),
        Ok(RequestMethod::Options) => Ok(Method::OPTIONS),
        Ok(RequestMethod::Trace) => Ok(Method::TRACE),
        Ok(RequestMethod::Patch) => Ok(Method::PATCH),
        Ok(RequestMethod::Connect) => Err(Invalid::value(place, "CONNECT", "is no method of a check")),
        Err(_) => Err(Invalid::value(place, &number.to_string(), "is not a method")),
    }
}

/// A host, or the cluster's name.
fn host(text: &str, place: &str) -> Result<Option<Box<str>>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse::<Authority>().map_err(|_| Invalid::value(place, text, "is not a host"))?;
    Ok(Some(text.into()))
}

fn statuses(ranges: &[Int64Range], place: &str) -> Result<Vec<Range<u16>>, Invalid> {
    let read = |(position, range): (usize, &Int64Range)| {
        let (start, end) = (u16::try_from(range.start), u16::try_from(range.end));
        match (start, end) {
            (Ok(start), Ok(end)) if (100..end).contains(&start) && end <= 600 => Ok(start..end),
            _ => {
                let text = format!("{}..{}", range.start, range.end);
                Err(Invalid::value(format!("{place}[{position}]"), &text, "is not a range of statuses"))
            }
        }
    };
    ranges.iter().enumerate().map(read).collect()
}

fn read_grpc(check: &GrpcHealthCheck, place: &str) -> Result<Probe, Invalid> {
    if !check.initial_metadata.is_empty() {
        return Err(Invalid::unsupported(format!("{place}.initial_metadata"), "metadata of a check"));
    }
    Ok(Probe::Grpc {
        service: check.service_name.as_str().into(),
        authority: host(&check.authority, &format!("{place}.authority"))?,
    })
}

fn read_tcp(check: &TcpHealthCheck, place: &str) -> Result<Probe, Invalid> {
    if check.proxy_protocol_config.is_some() {
        return Err(Invalid::unsupported(format!("{place}.proxy_protocol_config"), "the PROXY protocol"));
    }
    if check.receive.len() > PIECES_MAX {
        return Err(Invalid::unsupported(format!("{place}.receive"), "more than 16 pieces"));
    }
    let send = check.send.as_ref().map(|send| bytes(send, &format!("{place}.send"))).transpose()?;
    let receive = check.receive.iter().enumerate();
    let receive = receive.map(|(position, piece)| bytes(piece, &format!("{place}.receive[{position}]")));
    Ok(Probe::Tcp { send: send.unwrap_or_default(), receive: receive.collect::<Result<_, _>>()? })
}

fn bytes(payload: &Payload, place: &str) -> Result<Vec<u8>, Invalid> {
    let bytes = match &payload.payload {
        None => return Err(Invalid::missing(place)),
        Some(payload::Payload::Binary(bytes)) => bytes.clone(),
        Some(payload::Payload::Text(text)) => {
            unhex(text).ok_or_else(|| Invalid::value(format!("{place}.text"), text, "is not hexadecimal"))?
        }
    };
    match bytes.len() {
        0 => Err(Invalid::value(place, "", "is empty")),
        1..=PAYLOAD_MAX => Ok(bytes),
        _ => Err(Invalid::unsupported(place, format!("a payload of more than {PAYLOAD_MAX} bytes"))),
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let (pairs, rest) = digits.as_deref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests;
