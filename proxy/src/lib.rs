//! Weft's sidecar as a library; the program is `main.rs`, its story [`app`].
//!
//! In the order a connection meets them: [`accept`] → [`inbound`] or [`outbound`] (each written out top to bottom) →
//! [`detect`] → [`http`] with [`route`], [`policy`], [`balance`] and [`pool`], or [`tcp`] → [`connect`]. [`record`] is
//! around all of it and [`report`] behind; [`reply`] is the only table from a reason to what a caller sees. [`xds`]
//! fills the directory that everything reads; [`check`] asks endpoints how they are; [`worker`] is what one thread owns; [`drain`] ends it, [`admin`] shows
//! it. [`intercept`] is the other program in this binary: it makes the kernel hand connections over.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "read by people who work on the sidecar, with its private items"
)]

pub mod accept;
pub mod admin;
pub mod app;
pub mod balance;
pub mod check;
pub mod config;
pub mod connect;
pub mod detect;
pub mod drain;
mod exposition;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod intercept;
pub mod outbound;
pub mod policy;
pub mod pool;
pub mod probe;
pub mod record;
pub mod reply;
pub mod report;
pub mod route;
pub mod tcp;
pub mod tls;
pub mod wait;
pub mod worker;
pub mod xds;
