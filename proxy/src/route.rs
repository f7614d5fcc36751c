//! What a request means: which rule it falls under (`matcher`, `rule`), what that rule does to it, and what its path is
//! called in telemetry (`template`).

pub mod cors;
pub mod filter;
pub mod fraction;
pub mod hash;
pub mod matcher;
pub mod mutation;
pub mod pattern;
pub mod policies;
pub mod redirect;
pub mod rewrite;
pub mod rule;
pub mod template;
