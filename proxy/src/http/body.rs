//! Bodies on their way through: what hyper read on one side is what it writes on the other, one wrapper each.
//!
//! [`RequestBody`] counts, holds back for `100 Continue`, tells the connection when the client's body was not read to
//! its end, and can be kept for another attempt ([`Replay`]). [`ResponseBody`] drives the upstream connection while it
//! is read (see [`super::client`]), counts, and owns the request's record ([`Exchange`]).
//!
//! Invariant: nothing is held here but one frame at a time, except what a route's policy asks to keep, up to
//! [`REPLAY_MAX`].

mod replay;
mod request;
mod response;

pub use replay::{REPLAY_MAX, Replay, Whole};
pub use request::{RequestBody, Upload};
pub use response::{Exchange, Judged, ResponseBody, Source};
