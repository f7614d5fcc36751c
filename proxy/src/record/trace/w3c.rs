//! W3C Trace Context. Source: <https://www.w3.org/TR/trace-context/>, sections 3.2 and 3.3.

use http::HeaderValue;
use http::header::GetAll;
use opentelemetry::{SpanId, TraceFlags, TraceId};

use super::{TraceContext, hex};

/// `00-<32 hex>-<16 hex>-<2 hex>`.
const LENGTH: usize = 55;

/// Most members of a `tracestate`.
const MEMBERS_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) sampled: bool,
}

/// Reads a `traceparent`. Version `ff` is invalid; a later version than `00` is read as far as `00` goes.
pub(super) fn parse(value: &[u8]) -> Option<Parent> {
    let (head, rest) = value.split_at_checked(LENGTH)?;
    let version = &head[0..2];
    hex::read_lower(version)?;
    let known_end = match version {
        b"ff" => return None,
        b"00" => rest.is_empty(),
        _ => rest.is_empty() || rest[0] == b'-',
    };
    if !known_end || head[2] != b'-' || head[35] != b'-' || head[52] != b'-' {
        return None;
    }
    let trace_id = TraceId::from(hex::read_lower(&head[3..35])?);
    let span_id = SpanId::from(hex::read_lower(&head[36..52])? as u64);
    let flags = TraceFlags::new(hex::read_lower(&head[53..55])? as u8);
    if trace_id == TraceId::INVALID || span_id == SpanId::INVALID {
        return None;
    }
    Some(Parent { trace_id, span_id, sampled: flags.is_sampled() })
}

/// This hop's `traceparent`.
pub(super) fn format(context: &TraceContext) -> HeaderValue {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex::write(&context.trace_id.to_bytes(), &mut text[3..35]);
    hex::write(&context.span_id.to_bytes(), &mut text[36..52]);
    text[54] = if context.sampled { b'1' } else { b'0' };
    hex::header(&text)
}

/// Whether all `tracestate` headers together are one valid list.
pub(super) fn tracestate_is_valid(values: GetAll<'_, HeaderValue>) -> bool {
    let members = || {
        values
            .iter()
            .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    };
    members().count() <= MEMBERS_MAX && members().all(member_is_valid)
}

fn member_is_valid(member: &[u8]) -> bool {
    let Some(equals) = member.iter().position(|&byte| byte == b'=') else { return false };
    let (key, value) = (&member[..equals], &member[equals + 1..]);
    let key_is_valid = match key.iter().position(|&byte| byte == b'@') {
        None => key.len() <= 256 && key.first().is_some_and(u8::is_ascii_lowercase) && key.iter().all(in_key),
        Some(at) => {
            let (tenant, system) = (&key[..at], &key[at + 1..]);
            let starts = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            (1..=241).contains(&tenant.len())
                && (1..=14).contains(&system.len())
                && tenant.first().is_some_and(starts)
                && system.first().is_some_and(u8::is_ascii_lowercase)
                && tenant.iter().all(in_key)
                && system.iter().all(in_key)
        }
    };
    let in_value = |byte: &u8| matches!(byte, 0x20..=0x7e) && *byte != b'=';
    key_is_valid && (1..=256).contains(&value.len()) && value.iter().all(in_value)
}

fn in_key(byte: &u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/')
}
