//! Tables and properties of ejection.
