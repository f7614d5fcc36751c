//! Identity and mutual TLS: real control plane, real sidecars, real load. `cargo test -p weft-tests mtls` runs these alone.

mod mtls_renewal;
