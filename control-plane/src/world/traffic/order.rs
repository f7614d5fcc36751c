//! The order in which matches are tried: the Gateway API's precedence.
//!
//! HTTPRoute: an exact path, then a regular expression, then the longest prefix; then a method, more headers, more
//! query parameters. GRPCRoute: the longest service, the longest method, more headers. Then the older route, the
//! first by namespace and name, the first rule, the first match.
//!
//! The API leaves the place of expressions open. They come before prefixes because most tables end with the prefix
//! `/`, and what stands behind that would never match.

use std::cmp::Reverse;
use std::sync::Arc;

use super::{EffectiveRule, Table};
use crate::world::route::{Match, PathMatch, Pattern, RouteSpec};

/// Who comes first among routes with equal matches: the older, then the first by name. What has no age is younger
/// than what has one.
pub(super) fn seniority(route: &RouteSpec) -> (bool, Option<i64>, Arc<str>, Arc<str>) {
    let name = &route.id.name;
    (route.created.is_none(), route.created, Arc::clone(&name.namespace), Arc::clone(&name.name))
}

/// What a pattern is worth: an exact one before an expression before none, the longer one first.
type Worth = (u8, Reverse<usize>);

fn worth(pattern: Option<&Pattern>) -> Worth {
    match pattern {
        Some(Pattern::Exact(text)) => (0, Reverse(text.chars().count())),
        Some(Pattern::Regex(text)) => (1, Reverse(text.chars().count())),
        None => (2, Reverse(0)),
    }
}

/// The lower, the earlier.
pub(super) type Rank = (Worth, Worth, bool, Reverse<usize>, Reverse<usize>);

pub(super) fn rank(one: &Match) -> Rank {
    let (first, second) = match &one.path {
        // All exact paths are equal: a request can match only one of them.
        PathMatch::Exact(_) => ((0, Reverse(0)), (0, Reverse(0))),
        PathMatch::Regex(text) => ((1, Reverse(text.chars().count())), (0, Reverse(0))),
        PathMatch::Prefix(text) => ((2, Reverse(text.chars().count())), (0, Reverse(0))),
        PathMatch::Grpc { service, method } => (worth(service.as_ref()), worth(method.as_ref())),
    };
    (first, second, one.method.is_none(), Reverse(one.headers.len()), Reverse(one.query.len()))
}

/// Puts rules, which come by seniority, and all their matches in order.
pub(super) fn table(mut rules: Vec<EffectiveRule>) -> Table {
    // Sorts are stable: what is equal stays in order of seniority, rule and match.
    rules.sort_by_key(|rule| rule.rule.matches.iter().map(rank).min());
    let matches =
        |(at, rule): (usize, &EffectiveRule)| (0..rule.rule.matches.len()).map(move |one| (at, one));
    let mut order: Vec<(usize, usize)> = rules.iter().enumerate().flat_map(matches).collect();
    order.sort_by_key(|(at, one)| rules.get(*at).and_then(|rule| rule.rule.matches.get(*one)).map(rank));
    Table { attached: true, rules, order }
}

#[cfg(test)]
mod tests;
