//! Errors of the API: `application/problem+json` (RFC 9457).
//!
//! What is said to the caller is all there is: nothing internal is in a problem's detail.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// An error that tells the caller what to do differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// A word for programs, relative to the API: `/problems/not-found`.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// What would have been accepted, where that is a short list.
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    allowed: Vec<&'static str>,
}

impl Problem {
    fn new(kind: &'static str, title: &'static str, status: StatusCode, detail: String) -> Self {
        Self { kind, title, status: status.as_u16(), detail, allowed: Vec::new() }
    }

    /// 404.
    #[must_use]
    pub fn not_found(detail: String) -> Self {
        Self::new("/problems/not-found", "Not found", StatusCode::NOT_FOUND, detail)
    }

    /// 400 for a parameter.
    #[must_use]
    pub fn bad_parameter(detail: String) -> Self {
        Self::new("/problems/bad-parameter", "Bad parameter", StatusCode::BAD_REQUEST, detail)
    }

    /// 409 for something that cannot be done now.
    #[must_use]
    pub fn conflict(detail: String) -> Self {
        Self::new("/problems/conflict", "Conflict", StatusCode::CONFLICT, detail)
    }

    /// 415.
    #[must_use]
    pub fn unsupported_type(detail: String) -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        Self::new("/problems/unsupported-type", "Unsupported content type", status, detail)
    }

    /// 401 for somebody who does not say, or cannot prove, who they are.
    #[must_use]
    pub fn unauthenticated(detail: String) -> Self {
        Self::new("/problems/unauthenticated", "Sign in", StatusCode::UNAUTHORIZED, detail)
    }

    /// 403 for somebody, or a page, that may not.
    #[must_use]
    pub fn forbidden(detail: String) -> Self {
        Self::new("/problems/forbidden", "Forbidden", StatusCode::FORBIDDEN, detail)
    }

    /// `status` for a body that cannot be taken.
    #[must_use]
    pub fn bad_body(status: StatusCode, detail: String) -> Self {
        Self::new("/problems/bad-body", "Bad body", status, detail)
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed(detail: String) -> Self {
        Self::new(
            "/problems/method-not-allowed",
            "Method not allowed",
            StatusCode::METHOD_NOT_ALLOWED,
            detail,
        )
    }

    /// 421 for a `Host` that is not this program's.
    #[must_use]
    pub fn wrong_host(detail: String) -> Self {
        Self::new("/problems/wrong-host", "Wrong host", StatusCode::MISDIRECTED_REQUEST, detail)
    }

    /// 503 when a bound is reached.
    #[must_use]
    pub fn unavailable(detail: String) -> Self {
        Self::new("/problems/unavailable", "Unavailable", StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Adds what would have been accepted.
    #[must_use]
    pub fn allowing(mut self, allowed: impl IntoIterator<Item = &'static str>) -> Self {
        self.allowed = allowed.into_iter().collect();
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"weft\""));
        }
        response
    }
}
