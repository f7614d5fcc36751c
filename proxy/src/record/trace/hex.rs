//! Hexadecimal ids without allocation or validation twice.

use http::HeaderValue;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Writes `bytes` as lower-case hex; `text` is twice as long.
pub(super) fn write(bytes: &[u8], text: &mut [u8]) {
    for (byte, pair) in bytes.iter().zip(text.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// Reads lower-case hex of at most 32 digits; `None` on anything else.
pub(super) fn read_lower(text: &[u8]) -> Option<u128> {
    read(text, |byte| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        _ => 0xff,
    })
}

/// Reads hex of either case, which B3 senders mix.
pub(super) fn read_any(text: &[u8]) -> Option<u128> {
    read(text, |byte| match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        _ => 0xff,
    })
}

fn read(text: &[u8], digit: impl Fn(u8) -> u8) -> Option<u128> {
    if text.is_empty() || text.len() > 32 {
        return None;
    }
    let (mut value, mut bad) = (0_u128, 0);
    for &byte in text {
        let digit = digit(byte);
        bad |= digit & 0xf0;
        value = value << 4 | u128::from(digit & 0x0f);
    }
    (bad == 0).then_some(value)
}

/// A header value of text this module has formatted.
pub(super) fn header(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
