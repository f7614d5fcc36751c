//! What a rule matches: paths, methods, headers and query parameters.

use super::shape::{
    GrpcMatch, HttpMatch, MethodMatch, PathKind, PathMatch as PathShape, ValueKind, ValueMatch as ValueShape,
};
use super::{ITEMS_MAX, Match, PathMatch, bounded};
use crate::resources::{Refusal, Segment};
use crate::world::{Pattern, ValueMatch};

/// Longest path or expression: the API's own limit.
const TEXT_MAX: usize = 1024;
/// Longest value of a header or a query parameter: the API's own limit.
const VALUE_MAX: usize = 4096;
/// Memory that one compiled expression may take. A sidecar holds every expression of every service it calls, so a
/// hundred of them must be small beside it; a real one is a few kilobytes.
const EXPRESSION_BYTES_MAX: usize = 256 * 1024;

pub(super) fn http(shape: HttpMatch, at: &[Segment]) -> Result<Match, Refusal> {
    let path = match shape.path {
        Some(shape) => path_match(shape, &path![@at; "path", "value"])?,
        None => PathMatch::Prefix("/".into()),
    };
    let headers = headers(shape.headers, &path![@at; "headers"])?;
    let query = values(shape.query_params, &path![@at; "queryParams"], |name, _| Ok(name.into()))?;
    Ok(Match { path, method: shape.method.map(Into::into), headers, query })
}

pub(super) fn grpc(shape: GrpcMatch, at: &[Segment]) -> Result<Match, Refusal> {
    let path = match shape.method {
        Some(method) => call(method, &path![@at; "method"])?,
        None => PathMatch::Grpc { service: None, method: None },
    };
    let headers = headers(shape.headers, &path![@at; "headers"])?;
    Ok(Match { path, method: None, headers, query: Vec::new() })
}

/// A gRPC service, a method of it, or a method of any.
pub(in crate::resources) fn call(shape: MethodMatch, at: &[Segment]) -> Result<PathMatch, Refusal> {
    let part = |text: Option<String>, field: &str| {
        let text = text.filter(|text| !text.is_empty());
        text.map(|text| call_part(shape.kind, text, &path![@at; field])).transpose()
    };
    let (service, method) = (part(shape.service, "service")?, part(shape.method, "method")?);
    if service.is_none() && method.is_none() {
        return Err((at.to_vec(), "names neither a service nor a method".into()));
    }
    Ok(PathMatch::Grpc { service, method })
}

pub(in crate::resources) fn path_match(shape: PathShape, at: &[Segment]) -> Result<PathMatch, Refusal> {
    let value = shape.value.unwrap_or_else(|| "/".to_owned());
    if let PathKind::RegularExpression = shape.kind {
        return Ok(PathMatch::Regex(expression(value, at)?));
    }
    absolute(&value, at)?;
    if let PathKind::Exact = shape.kind {
        return Ok(PathMatch::Exact(value.into()));
    }
    // "When specified, a trailing `/` is ignored": prefixes are of whole segments.
    let trimmed = value.strip_suffix('/').unwrap_or(&value);
    Ok(PathMatch::Prefix(if trimmed.is_empty() { "/".into() } else { trimmed.into() }))
}

/// The rules of the API for a path that is not an expression: it must be one that a request can have.
pub(super) fn absolute(value: &str, at: &[Segment]) -> Result<(), Refusal> {
    let reason = if !value.starts_with('/') {
        "does not begin with a slash"
    } else if value.len() > TEXT_MAX {
        "is longer than 1024 bytes"
    } else if value.contains("//") {
        "has an empty segment"
    } else if ["/./", "/../"].iter().any(|dots| value.contains(dots))
        || value.ends_with("/.")
        || value.ends_with("/..")
    {
        "has a segment of dots"
    } else if value.contains(['?', '#']) {
        "has a query or a fragment"
    } else if value.chars().any(|c| c.is_control() || c == ' ') {
        "has a character that no path can have"
    } else {
        return Ok(());
    };
    Err((at.to_vec(), format!("{value:?} {reason}")))
}

fn call_part(kind: ValueKind, text: String, at: &[Segment]) -> Result<Pattern, Refusal> {
    if let ValueKind::RegularExpression = kind {
        return Ok(Pattern::Regex(expression(text, at)?));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if text.len() > TEXT_MAX || !text.chars().all(allowed) {
        return Err((at.to_vec(), format!("{text:?} is not a name in gRPC")));
    }
    Ok(Pattern::Exact(text.into()))
}

pub(in crate::resources) fn headers(
    shapes: Vec<ValueShape>,
    at: &[Segment],
) -> Result<Vec<ValueMatch>, Refusal> {
    values(shapes, at, super::filter::header_name)
}

/// Header and query matches. Of several for one name the first counts, as the API has it.
fn values(
    shapes: Vec<ValueShape>,
    at: &[Segment],
    name: fn(&str, Vec<Segment>) -> Result<Box<str>, Refusal>,
) -> Result<Vec<ValueMatch>, Refusal> {
    bounded(&shapes, ITEMS_MAX, at)?;
    let mut values: Vec<ValueMatch> = Vec::with_capacity(shapes.len());
    for (index, shape) in shapes.into_iter().enumerate() {
        if shape.name.is_empty() {
            return Err((path![@at; index, "name"], "is empty".into()));
        }
        if shape.value.len() > VALUE_MAX {
            let reason = format!("is longer than {VALUE_MAX} bytes");
            return Err((path![@at; index, "value"], reason));
        }
        let name = name(&shape.name, path![@at; index, "name"])?;
        let value = match shape.kind {
            ValueKind::Exact => Pattern::Exact(shape.value.into()),
            ValueKind::RegularExpression => {
                Pattern::Regex(expression(shape.value, &path![@at; index, "value"])?)
            }
        };
        if values.iter().all(|other| other.name != name) {
            values.push(ValueMatch { name, value });
        }
    }
    Ok(values)
}

/// An expression that has to match the whole text, checked by the engine that sidecars use.
pub(in crate::resources) fn expression(text: String, at: &[Segment]) -> Result<Box<str>, Refusal> {
    if text.len() > TEXT_MAX {
        return Err((at.to_vec(), format!("is longer than {TEXT_MAX} bytes")));
    }
    // By itself first: with brackets around it, `a)|(b` would be one expression that Envoy refuses.
    let compiled = regex::RegexBuilder::new(&text).size_limit(EXPRESSION_BYTES_MAX).build().and_then(|_| {
        regex::RegexBuilder::new(&format!("^(?:{text})$")).size_limit(EXPRESSION_BYTES_MAX).build()
    });
    match compiled {
        Ok(_) if !text.is_empty() => Ok(text.into()),
        Ok(_) => Err((at.to_vec(), "is empty".into())),
        Err(regex::Error::CompiledTooBig(_)) => {
            Err((at.to_vec(), "is too large: it would take more than 256 KiB in every sidecar".into()))
        }
        Err(_) => Err((at.to_vec(), format!("{text:?} is not a regular expression"))),
    }
}
