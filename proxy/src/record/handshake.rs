//! How TLS handshakes end, as they are counted.

use weft_wire::Reason;

/// Reasons for which there is no connection.
const REASONS: [Reason; 8] = [
    Reason::Overloaded,
    Reason::TlsCertificateExpired,
    Reason::TlsCertificateMissing,
    Reason::TlsHandshakeFailed,
    Reason::TlsIdentityMismatch,
    Reason::TlsRequired,
    Reason::TlsTrustDomain,
    Reason::TlsUnknownIssuer,
];

/// How one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// A new session.
    Full,
    /// The continuation of another one.
    Resumed,
    /// No connection.
    Failed(Reason),
}

impl From<Result<bool, Reason>> for Handshake {
    fn from(result: Result<bool, Reason>) -> Self {
        match result {
            Ok(false) => Self::Full,
            Ok(true) => Self::Resumed,
            Err(reason) if REASONS.contains(&reason) => Self::Failed(reason),
            Err(_) => Self::Failed(Reason::TlsHandshakeFailed),
        }
    }
}

impl Handshake {
    /// How many there are.
    pub(crate) const COUNT: usize = REASONS.len() + 2;

    /// All of them, in order.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Self::Full, Self::Resumed].into_iter().chain(REASONS.map(Self::Failed))
    }

    /// Its place among all.
    pub(crate) fn position(self) -> usize {
        Self::all().position(|other| other == self).unwrap_or_default()
    }

    /// The word in metrics.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Resumed => "resumed",
            Self::Failed(reason) => reason.word(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_a_place() {
        for (position, end) in Handshake::all().enumerate() {
            assert_eq!(end.position(), position);
        }
        assert_eq!(Handshake::all().count(), Handshake::COUNT);
        assert_eq!(
            Handshake::from(Err(Reason::ConnectTimeout)),
            Handshake::Failed(Reason::TlsHandshakeFailed)
        );
    }
}
