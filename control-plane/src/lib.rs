//! Weft's control plane: configures the sidecars and draws the live call graph of what they report.
//!
//! Two flows that meet only in `app`:
//!
//! ```text
//! sources ─▶ world ─▶ compile ─▶ xds ─▶ sidecars        what the mesh should do
//! sidecars ─▶ ingest ─▶ graph, circuits, store ─▶ api ─▶ people   what the mesh does
//! ```
//!
//! `world`, `compile`, `graph` and `circuits` do no IO and take the time as an argument. `app` knows everybody and nobody
//! but `program` knows `app`.

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "read by people who work on the control plane, with its private items"
)]

pub mod admin;
pub mod admit;
pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod ca;
pub mod circuits;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod drain;
pub mod fetch;
#[cfg(test)]
mod fixture;
pub mod graph;
pub mod ingest;
pub mod inject;
pub mod inspect;
pub mod install;
pub mod lead;
pub mod listen;
pub mod mesh;
pub mod pod_security;
pub mod program;
pub mod resources;
pub mod rules;
pub mod serve;
pub mod sources;
pub mod store;
pub mod world;
pub mod xds;
pub mod yaml;
