//! The only table from a [`Reason`] to what the caller sees.
//!
//! In: why the proxy answers instead of the app, and which proxy it is. Out: a status, the `x-weft-reason`
//! header, a short text body; for gRPC callers a Trailers-Only response with a gRPC status, because a gRPC
//! client cannot read anything else. Invariant: no other file of the data path turns a reason into a status.
//! Non-goal: deciding to retry. [`Verdict::retryable`] says whether a retry *could* help.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use weft_wire::{DecidedBy, Reason};

use crate::http::class::GrpcStatus;
use crate::policy::fault::Abort;

/// What a reason means to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The HTTP status.
    pub status: StatusCode,
    /// The gRPC status code.
    pub grpc: u8,
    /// Whether the same request may succeed elsewhere or a moment later. Says nothing about idempotence.
    pub retryable: bool,
}

const RESOURCE_EXHAUSTED: u8 = 8;
const CANCELLED: u8 = 1;
const DEADLINE_EXCEEDED: u8 = 4;
const PERMISSION_DENIED: u8 = 7;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// nginx's "client closed request": never sent, because nobody is left to read it, but it has to be some status.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Which side a reason is about, where that makes a difference: bytes that are no HTTP may come from either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller's side, or no side's in particular.
    Caller,
    /// The upstream's.
    Upstream,
}

/// The table.
#[must_use]
pub fn verdict(reason: Reason, fault: Fault) -> Verdict {
    let (status, grpc, retryable) = match reason {
        Reason::CircuitOpen => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, true),
        Reason::ClientCancelled => {
            (StatusCode::from_u16(CLIENT_CLOSED_REQUEST).unwrap_or(StatusCode::BAD_REQUEST), CANCELLED, false)
        }
        Reason::ConcurrencyLimited => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, true),
        Reason::ConnectFailed => (StatusCode::BAD_GATEWAY, UNAVAILABLE, true),
        Reason::ConnectRefused => (StatusCode::BAD_GATEWAY, UNAVAILABLE, true),
        Reason::ConnectTimeout => (StatusCode::GATEWAY_TIMEOUT, UNAVAILABLE, true),
        Reason::FaultInjected => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, false),
        Reason::HeaderTimeout => (StatusCode::REQUEST_TIMEOUT, DEADLINE_EXCEEDED, false),
        Reason::HeaderTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, RESOURCE_EXHAUSTED, false),
        Reason::NoReadyEndpoint => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, true),
        Reason::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, true),
        Reason::PolicyDenied => (StatusCode::FORBIDDEN, PERMISSION_DENIED, false),
        Reason::ProtocolError if fault == Fault::Upstream => (StatusCode::BAD_GATEWAY, INTERNAL, true),
        Reason::ProtocolError => (StatusCode::BAD_REQUEST, INTERNAL, false),
        Reason::RateLimited => (StatusCode::TOO_MANY_REQUESTS, RESOURCE_EXHAUSTED, true),
        Reason::RequestLoop => (StatusCode::LOOP_DETECTED, INTERNAL, false),
        Reason::RequestTimeout => (StatusCode::GATEWAY_TIMEOUT, DEADLINE_EXCEEDED, false),
        Reason::RetryBudgetExhausted => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, false),
        Reason::RouteNotFound => (StatusCode::NOT_FOUND, UNIMPLEMENTED, false),
        Reason::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, UNAVAILABLE, true),
        Reason::TlsCertificateExpired
        | Reason::TlsCertificateMissing
        | Reason::TlsIdentityMismatch
        | Reason::TlsTrustDomain
        | Reason::TlsUnknownIssuer => (StatusCode::BAD_GATEWAY, UNAUTHENTICATED, false),
        Reason::TlsHandshakeFailed => (StatusCode::BAD_GATEWAY, UNAVAILABLE, true),
        Reason::TlsRequired => (StatusCode::FORBIDDEN, UNAUTHENTICATED, false),
        Reason::UpstreamReset => (StatusCode::BAD_GATEWAY, UNAVAILABLE, true),
    };
    Verdict { status, grpc, retryable }
}

/// What the caller is told; no more than the reason, so that nothing internal leaks.
///
/// `grpc` says that the *request* was gRPC.
#[must_use]
pub fn respond(reason: Reason, fault: Fault, by: DecidedBy, grpc: bool) -> Response<Bytes> {
    answer(reason, verdict(reason, fault), by, grpc)
}

/// What a policy wants an aborted request to be told.
#[must_use]
pub fn aborted(abort: Abort) -> Verdict {
    let (status, grpc) = match abort {
        Abort::Http(status) => (status, GrpcStatus::from_http(status).code()),
        Abort::Grpc(status) => (StatusCode::OK, status.code()),
    };
    Verdict { status, grpc, ..verdict(Reason::FaultInjected, Fault::Caller) }
}

/// What a rule wants a request to be told whose cluster does not exist.
#[must_use]
pub fn absent(status: StatusCode) -> Verdict {
    let grpc = GrpcStatus::from_http(status).code();
    Verdict { status, grpc, ..verdict(Reason::NoReadyEndpoint, Fault::Caller) }
}

/// What a policy wants a request to be told that is over its rate.
#[must_use]
pub fn limited(status: StatusCode) -> Verdict {
    Verdict { status, ..verdict(Reason::RateLimited, Fault::Caller) }
}

/// What a policy wants a request to be told that the app has no room for.
#[must_use]
pub fn overloaded(status: StatusCode) -> Verdict {
    Verdict { status, ..verdict(Reason::Overloaded, Fault::Caller) }
}

/// [`respond`] where a policy has its own idea of the status.
#[must_use]
pub fn answer(reason: Reason, verdict: Verdict, by: DecidedBy, grpc: bool) -> Response<Bytes> {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(HeaderName::from_static(weft_wire::header::REASON), stamp(reason, by));
    let mut response = if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(verdict.grpc)));
        headers.insert(HeaderName::from_static("grpc-message"), HeaderValue::from_static(reason.word()));
        Response::new(Bytes::new())
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        let mut response = Response::new(Bytes::from(format!("weft: {reason} (decided by {by})\n")));
        *response.status_mut() = verdict.status;
        response
    };
    debug_assert!(
        usize::from(verdict.grpc) <= 16 && GrpcStatus::from_code(verdict.grpc).code() == verdict.grpc
    );
    *response.headers_mut() = headers;
    response
}

/// An answer that a rule makes, in the form that a gRPC caller can read: its status from the HTTP status, its message from
/// the body.
#[must_use]
pub fn trailers_only(response: Response<Bytes>) -> Response<Bytes> {
    let (mut head, body) = response.into_parts();
    let status = GrpcStatus::from_http(head.status);
    head.status = StatusCode::OK;
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let code = || HeaderValue::from(u16::from(status.code()));
    head.headers.entry(HeaderName::from_static("grpc-status")).or_insert_with(code);
    if !body.is_empty()
        && let Ok(message) = HeaderValue::try_from(percent_encoded(&body))
    {
        head.headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    Response::from_parts(head, Bytes::new())
}

/// As gRPC wants a message: everything but visible ASCII, and the percent sign, encoded.
fn percent_encoded(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len()), |mut text, &byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

/// The value of `x-weft-reason`: `circuit_open; by=client_proxy`.
#[must_use]
pub fn stamp(reason: Reason, by: DecidedBy) -> HeaderValue {
    // Words are lower_snake, so this is always a header value.
    HeaderValue::try_from(format!("{reason}; by={by}"))
        .unwrap_or_else(|_| HeaderValue::from_static(reason.word()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_status_that_is_an_error() {
        for &reason in Reason::ALL {
            let verdict = verdict(reason, Fault::Caller);
            assert!(verdict.status.is_client_error() || verdict.status.is_server_error(), "{reason}");
            assert!((1..=16).contains(&verdict.grpc), "{reason}");
            // What the caller did wrong stays wrong.
            if verdict.status.is_client_error() && reason != Reason::RateLimited {
                assert!(!verdict.retryable, "{reason}");
            }
        }
    }

    #[test]
    fn a_reply_names_reason_and_decider() {
        let response = respond(Reason::NoReadyEndpoint, Fault::Caller, DecidedBy::ClientProxy, false);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["x-weft-reason"], "no_ready_endpoint; by=client_proxy");
        assert_eq!(response.body(), "weft: no_ready_endpoint (decided by client_proxy)\n");
    }

    #[test]
    fn a_rules_answer_is_readable_by_a_grpc_caller() {
        let mut response = Response::new(Bytes::from_static("no 100% \u{e9}\n".as_bytes()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        let response = trailers_only(response);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "12");
        assert_eq!(response.headers()["grpc-message"], "no 100%25 %C3%A9%0A");
        assert!(response.body().is_empty());
    }

    #[test]
    fn a_grpc_caller_gets_a_grpc_status() {
        let response = respond(Reason::ConnectRefused, Fault::Caller, DecidedBy::ServerProxy, true);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["grpc-message"], "connect_refused");
        assert_eq!(response.headers()["x-weft-reason"], "connect_refused; by=server_proxy");
        assert!(response.body().is_empty());
    }
}
