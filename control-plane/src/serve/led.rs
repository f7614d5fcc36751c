//! Services that are served by the control plane that leads.
//!
//! In: a gRPC service, and who leads ([`Lead`]). Out: the same, or `UNAVAILABLE` with the name of the other. What is open already
//! ends elsewhere: streams by themselves, connections in the parent module.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use axum::response::{IntoResponse, Response};
use futures_util::future::{Either, MapOk, TryFutureExt as _};
use prometheus::IntCounter;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::lead::Lead;

/// A service of the one that leads.
#[derive(Clone)]
pub struct Led<S> {
    inner: S,
    lead: Lead,
    sent_away: IntCounter,
}

impl<S> Led<S> {
    pub(super) fn new(inner: S, lead: Lead, sent_away: IntCounter) -> Self {
        Self { inner, lead, sent_away }
    }
}

impl<S: NamedService> NamedService for Led<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Led<S>
where
    S: Service<http::Request<B>, Error = Infallible>,
    S::Response: IntoResponse,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, MapOk<S::Future, fn(S::Response) -> Response>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if let Some(other) = self.lead.other() {
            self.sent_away.inc();
            let refusal = Status::from(other).into_http::<Body>();
            return Either::Left(ready(Ok(refusal.into_response())));
        }
        Either::Right(self.inner.call(request).map_ok(IntoResponse::into_response))
    }
}
