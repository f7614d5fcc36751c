//! Matches, in Envoy's words.

use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher, query_parameter_matcher, route_match,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher};
use route_match::PathSpecifier;

use crate::world::{Match, PathMatch, Pattern, ValueMatch};

/// A part of a gRPC path that may be anything.
const ANY_PART: &str = "[^/]+";

pub(in crate::compile) fn compile(one: &Match) -> RouteMatch {
    let method = one.method.iter().map(|method| header(":method", &Pattern::Exact(method.clone())));
    let query = one.query.iter().map(|ValueMatch { name, value }| QueryParameterMatcher {
        name: name.to_string(),
        query_parameter_match_specifier: Some(
            query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(string(value)),
        ),
    });
    RouteMatch {
        path_specifier: Some(path(&one.path)),
        headers: method.chain(headers(&one.headers)).collect(),
        query_parameters: query.collect(),
        ..Default::default()
    }
}

pub(in crate::compile) fn headers(matches: &[ValueMatch]) -> impl Iterator<Item = HeaderMatcher> + '_ {
    matches.iter().map(|one| header(&one.name, &one.value))
}

pub(in crate::compile) fn header(name: &str, value: &Pattern) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(header_matcher::HeaderMatchSpecifier::StringMatch(string(value))),
        ..Default::default()
    }
}

fn string(value: &Pattern) -> StringMatcher {
    let pattern = match value {
        Pattern::Exact(text) => string_matcher::MatchPattern::Exact(text.to_string()),
        Pattern::Regex(text) => string_matcher::MatchPattern::SafeRegex(regex(text.to_string())),
    };
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

pub(in crate::compile) fn regex(regex: String) -> RegexMatcher {
    RegexMatcher { regex, ..Default::default() }
}

fn path(path: &PathMatch) -> PathSpecifier {
    match path {
        PathMatch::Exact(text) => PathSpecifier::Path(text.to_string()),
        PathMatch::Prefix(text) if &**text == "/" => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Prefix(text) => PathSpecifier::PathSeparatedPrefix(text.to_string()),
        PathMatch::Regex(text) => PathSpecifier::SafeRegex(regex(text.to_string())),
        PathMatch::Grpc { service: None, method: None } => PathSpecifier::Prefix("/".to_owned()),
        PathMatch::Grpc { service: Some(Pattern::Exact(service)), method: Some(Pattern::Exact(method)) } => {
            PathSpecifier::Path(format!("/{service}/{method}"))
        }
        PathMatch::Grpc { service: Some(Pattern::Exact(service)), method: None } => {
            PathSpecifier::Prefix(format!("/{service}/"))
        }
        PathMatch::Grpc { service, method } => {
            PathSpecifier::SafeRegex(regex(call(service.as_ref(), method.as_ref())))
        }
    }
}

/// The path of a gRPC call.
pub(in crate::compile) fn call(service: Option<&Pattern>, method: Option<&Pattern>) -> String {
    format!("/{}/{}", part(service), part(method))
}

fn part(pattern: Option<&Pattern>) -> String {
    match pattern {
        Some(Pattern::Exact(text)) => ::regex::escape(text),
        // Grouped, so that an alternative inside ends where the part does.
        Some(Pattern::Regex(text)) => format!("(?:{text})"),
        None => ANY_PART.to_owned(),
    }
}
