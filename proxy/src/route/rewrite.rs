//! Another path, another host: what a rule turns a request's target into.
//!
//! In: the path as matched, the query, the rule's rewrite. Out: the new path with the query. Pure.
//!
//! Invariant: the query is never touched.
//! Surprise: a prefix is replaced as bytes. `/a` rewritten to `/` makes `//b` of `/a/b`, as in Envoy; the control plane
//! compiles the Gateway API's `ReplacePrefixMatch` so that it does not come to that.

use http::Uri;
use http::request::Parts;
use http::uri::PathAndQuery;

use super::matcher::PathMatch;
use super::pattern::Substitution;

/// How a path is rewritten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathRewrite {
    /// The part that the rule's path condition matched is replaced.
    Prefix(Box<str>),
    /// Every match in the path is replaced.
    Pattern(Substitution),
}

impl PathRewrite {
    /// The new path and query of a request that `matched`; `None` when the outcome is not a path, so that nothing should be
    /// changed.
    #[must_use]
    pub fn target(&self, matched: &PathMatch, uri: &Uri) -> Option<PathAndQuery> {
        let path = uri.path();
        let mut target = match self {
            Self::Prefix(prefix) => {
                let rest = path.get(matched.matched(path)..)?;
                let mut target = String::with_capacity(prefix.len() + rest.len() + query_length(uri));
                target.push_str(prefix);
                target.push_str(rest);
                target
            }
            Self::Pattern(substitution) => substitution.apply(path)?.into_owned(),
        };
        if let Some(query) = uri.query() {
            target.push('?');
            target.push_str(query);
        }
        PathAndQuery::try_from(target).ok()
    }
}

fn query_length(uri: &Uri) -> usize {
    uri.query().map_or(0, |query| query.len() + 1)
}

/// Puts a new path and query into a request's head.
pub(super) fn set_target(parts: &mut Parts, target: PathAndQuery) {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(target);
    // Whatever combination of scheme and authority there was is one with a path as well.
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_replaced_and_the_query_stays() {
        let prefix = |text: &str| PathRewrite::Prefix(text.into());
        let pattern = |pattern, text| PathRewrite::Pattern(Substitution::new(pattern, text).expect("valid"));
        for (matched, rewrite, uri, expected) in [
            (PathMatch::Prefix("/a".into()), prefix("/b"), "/a/c?x=1", "/b/c?x=1"),
            (PathMatch::Prefix("/a/".into()), prefix("/"), "/a/c", "/c"),
            (PathMatch::Segments("/a".into()), prefix("/"), "/a/c", "//c"),
            (PathMatch::Exact("/a".into()), prefix("/b"), "/a?x", "/b?x"),
            (
                PathMatch::Pattern(crate::route::pattern::Pattern::new("/a.*").expect("valid")),
                prefix("/b"),
                "/a/c?x",
                "/b?x",
            ),
            (PathMatch::Prefix("/".into()), pattern("^/a/(.*)$", r"/\1/a"), "/a/b?a=/a/b", "/b/a?a=/a/b"),
            (PathMatch::Prefix("/".into()), pattern("^.*$", "/full"), "/a/b/c?q", "/full?q"),
            (PathMatch::Prefix("/".into()), prefix("/v2/"), "/orders", "/v2/orders"),
        ] {
            let uri: Uri = uri.parse().expect("a target");
            assert_eq!(
                rewrite.target(&matched, &uri).expect("a path").as_str(),
                expected,
                "{uri} {rewrite:?}"
            );
        }
    }

    #[test]
    fn a_new_path_leaves_the_rest_of_the_target() {
        for (uri, expected) in [("/a?b", "/n?m"), ("http://h:1/a", "http://h:1/n?m")] {
            let mut parts = http::Request::get(uri).body(()).expect("a request").into_parts().0;
            set_target(&mut parts, PathAndQuery::from_static("/n?m"));
            assert_eq!(parts.uri, expected);
        }
    }
}
