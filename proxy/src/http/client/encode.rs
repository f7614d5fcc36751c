//! Heads, chunks and trailers as HTTP/1 writes them.

use http::request::Parts;
use http::{HeaderMap, Method};

/// `GET /path HTTP/1.1` and the headers. The target is written as it is. `silent`: neither is there a body, nor do the
/// headers say so. A method that is about one then says so (RFC 9110 §8.6): HTTP/2 callers need not, and some servers
/// answer 411.
pub(super) fn head(head: &Parts, silent: bool, output: &mut Vec<u8>) {
    output.extend_from_slice(head.method.as_str().as_bytes());
    output.push(b' ');
    match (head.uri.scheme_str(), head.uri.authority(), head.uri.path_and_query()) {
        // The common one: origin form, written without formatting.
        (None, None, Some(path)) => output.extend_from_slice(path.as_str().as_bytes()),
        _ => output.extend_from_slice(head.uri.to_string().as_bytes()),
    }
    output.extend_from_slice(b" HTTP/1.1\r\n");
    fields(&head.headers, output);
    if silent && is_about_a_body(&head.method) {
        output.extend_from_slice(b"content-length: 0\r\n");
    }
    output.extend_from_slice(b"\r\n");
}

fn is_about_a_body(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT)
}

fn fields(fields: &HeaderMap, output: &mut Vec<u8>) {
    for (name, value) in fields {
        output.extend_from_slice(name.as_str().as_bytes());
        output.extend_from_slice(b": ");
        output.extend_from_slice(value.as_bytes());
        output.extend_from_slice(b"\r\n");
    }
}

/// What stands before the data of a chunk.
pub(super) fn chunk(length: usize, output: &mut Vec<u8>) {
    output.extend_from_slice(format!("{length:x}\r\n").as_bytes());
}

/// The end of a chunked body that has no trailers.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The end of a chunked body.
pub(super) fn trailers(trailers: &HeaderMap, output: &mut Vec<u8>) {
    output.extend_from_slice(b"0\r\n");
    fields(trailers, output);
    output.extend_from_slice(b"\r\n");
}
