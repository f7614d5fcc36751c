//! Did it work? HTTP by status, gRPC by its own status, each by one table.
//!
//! In: heads and trailers. Out: verdicts. A gRPC response is `200` on the wire even when it failed, so its
//! HTTP status says nothing: the verdict is in the trailers, or in the headers of a response that has no body
//! ("Trailers-Only").

use http::{HeaderMap, StatusCode, header};

/// Header or trailer with the gRPC status as a decimal number.
const GRPC_STATUS: &str = "grpc-status";

/// Whether these headers say that the message is gRPC (`application/grpc`, `application/grpc+proto`, …).
///
/// `application/grpc-web` is not gRPC: its status travels inside the body.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    match value.as_bytes().strip_prefix(b"application/grpc") {
        Some(rest) => matches!(rest.first(), None | Some(b'+' | b';')),
        None => false,
    }
}

/// The gRPC status in trailers, or in the headers of a Trailers-Only response.
#[must_use]
pub fn grpc_status(headers: &HeaderMap) -> Option<GrpcStatus> {
    let digits = headers.get(GRPC_STATUS)?.as_bytes();
    // A status is at most two digits; whatever else is there is not a status the caller can act on.
    let code = match digits {
        [a @ b'0'..=b'9'] => a - b'0',
        [a @ b'1'..=b'9', b @ b'0'..=b'9'] => (a - b'0') * 10 + (b - b'0'),
        _ => return Some(GrpcStatus::UNKNOWN),
    };
    Some(GrpcStatus::from_code(code))
}

/// Whether an HTTP status is a failure of the server: 5xx. A 4xx is an answer.
///
/// Source: OpenTelemetry semantic conventions, "HTTP spans", status: the server side leaves 4xx unset. Weft
/// uses one rule on both sides, so that both sides of an edge count the same success rate.
#[must_use]
pub fn failed(status: StatusCode) -> bool {
    status.is_server_error()
}

/// A gRPC status code, 0 to 16; anything else has become `UNKNOWN`, as gRPC libraries do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrpcStatus(u8);

impl GrpcStatus {
    /// Success.
    pub const OK: Self = Self(0);
    /// The status of a response that has none.
    pub const UNKNOWN: Self = Self(2);

    /// The status with this number.
    #[must_use]
    pub fn from_code(code: u8) -> Self {
        if usize::from(code) < TABLE.len() { Self(code) } else { Self::UNKNOWN }
    }

    /// The status a gRPC client derives from an HTTP response that carries none.
    ///
    /// Source: grpc/doc/http-grpc-status-mapping.md. A `200` without a status is `UNKNOWN` as well.
    #[must_use]
    pub fn from_http(status: StatusCode) -> Self {
        Self(match status.as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }

    /// The HTTP status that says about the server what this status says: what breakers judge by, as in Envoy.
    #[must_use]
    pub const fn as_http(self) -> u16 {
        match self.0 {
            0 => 200,
            1 => 499,
            3 | 9 | 11 => 400,
            4 => 504,
            5 => 404,
            6 | 10 => 409,
            7 => 403,
            8 => 429,
            12 => 501,
            14 => 503,
            16 => 401,
            _ => 500,
        }
    }

    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The name in lower_snake, as `error.type` spells it.
    #[must_use]
    pub fn word(self) -> &'static str {
        TABLE[usize::from(self.0)].0
    }

    /// Whether this status is a failure of the server.
    #[must_use]
    pub fn failed(self) -> bool {
        TABLE[usize::from(self.0)].1
    }
}

/// Name and verdict per code. Failures are what OpenTelemetry's semantic conventions for gRPC call an error
/// on the server side (UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS), plus
/// RESOURCE_EXHAUSTED: a server that is out of something answers this where an HTTP server answers 503.
const TABLE: [(&str, bool); 17] = [
    ("ok", false),
    ("cancelled", false),
    ("unknown", true),
    ("invalid_argument", false),
    ("deadline_exceeded", true),
    ("not_found", false),
    ("already_exists", false),
    ("permission_denied", false),
    ("resource_exhausted", true),
    ("failed_precondition", false),
    ("aborted", false),
    ("out_of_range", false),
    ("unimplemented", true),
    ("internal", true),
    ("unavailable", true),
    ("data_loss", true),
    ("unauthenticated", false),
];

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&headers("content-type", value)), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_status_that_is_no_status_is_unknown() {
        for (value, expected) in
            [("0", 0), ("5", 5), ("14", 14), ("16", 16), ("17", 2), ("99", 2), ("", 2), ("x", 2), ("007", 2)]
        {
            assert_eq!(
                grpc_status(&headers("grpc-status", value)).map(GrpcStatus::code),
                Some(expected),
                "{value}"
            );
        }
        assert_eq!(grpc_status(&HeaderMap::new()), None);
    }

    #[test]
    fn failures_are_the_servers_fault() {
        assert!(failed(StatusCode::BAD_GATEWAY));
        assert!(!failed(StatusCode::NOT_FOUND));
        assert!(GrpcStatus::from_code(14).failed());
        assert!(!GrpcStatus::from_code(5).failed());
        assert_eq!(GrpcStatus::from_http(StatusCode::BAD_GATEWAY).word(), "unavailable");
    }
}
