//! What guards requests, outermost first.
//!
//! Order of concerns as a request meets them in `http::forward`; what a rule asks for comes in the order of Envoy's filters,
//! so that one configuration means the same to both:
//!
//! | concern | where | refuses with |
//! |---|---|---|
//! | record | [`crate::record`]: a guard around everything below | |
//! | shed | [`shed`]: requests in flight, lag of the worker | `overloaded` |
//! | spelling | [`weft_wire::spelling`]: one spelling of each path, where access depends on it | `protocol_error` |
//! | authorize | [`authorize`]: who may do what; first at a callee, where nothing else stands before | `policy_denied` |
//! | fault | [`fault`]: delay, abort | `fault_injected` |
//! | rate limit | [`limit`]: one bucket for all, one for each caller | `rate_limited` |
//! | concurrency | [`adaptive`]: what the app's latency allows | `overloaded` |
//! | circuit | [`crate::balance::circuits`]: the cluster's circuit and its requests in progress | `circuit_open`, `concurrency_limited` |
//! | mirror | [`mirror`]: a copy nobody waits for | |
//! | deadline | [`timeout`]: the shortest of route, caller's sidecar, `grpc-timeout` | `request_timeout` |
//! | retry | [`retry`]: conditions and pauses; the budget is the cluster's | |
//! | per-try timeout | [`retry::RetryPolicy::per_try_timeout`] | `request_timeout` |
//! | balance | [`crate::balance`]: an endpoint that is not out | `no_ready_endpoint` |
//! | pool | [`crate::pool`]: a connection, or a place in line | `concurrency_limited`, `connect_…` |
//!
//! Everything here is a pure core: `now` and randomness are arguments, so that a test is a table. Surprise: no `tower`.
//! Decisions are plain functions that a request calls in this order; a route without a policy pays one comparison for
//! all of them together. Non-goals: the answers (`reply`), sending.

pub mod adaptive;
pub mod authorize;
pub mod fault;
pub mod limit;
pub mod mirror;
pub mod retry;
pub mod shed;
pub mod timeout;

pub use shed::{Permit, REQUESTS_MAX, Shed};
