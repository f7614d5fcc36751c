//! A request on its way out: sent once, or kept to be sent again.

use std::rc::Rc;

use http::Request;
use http::request::Parts;

use crate::http::body::{Replay, RequestBody};

/// A request on its way out. Passed on by reference until it is sent, because it is large and every future on the way
/// would hold a copy.
pub(super) struct Outgoing {
    pub head: Parts,
    body: RequestBody,
    keep: Keep,
}

/// Whether anything is left when it was sent.
enum Keep {
    /// No: the usual case, which copies nothing.
    No,
    /// The head; there is no body.
    Head,
    /// The head, and of the body what fits.
    Both(Rc<Replay>),
}

impl Outgoing {
    pub(super) fn new(head: Parts, body: RequestBody) -> Self {
        Self { head, body, keep: Keep::No }
    }

    /// From now on what is sent is a copy. Both retries and copies may want it: the second time changes nothing.
    pub(super) fn keep(&mut self) {
        if self.is_kept() {
            return;
        }
        let body = std::mem::replace(&mut self.body, RequestBody::empty());
        self.keep = body.keep().map_or(Keep::Head, Keep::Both);
    }

    /// The kept body, if there is one.
    pub(super) fn replay(&self) -> Option<&Rc<Replay>> {
        match &self.keep {
            Keep::Both(replay) => Some(replay),
            Keep::No | Keep::Head => None,
        }
    }

    /// Whether the head stays when the request is sent.
    pub(super) fn is_kept(&self) -> bool {
        !matches!(self.keep, Keep::No)
    }

    /// Whether it can be sent again although it was sent.
    pub(super) fn is_whole(&self) -> bool {
        match &self.keep {
            Keep::No => false,
            Keep::Head => true,
            Keep::Both(replay) => replay.is_whole(),
        }
    }

    /// The body, to be sent; with HTTP/1 the head is written from where it is.
    pub(super) fn body(&mut self) -> RequestBody {
        match &self.keep {
            Keep::No | Keep::Head => std::mem::replace(&mut self.body, RequestBody::empty()),
            Keep::Both(replay) => replay.body(),
        }
    }

    /// Head and body, to be sent. Unless it is kept, what is left behind is empty and not looked at again, unless
    /// [`put`](Self::put) fills it.
    pub(super) fn take(&mut self) -> Request<RequestBody> {
        let body = self.body();
        if self.is_kept() {
            return Request::from_parts(copy(&self.head), body);
        }
        let mut request = Request::new(body);
        std::mem::swap(request.method_mut(), &mut self.head.method);
        std::mem::swap(request.uri_mut(), &mut self.head.uri);
        std::mem::swap(request.headers_mut(), &mut self.head.headers);
        std::mem::swap(request.extensions_mut(), &mut self.head.extensions);
        *request.version_mut() = self.head.version;
        request
    }

    /// Takes a request back that was not sent.
    pub(super) fn put(&mut self, request: Request<RequestBody>) {
        if !self.is_kept() {
            (self.head, self.body) = request.into_parts();
        }
    }

    /// A copy to send again should an HTTP/2 connection refuse the stream: only without a body, which is not kept.
    pub(super) fn spare(&self) -> Option<Request<RequestBody>> {
        (!self.is_kept() && self.body.is_none())
            .then(|| Request::from_parts(copy(&self.head), RequestBody::empty()))
    }
}

/// A head like this one, without its extensions: those are hyper's, about the client's connection.
pub(super) fn copy(head: &Parts) -> Parts {
    let (mut copy, ()) = Request::new(()).into_parts();
    copy.method = head.method.clone();
    copy.uri = head.uri.clone();
    copy.version = head.version;
    copy.headers = head.headers.clone();
    copy
}
