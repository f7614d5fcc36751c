//! Bytes of an HTTP/1 response → head and body. Pure and strict.
//!
//! In: what was read so far. Out: a head, pieces of a body, or [`Malformed`]. Invariant: nothing is guessed; what a
//! strict recipient may refuse is refused, because the next bytes on the connection belong to somebody else's response.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use http_body::{Frame, SizeHint};

use crate::http::headers;

/// Fields of a response's head or trailers; hyper's limit for requests.
const FIELDS_MAX: usize = headers::HEADER_FIELDS_MAX;

/// Bytes of a chunk's size line with its extensions, which nobody uses.
const CHUNK_LINE_MAX: usize = 1024;

/// Bytes of trailers.
const TRAILERS_MAX: usize = 16 * 1024;

/// What is wrong with a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A chunk's size line or end.
    #[error("a chunk is malformed")]
    Chunk,
    /// The status line or a header line.
    #[error("the head is malformed")]
    Head,
    /// `Content-Length` is no number, or more than one.
    #[error("the length is not one number")]
    Length,
    /// More bytes or fields than accepted.
    #[error("the head or the trailers are too large")]
    TooLarge,
    /// `Transfer-Encoding` where there must be none.
    #[error("a transfer coding in HTTP/1.0")]
    TransferEncoding,
}

/// Where a field stands in the buffer, so that its value can be a slice of it.
#[derive(Debug)]
pub(super) struct Place {
    name: Range<usize>,
    value: Range<usize>,
}

/// Takes a head from the front of `input`; `None` when it is not all there. `spare` is an empty map to fill, `places` room to
/// work in; both are kept between responses to spare allocations.
///
/// # Errors
/// When it can never become a head.
pub(super) fn parse_head(
    input: &mut BytesMut,
    spare: &mut HeaderMap,
    places: &mut Vec<Place>,
) -> Result<Option<Response<()>>, Malformed> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    let length = match parser.parse_response_with_uninit_headers(&mut parsed, input, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::TooLarge),
        Err(_) => return Err(Malformed::Head),
    };
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed::Head)?;
    let version = if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 };
    let reason = parsed.reason.unwrap_or_default();
    let reason = (!reason.is_empty() && Some(reason) != status.canonical_reason())
        .then(|| hyper::ext::ReasonPhrase::try_from(reason.as_bytes().to_vec()).ok())
        .flatten();
    let base = input.as_ptr() as usize;
    places.clear();
    places.extend(parsed.headers.iter().map(|field| {
        let at = |text: &[u8]| {
            let start = text.as_ptr() as usize - base;
            start..start + text.len()
        };
        Place { name: at(field.name.as_bytes()), value: at(field.value) }
    }));
    let bytes = input.split_to(length).freeze();
    let mut headers = std::mem::take(spare);
    headers.reserve(places.len());
    for Place { name, value } in places.drain(..) {
        let name = HeaderName::from_bytes(&bytes[name]);
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(bytes.slice(value))) else {
            return Err(Malformed::Head);
        };
        headers.append(name, value);
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    if let Some(reason) = reason {
        response.extensions_mut().insert(reason);
    }
    Ok(Some(response))
}

/// Where in a body we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// Before a chunk's size line.
    ChunkSize,
    /// In a chunk, with this many bytes to come.
    ChunkData(u64),
    /// Before the line end after a chunk.
    ChunkEnd,
    /// After the last chunk.
    Trailers,
    /// This many bytes to come; 0 is the end.
    Length(u64),
    /// Until the connection ends.
    UntilClose,
}

impl Decoder {
    /// No body, or its end.
    pub(super) const fn none() -> Self {
        Self::Length(0)
    }

    /// How a response's body is framed. Removes a `Content-Length` that a coding overrides, so that nobody behind sees two.
    ///
    /// # Errors
    /// When that cannot be said for certain.
    pub(super) fn of(version: Version, headers: &mut HeaderMap) -> Result<Self, Malformed> {
        let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        let (length, more) = (lengths.next(), lengths.next());
        let coding = headers.get_all(header::TRANSFER_ENCODING).iter().next_back();
        if let Some(coding) = coding {
            if version != Version::HTTP_11 {
                return Err(Malformed::TransferEncoding);
            }
            let last = coding.as_bytes().rsplit(|&byte| byte == b',').next().unwrap_or_default();
            let chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if length.is_some() {
                headers.remove(header::CONTENT_LENGTH);
            }
            return Ok(if chunked { Self::ChunkSize } else { Self::UntilClose });
        }
        let Some(length) = length else { return Ok(Self::UntilClose) };
        let number = decimal(length.as_bytes()).ok_or(Malformed::Length)?;
        if more.is_some() {
            if headers
                .get_all(header::CONTENT_LENGTH)
                .iter()
                .any(|other| decimal(other.as_bytes()) != Some(number))
            {
                return Err(Malformed::Length);
            }
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(number));
        }
        Ok(Self::Length(number))
    }

    pub(super) fn is_done(self) -> bool {
        self == Self::none()
    }

    pub(super) fn is_until_close(self) -> bool {
        self == Self::UntilClose
    }

    pub(super) fn size_hint(self) -> SizeHint {
        match self {
            Self::Length(length) => SizeHint::with_exact(length),
            _ => SizeHint::new(),
        }
    }

    /// The next piece; `None` when more bytes are needed or the body is done.
    ///
    /// # Errors
    /// When the bytes are no body.
    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame<Bytes>>, Malformed> {
        loop {
            match *self {
                Self::Length(0) => return Ok(None),
                Self::Length(left) => {
                    let piece = take(input, left);
                    *self = Self::Length(left - piece.as_ref().map_or(0, Bytes::len) as u64);
                    return Ok(piece.map(Frame::data));
                }
                Self::UntilClose => return Ok(take(input, u64::MAX).map(Frame::data)),
                Self::ChunkData(left) => {
                    let Some(piece) = take(input, left) else { return Ok(None) };
                    let left = left - piece.len() as u64;
                    *self = if left == 0 { Self::ChunkEnd } else { Self::ChunkData(left) };
                    return Ok(Some(Frame::data(piece)));
                }
                Self::ChunkEnd => match input.get(..2) {
                    None if input.first().is_none_or(|&byte| byte == b'\r') => return Ok(None),
                    Some(b"\r\n") => {
                        input.advance(2);
                        *self = Self::ChunkSize;
                    }
                    _ => return Err(Malformed::Chunk),
                },
                Self::ChunkSize => match chunk_size(input)? {
                    None => return Ok(None),
                    Some((length, 0)) => {
                        input.advance(length);
                        *self = Self::Trailers;
                    }
                    Some((length, size)) => {
                        input.advance(length);
                        *self = Self::ChunkData(size);
                    }
                },
                Self::Trailers => {
                    let Some(trailers) = trailers(input)? else { return Ok(None) };
                    *self = Self::none();
                    return Ok((!trailers.is_empty()).then(|| Frame::trailers(trailers)));
                }
            }
        }
    }
}

fn take(input: &mut BytesMut, most: u64) -> Option<Bytes> {
    let length = input.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    (length > 0).then(|| input.split_to(length).freeze())
}

/// Digits and nothing else: no sign, no list.
fn decimal(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

/// Length of a size line and the size it says.
fn chunk_size(input: &[u8]) -> Result<Option<(usize, u64)>, Malformed> {
    let Some(end) = input.iter().position(|&byte| byte == b'\n') else {
        return if input.len() > CHUNK_LINE_MAX { Err(Malformed::Chunk) } else { Ok(None) };
    };
    let line = input[..end].strip_suffix(b"\r").filter(|_| end <= CHUNK_LINE_MAX).ok_or(Malformed::Chunk)?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let rest = line[digits..].trim_ascii_start();
    // 15 digits are an exabyte; more could only overflow.
    if digits == 0 || digits > 15 || !(rest.is_empty() || rest[0] == b';') {
        return Err(Malformed::Chunk);
    }
    let size = line[..digits]
        .iter()
        .fold(0, |size, &digit| size * 16 + u64::from((digit as char).to_digit(16).unwrap_or(0)));
    Ok(Some((end + 1, size)))
}

fn trailers(input: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    if input.starts_with(b"\r\n") {
        input.advance(2);
        return Ok(Some(HeaderMap::new()));
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let (length, map) = match httparse::parse_headers(input, &mut fields) {
        Ok(httparse::Status::Complete((length, fields))) => {
            let mut map = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(field.value)) else {
                    return Err(Malformed::Chunk);
                };
                map.append(name, value);
            }
            (length, map)
        }
        Ok(httparse::Status::Partial) if input.len() <= TRAILERS_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Malformed::TooLarge);
        }
        Err(_) => return Err(Malformed::Chunk),
    };
    input.advance(length);
    Ok(Some(map))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Result<Option<Response<()>>, Malformed> {
        parse_head(&mut BytesMut::from(text), &mut HeaderMap::new(), &mut Vec::new())
    }

    fn framing(fields: &[(&'static str, &'static str)]) -> Result<Decoder, Malformed> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        Decoder::of(Version::HTTP_11, &mut headers)
    }

    /// Feeds `text` in pieces and returns the body, the trailers' count and what is left over.
    fn body(mut decoder: Decoder, text: &[u8], step: usize) -> Result<(Vec<u8>, usize, Vec<u8>), Malformed> {
        let (mut input, mut body, mut trailers) = (BytesMut::new(), Vec::new(), 0);
        for piece in text.chunks(step.max(1)) {
            input.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut input)? {
                match frame.into_data() {
                    Ok(data) => body.extend_from_slice(&data),
                    Err(frame) => trailers += frame.into_trailers().map_or(0, |map| map.len()),
                }
            }
        }
        if decoder.is_done() { Ok((body, trailers, input.to_vec())) } else { Err(Malformed::Chunk) }
    }

    #[test]
    fn a_head_is_taken_when_it_is_all_there() {
        let text = "HTTP/1.1 299 Fine\r\nContent-Length: 3\r\nX-A: b\r\n\r\nabc";
        for cut in 0..text.len() - 3 {
            assert!(matches!(head(&text[..cut]), Ok(None)), "{cut}");
        }
        let mut input = BytesMut::from(text);
        let response = parse_head(&mut input, &mut HeaderMap::new(), &mut Vec::new()).unwrap().unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["x-a"]),
            (299, &HeaderValue::from_static("b"))
        );
        assert!(response.extensions().get::<hyper::ext::ReasonPhrase>().is_some());
        assert_eq!(input, "abc");
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 99 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
        ] {
            assert!(head(text).is_err(), "{text}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1));
        assert_eq!(head(&many).err(), Some(Malformed::TooLarge));
    }

    #[test]
    fn framing_is_certain_or_refused() {
        assert_eq!(framing(&[("content-length", "5")]), Ok(Decoder::Length(5)));
        assert_eq!(framing(&[("content-length", "5"), ("content-length", "5")]), Ok(Decoder::Length(5)));
        assert_eq!(
            framing(&[("content-length", "5"), ("transfer-encoding", "gzip, Chunked")]),
            Ok(Decoder::ChunkSize)
        );
        assert_eq!(framing(&[("transfer-encoding", "gzip")]), Ok(Decoder::UntilClose));
        assert_eq!(framing(&[]), Ok(Decoder::UntilClose));
        for bad in ["", "+5", "-5", "5, 5", "0x5", "5 5", "99999999999999999999"] {
            assert_eq!(framing(&[("content-length", bad)]), Err(Malformed::Length), "{bad}");
        }
        assert_eq!(framing(&[("content-length", "5"), ("content-length", "6")]), Err(Malformed::Length));
        let mut headers = HeaderMap::new();
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        assert_eq!(Decoder::of(Version::HTTP_10, &mut headers), Err(Malformed::TransferEncoding));
    }

    #[test]
    fn chunks_become_a_body_however_they_arrive() {
        let text = b"5;ext=1\r\nhello\r\n06\r\n world\r\n0\r\nX-Sum: 7\r\n\r\nnext";
        for step in 1..text.len() {
            let (body, trailers, left) = body(Decoder::ChunkSize, text, step).unwrap();
            assert_eq!((body.as_slice(), trailers), (&b"hello world"[..], 1), "{step}");
            assert!(b"next".starts_with(left.as_slice()) || left == b"next", "{step}");
        }
    }

    #[test]
    fn bad_chunks_are_refused() {
        for text in [
            "x\r\n",
            "\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "-5\r\nhello\r\n",
            "5 5\r\nhello\r\n",
            "ffffffffffffffff\r\nx",
            "5\r\nhello\rX",
            "0\r\nbad trailer\r\n\r\n",
        ] {
            assert!(body(Decoder::ChunkSize, text.as_bytes(), 1000).is_err(), "{text:?}");
        }
        let long = format!("5;{}\r\nhello", "x".repeat(CHUNK_LINE_MAX));
        assert!(body(Decoder::ChunkSize, long.as_bytes(), 100).is_err());
    }

    #[test]
    fn a_length_takes_no_byte_more() {
        let (body, _, left) = body(Decoder::Length(5), b"hellonext", 9).unwrap();
        assert_eq!((body.as_slice(), left.as_slice()), (&b"hello"[..], &b"next"[..]));
    }

    proptest! {
        #[test]
        fn strangers_never_panic_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..300), step in 1_usize..50) {
            drop(body(Decoder::ChunkSize, &bytes, step));
            drop(parse_head(&mut BytesMut::from(&bytes[..]), &mut HeaderMap::new(), &mut Vec::new()));
        }

        #[test]
        fn what_is_chunked_comes_out_whole(pieces in proptest::collection::vec("[a-z]{1,40}", 0..8), step in 1_usize..60) {
            let mut text = String::new();
            for piece in &pieces {
                text.push_str(&format!("{:X}\r\n{piece}\r\n", piece.len()));
            }
            text.push_str("0\r\n\r\n");
            let (body, _, left) = body(Decoder::ChunkSize, text.as_bytes(), step).unwrap();
            prop_assert_eq!(body, pieces.concat().into_bytes());
            prop_assert!(left.is_empty());
        }
    }
}
