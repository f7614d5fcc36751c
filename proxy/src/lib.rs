//! The sidecar as a library.

pub mod accept;
pub mod config;
pub mod connect;
pub mod detect;
pub mod drain;
pub mod intercept;
pub mod record;
pub mod route;
pub mod worker;
pub mod xds;
