//! One spelling of each path, so that what is decided by path is not decided by spelling.
//!
//! In: a path as it was sent. Out: the path as it is judged and as the app gets it, or that it has no such spelling. Pure;
//! allocates only for a path that changes. It is what Envoy makes of `normalize_path`, `merge_slashes` and
//! `path_with_escaped_slashes_action`: segments of dots are resolved, also where they are escaped or have parameters
//! (`..;x`, which some servers resolve); a backslash is a slash; unreserved characters stand for themselves; what no path
//! should have in it is escaped; slashes in a row are one.
//!
//! Invariant: the spelling of a spelling is itself. Surprise: an empty segment is one of its own until the very end, so
//! `/a//../b` is `/a/b`. Non-goal: the query, which belongs to no path.

use std::borrow::Cow;

/// What is done to paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spelling {
    /// Dots are resolved and characters spelled in one way.
    pub normalize: bool,
    /// Slashes in a row become one.
    pub merge_slashes: bool,
    /// A slash or a backslash that is escaped is refused: to one app it is a slash, to another a letter.
    pub refuse_escaped_slashes: bool,
}

/// A path that different apps would read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the path has no unambiguous spelling")]
pub struct Ambiguous;

impl Spelling {
    /// Everything: where a decision depends on paths.
    pub const SAFE: Self = Self { normalize: true, merge_slashes: true, refuse_escaped_slashes: true };

    /// Whether paths stay as they are.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The path in its one spelling.
    ///
    /// # Errors
    /// When it has none.
    pub fn of<'a>(&self, path: &'a str) -> Result<Cow<'a, str>, Ambiguous> {
        // `*` of `OPTIONS`, and the nothing of `CONNECT`.
        if !path.starts_with('/') || (is_plain(path) && !path.contains("//")) {
            return Ok(Cow::Borrowed(path));
        }
        if self.refuse_escaped_slashes && has_escaped(path, |byte| matches!(byte, b'/' | b'\\')) {
            return Err(Ambiguous);
        }
        let mut spelled = Cow::Borrowed(path);
        if self.normalize && !is_plain(path) {
            if has_escaped(path, |byte| byte == 0) {
                return Err(Ambiguous);
            }
            spelled = Cow::Owned(normalized(path));
        }
        if self.merge_slashes && spelled.contains("//") {
            spelled = Cow::Owned(merged(&spelled));
        }
        Ok(spelled)
    }
}

/// Whether nothing in it can need another spelling but slashes in a row.
fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    path.bytes().all(|byte| {
        let dots = after_slash && byte == b'.';
        after_slash = byte == b'/';
        !dots && byte != b'%' && byte != b'\\' && !is_escaped(byte)
    })
}

/// Whether it must be escaped in a path.
fn is_escaped(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=b' ' | 0x7f)
}

/// The byte that an escape at the beginning of `rest` stands for.
fn unescaped(rest: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = rest else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

fn has_escaped(path: &str, what: impl Fn(u8) -> bool) -> bool {
    let bytes = path.as_bytes();
    (0..bytes.len()).any(|at| unescaped(&bytes[at..]).is_some_and(&what))
}

fn normalized(path: &str) -> String {
    let decoded = decoded(path);
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = decoded.get(1..).unwrap_or_default().split('/').peekable();
    while let Some(segment) = rest.next() {
        // Parameters do not make dots a name.
        let name = segment.split(';').next().unwrap_or_default();
        let last = rest.peek().is_none();
        match name {
            "." => {}
            ".." => {
                segments.pop();
            }
            _ => {
                segments.push(segment);
                continue;
            }
        }
        // What dots lead to is a directory.
        if last {
            segments.push("");
        }
    }
    format!("/{}", segments.join("/"))
}

/// Escapes that are none gone, those that are missing put in, backslashes turned.
fn decoded(path: &str) -> String {
    let mut text = String::with_capacity(path.len() + 8);
    let mut skip = 0;
    for (at, character) in path.char_indices() {
        if skip > 0 {
            skip -= 1;
            continue;
        }
        match character {
            '\\' => text.push('/'),
            '%' => match unescaped(&path.as_bytes()[at..]) {
                Some(byte) if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') => {
                    text.push(char::from(byte));
                    skip = 2;
                }
                _ => text.push('%'),
            },
            one if one.is_ascii() && is_escaped(one as u8) => text.push_str(&format!("%{:02X}", one as u8)),
            one => text.push(one),
        }
    }
    text
}

fn merged(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for character in path.chars() {
        if !(character == '/' && text.ends_with('/')) {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAFE: Spelling = Spelling::SAFE;

    /// As Envoy 1.40 was seen to do it, but for the last two, which it leaves as they are.
    #[test]
    fn paths_have_one_spelling() {
        for (path, spelled) in [
            ("/", "/"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../a", "/a"),
            ("/a/..", "/"),
            ("/a/.", "/a/"),
            ("/a/..b", "/a/..b"),
            ("/a/.../b", "/a/.../b"),
            ("//a", "/a"),
            ("/a//b//", "/a/b/"),
            ("/a/%2e/b", "/a/b"),
            ("/a/%2E%2e/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%252e/b", "/a/%252e/b"),
            ("/a%", "/a%"),
            ("/a%4", "/a%4"),
            ("/a%zz", "/a%zz"),
            ("/a\\..\\b", "/b"),
            ("/a/..;/b", "/b"),
            ("/a/..;x=1/b", "/b"),
            ("/a/.;/b", "/a/b"),
            ("/a/..%3b/b", "/a/..%3b/b"),
            ("/a;x=1/../b", "/b"),
            ("/a//../b", "/a/b"),
            ("/a/b/..//c", "/a/c"),
            ("/..;a", "/"),
            ("/%41%5f%7e%E9", "/A_~%E9"),
            ("/a\"<>^`{|}", "/a%22%3C%3E%5E%60%7B%7C%7D"),
            ("/a/.%2ex", "/a/..x"),
            ("/\u{e9}", "/\u{e9}"),
            ("*", "*"),
            ("", ""),
            ("/a/%2e%2e;/b", "/b"),
            ("///", "/"),
        ] {
            assert_eq!(SAFE.of(path).as_deref(), Ok(spelled), "{path}");
        }
        for path in ["/a%2fb", "/a%2Fb", "/a%5C..", "/a%00", "/a/%2e%2e%2f"] {
            assert_eq!(SAFE.of(path), Err(Ambiguous), "{path}");
        }
    }

    #[test]
    fn what_is_not_asked_for_is_not_done() {
        let merging = Spelling { merge_slashes: true, ..Spelling::default() };
        assert_eq!(merging.of("/a//../%41"), Ok("/a/../%41".into()));
        let normalizing = Spelling { normalize: true, ..Spelling::default() };
        assert_eq!(normalizing.of("/a//b/../%2f"), Ok("/a//%2f".into()));
        assert_eq!(Spelling::default().of("/a//../%2f"), Ok("/a//../%2f".into()));
    }

    proptest! {
        #[test]
        fn the_spelling_of_a_spelling_is_itself(path in "/([a-c./;%\\\\ ]|%2[efEF]|%5c|%3b|\\PC){0,16}") {
            if let Ok(spelled) = SAFE.of(&path) {
                let again = SAFE.of(&spelled);
                prop_assert_eq!(again.as_deref(), Ok(&*spelled), "{}", path);
                prop_assert!(spelled.starts_with('/') && !spelled.contains("//") && !spelled.contains("/../"));
            }
        }
    }
}
