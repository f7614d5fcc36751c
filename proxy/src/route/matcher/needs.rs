//! Which routes cannot be meant because a header is not there.
//!
//! In: for each route a header without which its conditions cannot hold, once; then a request's headers. Out: whether a
//! route can be left out. Pure; allocates nothing.
//!
//! Routes that tell teams or versions apart ask for the same few headers again and again. Looking a name up means hashing
//! it, which costs more than all else in a comparison; so each name is looked up once for a request, and a route that
//! needs a missing one is left out by comparing two numbers.

use http::{HeaderMap, HeaderName};

/// Names that are remembered: a bit each. Routes that need others are compared as they are.
const NAMES_MAX: usize = 64;

/// What routes need.
#[derive(Debug, Default)]
pub(super) struct Needs {
    names: Box<[HeaderName]>,
    /// For each route the position of its name, plus one; 0 = nothing that is remembered.
    routes: Box<[u8]>,
}

/// What was looked up for one request: names by position.
#[derive(Debug, Default)]
pub(super) struct Missing {
    looked: u64,
    missing: u64,
}

impl Needs {
    /// From the headers that routes need, in order.
    pub(super) fn new<'a>(required: impl Iterator<Item = Option<&'a HeaderName>>) -> Self {
        let mut names: Vec<HeaderName> = Vec::new();
        let mut position = |name: &HeaderName| match names.iter().position(|known| known == name) {
            Some(known) => known + 1,
            None if names.len() < NAMES_MAX => {
                names.push(name.clone());
                names.len()
            }
            None => 0,
        };
        let routes = required.map(|name| name.map_or(0, &mut position) as u8).collect();
        Self { names: names.into(), routes }
    }

    /// Whether the route at `position` needs a header that is not there.
    pub(super) fn lacks(&self, position: usize, headers: &HeaderMap, missing: &mut Missing) -> bool {
        let Some(number) = self.routes.get(position).and_then(|need| need.checked_sub(1)) else {
            return false;
        };
        let bit = 1 << number;
        if missing.looked & bit == 0 {
            missing.looked |= bit;
            if self.names.get(usize::from(number)).is_some_and(|name| !headers.contains_key(name)) {
                missing.missing |= bit;
            }
        }
        missing.missing & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_route_is_left_out_only_if_what_it_needs_is_missing() {
        let names: Vec<HeaderName> =
            (0..NAMES_MAX + 2).map(|number| format!("x-{number}").parse().expect("a name")).collect();
        let required = names.iter().map(Some).chain([None, names.first()]);
        let needs = Needs::new(required);
        let mut headers = HeaderMap::new();
        headers.insert(&names[1], HeaderValue::from_static("blue"));
        let mut missing = Missing::default();
        let mut lacks = |position| needs.lacks(position, &headers, &mut missing);
        assert!(lacks(0));
        assert!(!lacks(1));
        assert!(lacks(NAMES_MAX - 1));
        assert!(!lacks(NAMES_MAX), "not remembered, so it is compared");
        assert!(!lacks(NAMES_MAX + 2), "needs nothing");
        assert!(lacks(NAMES_MAX + 3), "the same as the first");
        assert!(!lacks(NAMES_MAX + 4), "no such route");
    }
}
