//! What the tests and benches of Weft share: finding binaries, waiting with a deadline, reading a process's cost,
//! and Debian's programs as foreign peers.
//!
//! The scenarios themselves are in `tests/tests/`, one file per theme; benches are in `tests/benches/`.
//! Invariant: nothing here sleeps to wait for something; [`poll`] asks again until a deadline.

pub mod apiserver;
pub mod backend;
pub mod binary;
pub mod client;
pub mod embedded;
pub mod envoy;
pub mod member;
pub mod mesh;
pub mod package;
pub mod podman;
pub mod poll;
pub mod process;
pub mod relay;
