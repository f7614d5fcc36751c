//! Routing: which rule a request falls under, and what its path is called in metrics.

pub mod matcher;
