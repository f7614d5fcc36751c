//! Regular expressions from the configuration: matched as a whole, bounded in size.
//!
//! In: a pattern and bytes. Out: whether all of the bytes match, or the bytes with every match replaced. Pure.
//!
//! The syntax is RE2's, which the `regex` crate shares but for what makes no sense in a proxy (`\C`), and matching takes
//! time linear in the text, so that a pattern cannot be a weapon.
//! Surprise: classes are ASCII (`\w` is `[0-9A-Za-z_]`), as in RE2, unless the pattern itself needs Unicode (`\p{L}`).
//! Surprise: `replace` speaks RE2's language (`\1`), not the crate's (`$1`).

use std::borrow::Cow;
use std::fmt;

use regex::bytes::{Captures, NoExpand, Regex, RegexBuilder};

/// Longest pattern, in bytes: four times what the Gateway API lets anybody write.
const PATTERN_MAX: usize = 4096;

/// Largest compiled pattern. A path of 20 segments with a class each needs some 20 kB.
const PROGRAM_MAX: usize = 256 * 1024;

/// Cache for matching, per pattern and thread: at a thousand patterns and two workers 128 MB in the worst case.
const CACHE_MAX: usize = 64 * 1024;

/// Why a text is not a pattern.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPattern {
    /// Longer than [`PATTERN_MAX`].
    #[error("a pattern has at most {PATTERN_MAX} bytes")]
    Long,
    /// Not a regular expression, or one that is too large.
    #[error("not a pattern")]
    Syntax(#[source] Box<regex::Error>),
    /// A replacement that names a group the pattern does not have, or that ends in a backslash.
    #[error("the substitution {substitution:?} does not fit its pattern")]
    Substitution {
        /// The text.
        substitution: Box<str>,
    },
}

fn compile(pattern: &str) -> Result<Regex, InvalidPattern> {
    let build = |unicode| {
        let mut builder = RegexBuilder::new(pattern);
        builder.size_limit(PROGRAM_MAX).dfa_size_limit(CACHE_MAX).unicode(unicode).build()
    };
    if pattern.len() > PATTERN_MAX {
        return Err(InvalidPattern::Long);
    }
    build(false).or_else(|_| build(true)).map_err(|error| InvalidPattern::Syntax(error.into()))
}

/// A pattern that a text matches from its first byte to its last, or not at all.
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    whole: Regex,
}

impl Pattern {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When it is none, or too large.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        // Alone first, so that `a)(b` cannot reach out of the group.
        compile(text)?;
        let whole = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Self { text: text.into(), whole })
    }

    /// Whether all of `bytes` matches.
    #[must_use]
    pub fn holds(&self, bytes: &[u8]) -> bool {
        self.whole.is_match(bytes)
    }

    /// As configured.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Patterns are equal when they read the same.
impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// Replaces every match of a pattern.
#[derive(Clone)]
pub struct Substitution {
    pattern: Regex,
    text: Box<str>,
    pieces: Box<[Piece]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    /// The text of a group; 0 is the whole match.
    Group(usize),
}

impl Substitution {
    /// Compiles a pattern and what replaces its matches.
    ///
    /// # Errors
    /// When the pattern is none, or the substitution names a group that is not there.
    pub fn new(pattern: &str, substitution: &str) -> Result<Self, InvalidPattern> {
        let pattern = compile(pattern)?;
        let unfit = || InvalidPattern::Substitution { substitution: substitution.into() };
        let pieces = pieces(substitution).ok_or_else(unfit)?;
        let known = |piece: &Piece| !matches!(piece, Piece::Group(group) if *group >= pattern.captures_len());
        if !pieces.iter().all(known) {
            return Err(unfit());
        }
        Ok(Self { pattern, text: substitution.into(), pieces: pieces.into() })
    }

    /// `text` with every match replaced; `None` when the outcome is no text.
    #[must_use]
    pub fn apply<'a>(&self, text: &'a str) -> Option<Cow<'a, str>> {
        let replaced = match &*self.pieces {
            [] => self.pattern.replace_all(text.as_bytes(), NoExpand(b"")),
            [Piece::Literal(literal)] => {
                self.pattern.replace_all(text.as_bytes(), NoExpand(literal.as_bytes()))
            }
            pieces => {
                self.pattern.replace_all(text.as_bytes(), |groups: &Captures<'_>| expand(pieces, groups))
            }
        };
        match replaced {
            Cow::Borrowed(_) => Some(Cow::Borrowed(text)),
            Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
        }
    }
}

fn expand(pieces: &[Piece], groups: &Captures<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Literal(literal) => text.extend_from_slice(literal.as_bytes()),
            Piece::Group(group) => {
                text.extend_from_slice(groups.get(*group).map(|group| group.as_bytes()).unwrap_or_default());
            }
        }
    }
    text
}

/// `\0` to `\9` are groups, `\\` is a backslash, any other backslash is an error.
fn pieces(substitution: &str) -> Option<Vec<Piece>> {
    let mut pieces = vec![];
    let mut literal = String::new();
    let mut characters = substitution.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            literal.push(character);
            continue;
        }
        match characters.next()? {
            '\\' => literal.push('\\'),
            digit => {
                let group = digit.to_digit(10)?;
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                }
                pieces.push(Piece::Group(group as usize));
            }
        }
    }
    if !literal.is_empty() {
        pieces.push(Piece::Literal(literal.into()));
    }
    Some(pieces)
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.text == other.text
    }
}

impl Eq for Substitution {}

impl fmt::Debug for Substitution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/ -> {:?}", self.pattern.as_str(), self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_all_or_nothing() {
        for (pattern, text, expected) in [
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/a|/ab", "/ab", true),
            (r"/users/\d+", "/users/42", true),
            (r"/users/\d+", "/users/42/", false),
            ("", "", true),
            ("", "x", false),
            ("(?i)/A", "/a", true),
            (r"\p{Lu}", "É", true),
            (r"\w+", "é", false),
            (".*", "é", true),
            ("a$|b", "a", true),
        ] {
            assert_eq!(
                Pattern::new(pattern).expect("valid").holds(text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let long = "a".repeat(PATTERN_MAX + 1);
        for pattern in ["(", "a)(b", "[", r"(?=a)", "(?x)a # all", r"(\w{1000}){1000}", &long] {
            assert!(Pattern::new(pattern).is_err(), "{pattern:.20}");
        }
    }

    #[test]
    fn substitutions_speak_of_groups() {
        for (pattern, substitution, text, expected) in [
            ("^/service/([^/]+)(/.*)$", r"\2/instance/\1", "/service/foo/v1/api", "/v1/api/instance/foo"),
            ("one", "two", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/two/zzz"),
            ("^(.*?)one(.*)$", r"\1two\2", "/xxx/one/yyy/one/zzz", "/xxx/two/yyy/one/zzz"),
            ("(?i)/xxx/", "/yyy/", "/aaa/XxX/bbb", "/aaa/yyy/bbb"),
            ("a", r"\\\0\\", "a", r"\a\"),
            ("a", "$0", "a", "$0"),
            ("x", "", "axb", "ab"),
            ("z", "y", "abc", "abc"),
            ("(a)|b", r"<\1>", "ab", "<a><>"),
        ] {
            let substitution = Substitution::new(pattern, substitution).expect("valid");
            assert_eq!(substitution.apply(text).expect("a text"), expected, "{substitution:?}");
        }
        for (pattern, substitution) in [("a", r"\1"), ("a", r"\"), ("a", r"\x"), ("(", "")] {
            assert!(Substitution::new(pattern, substitution).is_err(), "{pattern} {substitution}");
        }
    }
}
