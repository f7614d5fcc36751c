//! HTTP through one worker over real sockets: raw clients and raw apps, so that every byte is ours to choose.
//!
//! Each test runs on one thread: proxy, app and client are tasks of the same `LocalSet`. Nothing waits for a fixed
//! time; what takes its time is waited for by its condition, with a deadline.

#![expect(
    clippy::unwrap_used,
    clippy::let_underscore_must_use,
    reason = "a test that cannot go on says where"
)]

#[path = "http/access.rs"]
mod access;
#[path = "http/breaker.rs"]
mod breaker;
#[path = "http/checks.rs"]
mod checks;
#[path = "http/deadline.rs"]
mod deadline;
#[path = "http/h1.rs"]
mod h1;
#[path = "http/h2.rs"]
mod h2;
#[path = "http/harness.rs"]
mod harness;
#[path = "http/hostile.rs"]
mod hostile;
#[path = "http/lifecycle.rs"]
mod lifecycle;
#[path = "http/limits.rs"]
mod limits;
#[path = "http/policy.rs"]
mod policy;
