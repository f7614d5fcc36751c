//! What a cluster is given: the objects of an installation, made of typed values.
//!
//! In: what the operator wishes. Out: objects, in an order in which they can be applied, each with a word on what it is for. `weft
//! install` prints them, `k8s/` holds what it prints, and the chart is made from the same.
//!
//! Invariant: nothing here is written twice. Schemas come from the types that read policies, names and ports from `wire`,
//! rights from one table that says what each is for. Non-goal: talking to a cluster; that is `kubectl`'s work, so that
//! whoever installs sees what they install.

#[cfg(test)]
mod checked_in;
pub mod crd;
pub mod yaml;
