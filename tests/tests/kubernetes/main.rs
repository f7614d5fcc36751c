//! What the control plane writes to an API server, on a real one and on a small one of our own; and that it follows a real one
//! (`following`).
//!
//! `real` runs where `KUBECONFIG` names a cluster that may be spoilt (it says why it skips otherwise): the control plane runs
//! out of the cluster with a token of its own ServiceAccount, so that its rights are really exercised, and the Deployment that
//! is installed stands still. `simulated` runs everywhere, and adds what a real server does not do on demand. Both tell the
//! same `stories`.

#![expect(
    clippy::print_stdout,
    reason = "a story on a real cluster says what it saw there, or why it was skipped"
)]

mod check;
mod following;
mod nodes;
mod place;
mod real;
mod simulated;
mod space;
mod stories;
mod takeover;
