//! What policies do to requests: each one configured alike at Envoy and at a sidecar, and both watched from outside.
//!
//! In: `TrafficPolicy` and `CircuitBreaker` objects, and requests that tell their backend what to do ([`x-plan`]). Out:
//! nothing, or every case in which the two did not do the same. [`scene`] is the stage. Invariants: what is drawn at
//! random is compared by its distribution, with a bound that a correct proxy breaks less than once in 10⁶ runs; a
//! duration is compared with what was configured, not with the other proxy's. Surprise: the cases of a test run side by
//! side on one pair, each with a service of its own, so waiting costs nothing.
//!
//! [`x-plan`]: weft_tests::backend::PLAN

mod access;
mod choices;
mod combined;
mod ejection;
mod faults;
mod generated;
mod health;
mod limits;
mod overload;
mod retries;
mod rows;
mod rules;
mod scene;
mod shares;
mod timeouts;
