//! The sidecar as a library.

pub mod route;
pub mod xds;
