//! The sidecar as a library.

pub mod record;
pub mod route;
pub mod xds;
