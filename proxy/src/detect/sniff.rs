//! The pure half of detection: bytes in, verdict out.

/// What the first bytes of a connection say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sniff {
    /// An HTTP/1 request line.
    Http1,
    /// The HTTP/2 connection preface.
    Http2,
    /// The bytes so far fit more than one answer.
    NeedMore,
    /// None of the others.
    Opaque,
    /// A TLS ClientHello.
    Tls,
}

impl Sniff {
    /// The word in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::NeedMore => "unknown",
            Self::Opaque => "opaque",
            Self::Tls => "tls",
        }
    }
}

/// RFC 9113 §3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for one. The longest registered is UPDATEREDIRECTREF, 17 bytes.
const METHOD_MAX: usize = 24;

/// Methods of RFC 9110 and RFC 5789.
const METHODS: [&[u8]; 9] =
    [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"];

/// Judges a connection by its first bytes.
///
/// Monotone: a verdict other than [`Sniff::NeedMore`] stays the same whatever bytes follow. An HTTP/1 verdict
/// needs the whole request line, because inline protocols look alike at first (`GET key` is Redis).
#[must_use]
pub fn sniff(bytes: &[u8]) -> Sniff {
    let Some(&first) = bytes.first() else { return Sniff::NeedMore };
    if first == RECORD_HANDSHAKE {
        return sniff_tls(bytes);
    }
    let common = bytes.iter().zip(PREFACE).take_while(|(a, b)| a == b).count();
    match common {
        // From "PRI * HTTP/2" on it cannot be HTTP/1 any more.
        _ if common == PREFACE.len() => Sniff::Http2,
        _ if common == bytes.len() => Sniff::NeedMore,
        _ => sniff_request_line(bytes),
    }
}

/// The verdict on bytes that are still [`Sniff::NeedMore`] at the limit of what is held back: a request line
/// that began well and is merely too long belongs to the HTTP server, which knows how to refuse it.
#[must_use]
pub(super) fn at_limit(bytes: &[u8]) -> Sniff {
    let registered = METHODS.iter().any(|method| {
        bytes.strip_prefix(*method).is_some_and(|rest| rest.starts_with(b" /") || rest.starts_with(b" http"))
    });
    if registered { Sniff::Http1 } else { Sniff::Opaque }
}

const RECORD_HANDSHAKE: u8 = 0x16;
const CLIENT_HELLO: u8 = 0x01;
/// RFC 8446 §5.1: 2^14; older versions allow some more for compression, which no ClientHello has.
const RECORD_MAX: u16 = 1 << 14;
/// A ClientHello's handshake header.
const RECORD_MIN: u16 = 4;

fn sniff_tls(bytes: &[u8]) -> Sniff {
    // type, major, minor, length (2), handshake type
    if bytes.get(1).is_some_and(|&major| major != 3) || bytes.get(2).is_some_and(|&minor| minor > 4) {
        return Sniff::Opaque;
    }
    if let (Some(&high), Some(&low)) = (bytes.get(3), bytes.get(4))
        && !(RECORD_MIN..=RECORD_MAX).contains(&u16::from_be_bytes([high, low]))
    {
        return Sniff::Opaque;
    }
    match bytes.get(5) {
        None => Sniff::NeedMore,
        Some(&CLIENT_HELLO) => Sniff::Tls,
        Some(_) => Sniff::Opaque,
    }
}

/// `METHOD SP target SP "HTTP/1." DIGIT (CR | LF)`
fn sniff_request_line(bytes: &[u8]) -> Sniff {
    let is_method = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let method = bytes.iter().take_while(|&&b| is_method(b)).count();
    if method > METHOD_MAX {
        return Sniff::Opaque;
    }
    let Some((&separator, rest)) = bytes[method..].split_first() else { return Sniff::NeedMore };
    if method == 0 || separator != b' ' {
        return Sniff::Opaque;
    }
    // Anything visible, UTF-8 included: servers are more liberal than RFC 3986 and so are clients.
    let target = rest.iter().take_while(|&&b| b > b' ' && b != 0x7f).count();
    let Some((&separator, version)) = rest[target..].split_first() else { return Sniff::NeedMore };
    if target == 0 || separator != b' ' {
        return Sniff::Opaque;
    }
    const VERSION: &[u8] = b"HTTP/1.";
    let common = version.iter().zip(VERSION).take_while(|(a, b)| a == b).count();
    if common < VERSION.len() {
        return if common == version.len() { Sniff::NeedMore } else { Sniff::Opaque };
    }
    match version[VERSION.len()..] {
        [] => Sniff::NeedMore,
        [digit, ..] if !digit.is_ascii_digit() => Sniff::Opaque,
        [_] => Sniff::NeedMore,
        [_, b'\r' | b'\n', ..] => Sniff::Http1,
        [_, _, ..] => Sniff::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        for (bytes, verdict) in [
            (&b""[..], Sniff::NeedMore),
            (b"GET", Sniff::NeedMore),
            (b"GET / HTTP/1.1", Sniff::NeedMore),
            (b"GET / HTTP/1.1\r\n", Sniff::Http1),
            (b"GET / HTTP/1.0\n", Sniff::Http1),
            (b"OPTIONS * HTTP/1.1\r\n", Sniff::Http1),
            (b"CONNECT a.example:443 HTTP/1.1\r\n", Sniff::Http1),
            (b"GET http://a.example/x?y=z HTTP/1.1\r\n", Sniff::Http1),
            (b"PROPFIND /dav HTTP/1.1\r\n", Sniff::Http1),
            (b"PRI * HTTP/1.1\r\n", Sniff::Http1),
            (PREFACE, Sniff::Http2),
            (&PREFACE[..23], Sniff::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nXX", Sniff::Opaque),
            (b"GET key\r\n", Sniff::Opaque),
            (b"SET key value\r\n", Sniff::Opaque),
            (b"*2\r\n$3\r\nGET\r\n", Sniff::Opaque),
            (b"EHLO mail.example\r\n", Sniff::Opaque),
            (b"SSH-2.0-OpenSSH_9.9\r\n", Sniff::Opaque),
            (b"get / http/1.1\r\n", Sniff::Opaque),
            (b"GET / HTTP/1.x\r\n", Sniff::Opaque),
            (b" GET / HTTP/1.1\r\n", Sniff::Opaque),
            (b"\x16\x03\x01\x02\x00\x01", Sniff::Tls),
            (b"\x16\x03\x01\x02\x00", Sniff::NeedMore),
            (b"\x16\x03\x01\x02\x00\x02", Sniff::Opaque),
            (b"\x16\x03\x01\xff\xff\x01", Sniff::Opaque),
            (b"\x16\x02", Sniff::Opaque),
            // PostgreSQL's SSLRequest and MongoDB-like length prefixes.
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Sniff::Opaque),
        ] {
            assert_eq!(sniff(bytes), verdict, "{:?}", bytes.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_request_line_beyond_the_limit_is_the_http_servers_to_refuse() {
        let long = [b"GET /".as_slice(), &[b'a'; 9000]].concat();
        assert_eq!(sniff(&long), Sniff::NeedMore);
        assert_eq!(at_limit(&long), Sniff::Http1);
        assert_eq!(at_limit(b"GETAWAY /aaaa"), Sniff::Opaque);
    }

    /// Bytes near the interesting borders: pieces of real beginnings, glued and cut.
    fn beginnings() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(PREFACE.to_vec()),
            Just(b"GET / HTTP/1.1\r\n".to_vec()),
            Just(b"PRI * HTTP/1.".to_vec()),
            Just(b"POST ".to_vec()),
            Just(b"/path HTTP/1.".to_vec()),
            Just(b"\x16\x03\x01\x02\x00\x01".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..40),
        ];
        (proptest::collection::vec(piece, 0..4), any::<prop::sample::Index>()).prop_map(|(pieces, cut)| {
            let mut bytes = pieces.concat();
            bytes.truncate(cut.index(bytes.len() + 1));
            bytes
        })
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(bytes in beginnings(), more in beginnings()) {
            let before = sniff(&bytes);
            let after = sniff(&[bytes.as_slice(), &more].concat());
            prop_assert!(before == Sniff::NeedMore || before == after, "{before:?} became {after:?}");
        }

        #[test]
        fn no_bytes_panic_the_sniffer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            std::hint::black_box(sniff(&bytes));
            std::hint::black_box(at_limit(&bytes));
        }
    }
}
