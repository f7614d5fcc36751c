//! What a route asks of a request.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::{
    self as proto, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use http::{HeaderName, Method};

use super::{Invalid, refuse};
use crate::route::fraction::Fraction;
use crate::route::matcher::{Field, HeaderMatch, Matches, PathMatch, QueryMatch, Text, ValueMatch};
use crate::route::pattern::Pattern;

/// Conditions of one route, of each kind. Every one of them may be looked at for every request.
const CONDITIONS_MAX: usize = 64;

pub(super) fn read(conditions: &proto::RouteMatch, place: &str) -> Result<Matches, Invalid> {
    refuse(
        place,
        &[
            (!conditions.cookies.is_empty(), "cookies", "a condition on cookies"),
            (conditions.grpc.is_some(), "grpc", "a condition on gRPC"),
            (conditions.tls_context.is_some(), "tls_context", "a condition on TLS"),
            (!conditions.dynamic_metadata.is_empty(), "dynamic_metadata", "a condition on metadata"),
            (!conditions.filter_state.is_empty(), "filter_state", "a condition on filter state"),
            (conditions.headers.len() > CONDITIONS_MAX, "headers", "so many conditions"),
            (conditions.query_parameters.len() > CONDITIONS_MAX, "query_parameters", "so many conditions"),
        ],
    )?;
    let (method, headers) = headers(&conditions.headers, &format!("{place}.headers"))?;
    let query = conditions.query_parameters.iter().enumerate();
    let query =
        query.map(|(position, query)| read_query(query, &format!("{place}.query_parameters[{position}]")));
    Ok(Matches {
        path: path(conditions, place)?,
        method,
        headers: headers.into(),
        query: query.collect::<Result<_, _>>()?,
        fraction: runtime_fraction(
            conditions.runtime_fraction.as_ref(),
            Fraction::ALL,
            &format!("{place}.runtime_fraction"),
        )?,
    })
}

fn path(conditions: &proto::RouteMatch, place: &str) -> Result<PathMatch, Invalid> {
    let ignore_case = conditions.case_sensitive.as_ref().is_some_and(|sensitive| !sensitive.value);
    let text = |text: &String| Text::new(text, ignore_case);
    match &conditions.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => Ok(PathMatch::Prefix(text(prefix))),
        Some(PathSpecifier::Path(path)) => Ok(PathMatch::Exact(text(path))),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => Ok(PathMatch::Segments(text(prefix))),
        Some(PathSpecifier::SafeRegex(regex)) => {
            Ok(PathMatch::Pattern(pattern(regex, &format!("{place}.safe_regex"))?))
        }
        Some(PathSpecifier::ConnectMatcher(_)) => {
            Err(Invalid::unsupported(format!("{place}.connect_matcher"), "a condition on CONNECT"))
        }
        Some(PathSpecifier::PathMatchPolicy(_)) => {
            Err(Invalid::unsupported(format!("{place}.path_match_policy"), "a plugin"))
        }
        None => Err(Invalid::missing(format!("{place}.prefix"))),
    }
}

fn pattern(regex: &RegexMatcher, place: &str) -> Result<Pattern, Invalid> {
    Pattern::new(&regex.regex).map_err(|source| Invalid::Pattern { field: format!("{place}.regex"), source })
}

/// Conditions on headers; an exact one on the method is kept apart, because it is cheap.
pub(super) fn headers(
    conditions: &[proto::HeaderMatcher],
    place: &str,
) -> Result<(Option<Method>, Vec<HeaderMatch>), Invalid> {
    let mut method = None;
    let mut headers = vec![];
    for (position, condition) in conditions.iter().enumerate() {
        let place = format!("{place}[{position}]");
        let header = read_header(condition, &place)?;
        match exact_method(&header) {
            Some(exact) if method.is_none() => method = Some(exact),
            _ => headers.push(header),
        }
    }
    Ok((method, headers))
}

/// The conditions as they stand.
pub(super) fn plain_headers(
    conditions: &[proto::HeaderMatcher],
    place: &str,
) -> Result<Box<[HeaderMatch]>, Invalid> {
    let conditions = conditions.iter().enumerate();
    conditions.map(|(position, condition)| read_header(condition, &format!("{place}[{position}]"))).collect()
}

fn exact_method(header: &HeaderMatch) -> Option<Method> {
    match (&header.field, &header.value, header.invert) {
        (Field::Method, ValueMatch::Exact(text), false) => {
            Method::from_bytes(text.literal()?.as_bytes()).ok()
        }
        _ => None,
    }
}

pub(in crate::xds::parse) fn read_header(
    header: &proto::HeaderMatcher,
    place: &str,
) -> Result<HeaderMatch, Invalid> {
    #[expect(deprecated, reason = "older control planes still write them")]
    let (value, absent) = match &header.header_match_specifier {
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            (string(matcher, &format!("{place}.string_match"))?, false)
        }
        Some(HeaderMatchSpecifier::PresentMatch(present)) => (ValueMatch::Present, !present),
        Some(HeaderMatchSpecifier::RangeMatch(range)) => {
            (ValueMatch::Range { start: range.start, end: range.end }, false)
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
            (ValueMatch::Pattern(pattern(regex, &format!("{place}.safe_regex_match"))?), false)
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) if text.is_empty() => (ValueMatch::Present, false),
        Some(HeaderMatchSpecifier::ExactMatch(text)) => (ValueMatch::Exact(text.as_str().into()), false),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => (ValueMatch::Prefix(text.as_str().into()), false),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => (ValueMatch::Suffix(text.as_str().into()), false),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            (ValueMatch::Contains(text.as_str().into()), false)
        }
        None => (ValueMatch::Present, false),
    };
    Ok(HeaderMatch {
        field: field(&header.name, &format!("{place}.name"))?,
        value,
        invert: absent != header.invert_match,
        missing_is_empty: header.treat_missing_header_as_empty,
    })
}

fn field(name: &str, place: &str) -> Result<Field, Invalid> {
    match name {
        ":method" => Ok(Field::Method),
        ":path" => Ok(Field::Path),
        ":authority" => Ok(Field::Authority),
        ":scheme" => Ok(Field::Scheme),
        name if name.eq_ignore_ascii_case("host") => Ok(Field::Authority),
        name => header_name(name, place).map(Field::Header),
    }
}

pub(super) fn header_name(name: &str, place: &str) -> Result<HeaderName, Invalid> {
    name.parse().map_err(|_| Invalid::value(place, name, "is not a header"))
}

fn read_query(query: &proto::QueryParameterMatcher, place: &str) -> Result<QueryMatch, Invalid> {
    if query.name.is_empty() {
        return Err(Invalid::missing(format!("{place}.name")));
    }
    let value = match &query.query_parameter_match_specifier {
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            string(matcher, &format!("{place}.string_match"))?
        }
        Some(QueryParameterMatchSpecifier::PresentMatch(true)) | None => ValueMatch::Present,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err(Invalid::unsupported(place, "present_match: false"));
        }
    };
    Ok(QueryMatch { name: query.name.as_str().into(), value })
}

pub(in crate::xds::parse) fn string(matcher: &StringMatcher, place: &str) -> Result<ValueMatch, Invalid> {
    let text = |text: &String| Text::new(text, matcher.ignore_case);
    match &matcher.match_pattern {
        Some(MatchPattern::Exact(exact)) => Ok(ValueMatch::Exact(text(exact))),
        Some(MatchPattern::Prefix(prefix)) => Ok(ValueMatch::Prefix(text(prefix))),
        Some(MatchPattern::Suffix(suffix)) => Ok(ValueMatch::Suffix(text(suffix))),
        Some(MatchPattern::Contains(contained)) => Ok(ValueMatch::Contains(text(contained))),
        // Case belongs into the pattern, as in Envoy: `(?i)`.
        Some(MatchPattern::SafeRegex(regex)) => {
            Ok(ValueMatch::Pattern(pattern(regex, &format!("{place}.safe_regex"))?))
        }
        Some(MatchPattern::Custom(_)) => Err(Invalid::unsupported(format!("{place}.custom"), "a plugin")),
        None => Err(Invalid::missing(place)),
    }
}

/// A share that could be changed at run time; this proxy has no such switchboard, so the default is what counts.
pub(super) fn runtime_fraction(
    fraction: Option<&RuntimeFractionalPercent>,
    unset: Fraction,
    place: &str,
) -> Result<Fraction, Invalid> {
    match fraction {
        None => Ok(unset),
        Some(fraction) => {
            percent(fraction.default_value.as_ref(), Fraction::NONE, &format!("{place}.default_value"))
        }
    }
}

pub(super) fn percent(
    percent: Option<&FractionalPercent>,
    unset: Fraction,
    place: &str,
) -> Result<Fraction, Invalid> {
    let Some(percent) = percent else { return Ok(unset) };
    let denominator = match DenominatorType::try_from(percent.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => {
            let number = percent.denominator.to_string();
            return Err(Invalid::value(format!("{place}.denominator"), &number, "is not a denominator"));
        }
    };
    Fraction::new(percent.numerator, denominator)
        .ok_or_else(|| Invalid::missing(format!("{place}.denominator")))
}
