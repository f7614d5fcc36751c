//! Versions of Kubernetes, and what the mesh needs one for. Pure.

/// The oldest whose API server takes our kinds: their rules name the field that is wrong.
pub const OLDEST: (u32, u32) = (1, 27);

/// Since when an init container that always restarts stays, without a feature gate (KEP-753).
pub const NATIVE_SIDECARS: (u32, u32) = (1, 29);

/// What `/version` says as `major` or `minor`; `None` if that is no number. Some providers write `28+`.
#[must_use]
pub fn number(text: &str) -> Option<u32> {
    text.trim_end_matches('+').parse().ok()
}
