//! Which routes of a long list can fit a path at all.
//!
//! In: the literal beginnings of all path conditions, once; then a path. Out: positions of routes in order, of which the
//! first that holds is the first of the whole list that holds. Pure.
//!
//! Literals are sorted. Those that a path begins with are prefixes of each other, so the longest of them determines the
//! others, and each literal keeps the complete list for itself and everything shorter. The longest is the path's
//! predecessor in the sorted list, or one of that one's prefixes. Looking up is a binary search; nothing is allocated.

use super::PathMatch;

/// Below this, comparing every route is as fast.
const ROUTES_MIN: usize = 8;

/// Most positions kept for all literals together: 1 MB. Only tables of hundreds of nested paths or of hundreds of patterns
/// come near it; beyond it every route is compared.
const POSITIONS_MAX: usize = 1 << 18;

/// An index over paths.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Sorted by text.
    literals: Box<[Literal]>,
    /// Routes that any path may fit.
    any: Box<[u32]>,
}

#[derive(Debug)]
struct Literal {
    text: Box<str>,
    /// The longest other literal that this one begins with.
    parent: Option<usize>,
    /// Routes for paths that begin with the text, in order.
    routes: Box<[u32]>,
}

impl Index {
    /// An index over the path conditions of routes, in order; an empty one when it would not pay.
    pub(super) fn new<'a>(paths: impl Iterator<Item = &'a PathMatch>) -> Self {
        let literals: Vec<&str> = paths.map(PathMatch::literal).collect();
        if literals.len() < ROUTES_MIN {
            return Self::default();
        }
        let mut texts: Vec<&str> = literals.iter().copied().filter(|text| !text.is_empty()).collect();
        texts.sort_unstable();
        texts.dedup();
        let mut index = Self { literals: Box::default(), any: routes_for("", &literals) };
        let mut kept = index.any.len();
        let mut built: Vec<Literal> = Vec::with_capacity(texts.len());
        for text in texts {
            let mut parent = built.len().checked_sub(1);
            while let Some(position) = parent
                && !text.starts_with(&*built[position].text)
            {
                parent = built[position].parent;
            }
            let routes = routes_for(text, &literals);
            kept += routes.len();
            if kept > POSITIONS_MAX {
                return Self::default();
            }
            built.push(Literal { text: text.into(), parent, routes });
        }
        index.literals = built.into();
        index
    }

    /// The routes to look at, in order; `None` = all of them.
    pub(super) fn candidates(&self, path: &str) -> Option<&[u32]> {
        if self.literals.is_empty() {
            return None;
        }
        let mut position = self.literals.partition_point(|literal| *literal.text <= *path).checked_sub(1);
        while let Some(literal) = position.and_then(|position| self.literals.get(position)) {
            if path.starts_with(&*literal.text) {
                return Some(&literal.routes);
            }
            position = literal.parent;
        }
        Some(&self.any)
    }
}

/// Positions of literals that `text` begins with.
fn routes_for(text: &str, literals: &[&str]) -> Box<[u32]> {
    let literals = (0_u32..).zip(literals);
    literals.filter(|(_, literal)| text.starts_with(**literal)).map(|(position, _)| position).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(text: &str) -> PathMatch {
        PathMatch::Exact(text.into())
    }

    #[test]
    fn only_what_can_fit_is_looked_at() {
        let mut paths: Vec<_> =
            (0..100).map(|number| PathMatch::Segments(format!("/s{number}").as_str().into())).collect();
        paths.push(PathMatch::Prefix("/".into()));
        let index = Index::new(paths.iter());
        assert_eq!(index.candidates("/s7/a"), Some(&[7, 100][..]));
        assert_eq!(
            index.candidates("/s77/a"),
            Some(&[7, 77, 100][..]),
            "/s7 is no segment of it, but may be a prefix"
        );
        assert_eq!(index.candidates("/x"), Some(&[100][..]));
        assert_eq!(index.candidates("*"), Some(&[100][..]));
        assert_eq!(Index::new([exact("/a")].iter()).candidates("/a"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_fits_is_left_out(
            literals in proptest::collection::vec("[/ab]{0,5}", ROUTES_MIN..40), path in "[/ab]{0,7}",
        ) {
            let paths: Vec<_> = literals.iter().map(|text| PathMatch::Prefix(text.as_str().into())).collect();
            let expected: Vec<u32> = (0..).zip(&paths)
                .filter(|(_, literal)| path.starts_with(literal.literal())).map(|(position, _)| position).collect();
            let index = Index::new(paths.iter());
            match index.candidates(&path) {
                // All literals are empty: there is nothing to tell routes apart by.
                None => prop_assert!(paths.iter().all(|path| path.literal().is_empty())),
                Some(found) => prop_assert_eq!(found, expected),
            }
        }
    }
}
