//! Identity and mutual TLS: real control plane, real sidecars, real load. `cargo test -p weft-tests mtls` runs these alone.

mod members;
// The authority's own tests belong to these scenarios, and are kept with what they test.
mod mtls_access;
#[path = "../../../control-plane/tests/authority.rs"]
mod mtls_authority;
mod mtls_foreign;
mod mtls_namespaces;
mod mtls_renewal;
mod mtls_rotation;
mod mtls_wire;
