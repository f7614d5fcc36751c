//! Which requests are copied to another cluster, and what the copy calls itself.
//!
//! In: a route's mirrors and a draw. Out: a verdict, the copy's authority. Pure. Sending copies is `http::forward`'s.
//! Invariant: nobody waits for a copy. Non-goal: comparing answers.

use std::sync::Arc;
use std::time::Duration;

use crate::route::fraction::Fraction;
use crate::xds::Cluster;

/// Copies in flight on one worker. Beyond this further ones are not made: a mirror that is slower than the service
/// must not hold its memory, 64 KiB of body each.
pub const MIRRORS_MAX: usize = 64;

/// How long a copy may take where its route sets no timeout: what xDS means by an unset one.
pub const MIRROR_TIME_MAX: Duration = Duration::from_secs(15);

/// One mirror of a route.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where copies go.
    pub cluster: Arc<Cluster>,
    /// Which share of the requests.
    pub share: Fraction,
    /// Whether the copy's host gets no `-shadow`.
    pub plain_host: bool,
}

/// `orders.shop:8080` → `orders.shop-shadow:8080`, as Envoy names the host of a copy, so that the copy can be told apart
/// in the mirror's own logs.
#[must_use]
pub fn shadow(authority: &str) -> String {
    match authority.rsplit_once(':') {
        // The colons of a bare IPv6 address are inside brackets.
        Some((host, port)) if !port.contains(']') => format!("{host}-shadow:{port}"),
        _ => format!("{authority}-shadow"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_calls_itself_a_shadow() {
        assert_eq!(shadow("orders.shop:8080"), "orders.shop-shadow:8080");
        assert_eq!(shadow("orders"), "orders-shadow");
    }
}
