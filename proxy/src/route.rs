//! What a path means: which backend it goes to (`matcher`) and what it is called in telemetry (`template`).

pub mod matcher;
pub mod template;
