//! The words that Weft's programs say to each other.
//!
//! Config travels as xDS and telemetry as OTLP, so there is no private protocol here: this crate holds only
//! the *names* inside those protocols that both ends must spell alike: attribute and header names, xDS
//! resource names, node and endpoint metadata, the reasons a proxy gives, and the newtypes that cannot hold a
//! bad value. In: strings from the network. Out: values that are right by construction.
//!
//! Invariant: nothing in this crate does IO, and nothing in it knows a proxy or a control plane.
//! Non-goal: helpers. A function lives here only if both ends of a wire would otherwise write it twice.

pub mod access;
pub mod annotation;
pub mod attribute;
pub mod ca;
pub mod header;
pub mod histogram;
pub mod name;
pub mod node;
pub mod pod;
pub mod port;
pub mod reason;
pub mod spelling;
pub mod tls;
pub mod xds;

pub use name::{Host, InvalidName, ServiceId, ServicePort, SpiffeId, WorkloadId};
pub use reason::{DecidedBy, Reason};
