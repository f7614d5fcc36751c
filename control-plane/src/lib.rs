//! Weft's control plane: configures the sidecars and draws the live call graph of what they report.
//!
//! Two flows that meet only in `app`:
//!
//! ```text
//! sources ─▶ world ─▶ compile ─▶ xds ─▶ sidecars        what the mesh should do
//! sidecars ─▶ ingest ─▶ graph, store ─▶ api ─▶ people   what the mesh does
//! ```
//!
//! `world`, `compile` and `graph` do no IO and take the time as an argument. `app` knows everybody and nobody
//! but `program` knows `app`.

pub mod admin;
pub mod api;
pub mod app;
pub mod compile;
pub mod config;
pub mod drain;
pub mod graph;
pub mod ingest;
pub mod listen;
pub mod mesh;
pub mod program;
pub mod resources;
pub mod serve;
pub mod sources;
pub mod store;
pub mod world;
pub mod xds;
