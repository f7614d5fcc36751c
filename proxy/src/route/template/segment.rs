//! What one path segment is: vocabulary or data, told by its shape.
//!
//! One pass over the bytes collects which kinds of bytes there are; nearly all segments are plain words and
//! are done after it. Invariant: a placeholder's text is classified as that placeholder.

use super::SEGMENT_MAX;

/// A kind of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Class {
    Date,
    Email,
    Hash,
    Id,
    Param,
    Token,
    Uuid,
}

impl Class {
    const ALL: [Self; 7] =
        [Self::Date, Self::Email, Self::Hash, Self::Id, Self::Param, Self::Token, Self::Uuid];

    pub(super) const fn placeholder(self) -> &'static str {
        match self {
            Self::Date => "{date}",
            Self::Email => "{email}",
            Self::Hash => "{hash}",
            Self::Id => "{id}",
            Self::Param => "{param}",
            Self::Token => "{token}",
            Self::Uuid => "{uuid}",
        }
    }
}

/// A segment as the tree sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    /// A word, with the hash that [`read`] computed on its way.
    Literal(&'a [u8], u32),
    /// Data.
    Class(Class),
    /// Data with a file extension: `42.png`.
    File(Class, &'a [u8]),
}

// Kinds of bytes.
const LOWER: u8 = 1;
const UPPER: u8 = 2;
const DIGIT: u8 = 4;
const HEX: u8 = 8;
/// `-` and `_`.
const DASH: u8 = 16;
const DOT: u8 = 32;
/// Punctuation of numbers, times and addresses: `+ , : @ ~ = ! $ & ' ( ) * ;`.
const PUNCTUATION: u8 = 64;
/// Percent signs, braces, controls, everything beyond ASCII: never vocabulary.
const FOREIGN: u8 = 128;

const KINDS: [u8; 256] = {
    let mut kinds = [FOREIGN; 256];
    let mut byte = 0;
    while byte < 128 {
        kinds[byte] = match byte as u8 {
            b'a'..=b'f' => LOWER | HEX,
            b'g'..=b'z' => LOWER,
            b'A'..=b'F' => UPPER | HEX,
            b'G'..=b'Z' => UPPER,
            b'0'..=b'9' => DIGIT | HEX,
            b'-' | b'_' => DASH,
            b'.' => DOT,
            b'+' | b',' | b':' | b'@' | b'~' | b'=' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*'
            | b';' => PUNCTUATION,
            _ => FOREIGN,
        };
        byte += 1;
    }
    kinds
};

/// Words up to this length need no look for tokens: shorter random strings are left to learning, because words
/// look like them.
const TOKEN_MIN: usize = 16;

/// Takes the next segment off `path`, which starts behind a slash. Empty segments are skipped.
pub(super) fn next<'a>(path: &mut &'a [u8]) -> Option<(&'a [u8], u8, u32)> {
    while let [b'/', rest @ ..] = *path {
        *path = rest;
    }
    if path.is_empty() {
        return None;
    }
    let (mut kinds, mut hash, mut length) = (0, 0x811c_9dc5_u32, 0);
    for &byte in *path {
        if byte == b'/' {
            break;
        }
        kinds |= KINDS[usize::from(byte)];
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        length += 1;
    }
    let (segment, rest) = path.split_at(length);
    *path = rest;
    Some((segment, kinds, hash))
}

/// What a segment is. `kinds` and `hash` are from [`next`].
pub(super) fn classify(segment: &[u8], kinds: u8, hash: u32) -> Segment<'_> {
    let literal = Segment::Literal(segment, hash);
    if kinds & (DIGIT | FOREIGN | PUNCTUATION) == 0 && segment.len() < TOKEN_MIN {
        return literal;
    }
    // Files first: `<uuid>.json` is also a fine token.
    if kinds & DOT != 0
        && let Some(file) = file(segment)
    {
        return file;
    }
    if let Some(class) = class(segment, kinds) {
        return Segment::Class(class);
    }
    if kinds & FOREIGN != 0 || segment.len() > SEGMENT_MAX { Segment::Class(Class::Param) } else { literal }
}

/// The segment of a gRPC path: a word unless it cannot be one.
pub(super) fn grpc(segment: &[u8], kinds: u8, hash: u32) -> Segment<'_> {
    if kinds & FOREIGN != 0 || segment.len() > SEGMENT_MAX {
        Segment::Class(Class::Param)
    } else {
        Segment::Literal(segment, hash)
    }
}

fn kinds_of(text: &[u8]) -> u8 {
    text.iter().fold(0, |kinds, &byte| kinds | KINDS[usize::from(byte)])
}

/// `42.png`: data, a dot, and an extension of up to five letters and digits that starts with a letter (what
/// follows the dot in `10:00:00.000Z` is none).
fn file(segment: &[u8]) -> Option<Segment<'_>> {
    let dot = segment.iter().rposition(|&byte| byte == b'.')?;
    let (stem, extension) = (&segment[..dot], &segment[dot + 1..]);
    let plausible = (1..=5).contains(&extension.len())
        && extension[0].is_ascii_alphabetic()
        && extension.iter().all(u8::is_ascii_alphanumeric);
    if !plausible || stem.is_empty() {
        return None;
    }
    match class(stem, kinds_of(stem))? {
        // `ann@example.co.uk`, and a JWT, whose last part can be short.
        Class::Email => None,
        Class::Token if stem.contains(&b'.') => None,
        class => Some(Segment::File(class, extension)),
    }
}

fn class(text: &[u8], kinds: u8) -> Option<Class> {
    if kinds & FOREIGN != 0 {
        if let Some(class) = Class::ALL.into_iter().find(|class| class.placeholder().as_bytes() == text) {
            return Some(class);
        }
        return is_email(text).then_some(Class::Email);
    }
    if kinds & !(HEX | DIGIT | LOWER | UPPER | DASH) == 0 && is_uuid(text) {
        return Some(Class::Uuid);
    }
    if is_date(text) {
        return Some(Class::Date);
    }
    if kinds & DIGIT != 0 && kinds & (LOWER | UPPER) == 0 {
        return Some(Class::Id);
    }
    if kinds & PUNCTUATION != 0 && is_email(text) {
        return Some(Class::Email);
    }
    if is_hash(text) {
        return Some(Class::Hash);
    }
    is_token(text, kinds).then_some(Class::Token)
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// `2024-01`, `2024-01-31`, `2024-01-31T10:00:00Z`. Dates of digits only are left as numbers: telling
/// `20240131` from order number 20240132 would split one route in two.
fn is_date(text: &[u8]) -> bool {
    let digits = |range: std::ops::Range<usize>| text[range].iter().all(u8::is_ascii_digit);
    let month = || {
        text.len() >= 7 && digits(0..4) && text[4] == b'-' && digits(5..7) && matches!(text[5], b'0' | b'1')
    };
    match text.len() {
        7 => month() && matches!(text[0], b'1' | b'2'),
        10 => month() && text[7] == b'-' && digits(8..10),
        16.. => {
            text.len() <= 35
                && month()
                && text[7] == b'-'
                && digits(8..10)
                && matches!(text[10], b'T' | b't' | b'_')
                && digits(11..13)
        }
        _ => false,
    }
}

/// `someone@example.org`, the `@` also as `%40`.
fn is_email(text: &[u8]) -> bool {
    let (user, host) = match text.iter().position(|&byte| byte == b'@') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => match text.windows(3).position(|three| three == b"%40") {
            Some(at) => (&text[..at], &text[at + 3..]),
            None => return false,
        },
    };
    !user.is_empty() && host.iter().skip(1).any(|&byte| byte == b'.') && !host.ends_with(b".")
}

/// Hexadecimal, and long enough to be no word: 7 digits as short git hashes have, of which at least two are
/// numbers and one is a letter; or 16 of any kind.
fn is_hash(text: &[u8]) -> bool {
    if text.len() < 7 || !text.iter().all(u8::is_ascii_hexdigit) {
        return false;
    }
    let numbers = text.iter().filter(|byte| byte.is_ascii_digit()).count();
    text.len() >= 16 || (2..text.len()).contains(&numbers)
}

/// Base64url, base62, ULIDs, JWTs: long, and mixed as words are not.
///
/// Words, even in camelCase or joined by dashes, have few numbers in few groups and few capitals. A random
/// string of base62 has a number in every sixth place and every second letter is a capital.
fn is_token(text: &[u8], kinds: u8) -> bool {
    if text.len() < TOKEN_MIN {
        return false;
    }
    if text.starts_with(b"eyJ") && kinds & DOT != 0 {
        return true;
    }
    let (mut numbers, mut groups, mut capitals, mut letters, mut dashes) = (0, 0, 0, 0, 0);
    let mut previous_is_number = false;
    for byte in text {
        let is_number = byte.is_ascii_digit();
        if is_number {
            numbers += 1;
            groups += usize::from(!previous_is_number);
        } else if byte.is_ascii_alphabetic() {
            letters += 1;
            capitals += usize::from(byte.is_ascii_uppercase());
        } else {
            dashes += 1;
        }
        previous_is_number = is_number;
    }
    // Joined by many dashes it is a slug.
    if dashes * 6 > text.len() {
        return false;
    }
    let numbered = numbers >= 3 && groups >= 2 && letters > 0 && numbers * 12 >= text.len();
    let capitalised = text.len() >= 20 && capitals * 10 >= letters * 3 && capitals * 10 <= letters * 7;
    numbered || capitalised
}

#[cfg(test)]
pub(super) fn placeholder_of(text: &str) -> String {
    let mut path = text.as_bytes();
    let Some((segment, kinds, hash)) = next(&mut path) else { return String::new() };
    match classify(segment, kinds, hash) {
        Segment::Literal(text, _) => String::from_utf8_lossy(text).into_owned(),
        Segment::Class(class) => class.placeholder().into(),
        Segment::File(class, extension) => {
            format!("{}.{}", class.placeholder(), String::from_utf8_lossy(extension))
        }
    }
}
