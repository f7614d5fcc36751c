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

/// Puts rules, which come by seniority, and all their matches in order. A rule stands where its best match does; between
/// equal matches seniority decides, whatever else their rules match.
pub(super) fn table(rules: Vec<EffectiveRule>) -> Table {
    // Sorts are stable: what is equal stays in order of seniority.
    let mut rules: Vec<(usize, EffectiveRule)> = rules.into_iter().enumerate().collect();
    rules.sort_by_key(|(_, rule)| rule.rule.matches.iter().map(rank).min());
    let mut order = Vec::new();
    for (at, (seniority, rule)) in rules.iter().enumerate() {
        let matches = rule.rule.matches.iter().enumerate();
        order.extend(matches.map(|(index, one)| (rank(one), *seniority, index, at)));
    }
    order.sort_unstable();
    Table {
        attached: true,
        rules: rules.into_iter().map(|(_, rule)| rule).collect(),
        order: order.into_iter().map(|(_, _, index, at)| (at, index)).collect(),
    }
}

#[cfg(test)]
mod tests;
