//! Access: what the filters that let in and keep out are called, and how their rules are.
//!
//! A rule's name (`AccessPolicy/shop/orders/0`) is the key of its policy in Envoy's RBAC filters, and its name in telemetry.

/// The HTTP filter whose rules keep out.
pub const HTTP_DENY: &str = "envoy.filters.http.rbac.deny";
/// The HTTP filter whose rules let in.
pub const HTTP_ALLOW: &str = "envoy.filters.http.rbac.allow";
/// The network filter whose rules keep out.
pub const NETWORK_DENY: &str = "envoy.filters.network.rbac.deny";
/// The network filter whose rules let in.
pub const NETWORK_ALLOW: &str = "envoy.filters.network.rbac.allow";

/// What a rule said to a call.
pub mod verdict {
    /// It let the call in.
    pub const ALLOWED: &str = "allowed";
    /// It kept the call out; or, by no rule, none let it in.
    pub const DENIED: &str = "denied";
    /// It is only audited, and would have let the call in.
    pub const WOULD_ALLOW: &str = "would_allow";
    /// It is only audited, and would have kept the call out; or, by no rule, none would have let it in.
    pub const WOULD_DENY: &str = "would_deny";
}

/// The rule of a call that was kept out because no rule let it in.
pub const NO_RULE: &str = "none";
