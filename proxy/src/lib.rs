//! The sidecar as a library.

pub mod accept;
pub mod admin;
pub mod app;
pub mod balance;
pub mod config;
pub mod connect;
pub mod detect;
pub mod drain;
pub mod http;
pub mod inbound;
pub mod intercept;
pub mod outbound;
pub mod policy;
pub mod pool;
pub mod record;
pub mod reply;
pub mod report;
pub mod route;
pub mod tcp;
pub mod tls;
pub mod worker;
pub mod xds;
