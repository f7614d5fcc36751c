//! Envoy as the judge: one control plane configures a real Envoy and a sidecar, both are asked the same, and both must
//! do the same: choose the same backend, send it the same request, answer the caller the same.
//!
//! In: Gateway API and Weft objects, generated from seeds or written for one policy, and requests. Out: nothing, or the
//! smallest configuration and request on which the two disagree, with the seed that makes them again. Invariant:
//! whatever is not compared is a [`Row`](differential::differences::Row) of `docs/envoy-differences.md`. Where there can be
//! no Envoy, the tests are skipped aloud; in CI that is a failure.

// So that `cargo test -p weft-tests differential` runs these tests and no others.
#[path = "."]
mod differential {
    pub(crate) mod differences;
    mod objects;
    mod pair;
    mod plain;
    mod policies;
    mod rows;
    mod tables;
}
