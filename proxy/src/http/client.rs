//! The upstream half: one HTTP/1 connection driven by whoever uses it, HTTP/2 connections shared by many.
//!
//! In: a request fit to be sent, a connected socket. Out: the response's head, and its body as it comes.
//!
//! - [`exclusive`]: HTTP/1. A connection has no task of its own: it is polled by the request that holds it, first
//!   while waiting for the head, then whenever the client's side asks for more body. So a request costs no wake-ups
//!   between tasks, an idle connection costs no task, and dropping a request closes its connection, which is all that
//!   cancelling means in HTTP/1. Only an upload that goes on beside its response gets a task ([`lease`]).
//! - [`multiplexed`]: HTTP/2. A connection has a task, a request has none.
//!
//! Invariant: a connection goes back to the pool only when it could carry another request. Non-goal: deciding where to
//! connect, and retrying (`http::forward`).

mod decode;
mod encode;
mod exclusive;
mod lease;
mod multiplexed;

pub use decode::Malformed;
pub use exclusive::{Broken, Continue, H1};
pub use lease::Lease;
pub use multiplexed::{H2, H2Stream, Opened};
