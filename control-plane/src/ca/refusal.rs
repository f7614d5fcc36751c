//! Why the authority refuses: one closed list, with a text for whoever asked, a word for metrics, a code for gRPC.

use tonic::{Code, Status};

use super::csr::BadRequest;

/// Why no certificate is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No proof at all.
    #[error(
        "no proof of identity: send `authorization: Bearer <token>` with a join token (weft token create) or a \
         Kubernetes service account token, or connect with a certificate that is still valid"
    )]
    NoProof,
    /// A proof of no kind that is known.
    #[error("the proof of identity is neither a join token (weft1.…) nor a Kubernetes service account token")]
    ProofUnreadable,
    /// A join token that this mesh never made, or forgot.
    #[error(
        "join token {id} is not known here, or its secret is wrong: make a new one with weft token create"
    )]
    TokenUnknown {
        /// Which.
        id: Box<str>,
    },
    /// A join token of another mesh.
    #[error(
        "join token {id} was made by another mesh: its pin is of no root of this one. Make one with weft token create \
         against this control plane"
    )]
    TokenForeign {
        /// Which.
        id: Box<str>,
    },
    /// A join token that is too old.
    #[error("join token {id} has expired: make a new one with weft token create")]
    TokenExpired {
        /// Which.
        id: Box<str>,
    },
    /// A join token that was used for another key, or too long ago.
    #[error("join token {id} has been used: each can be used once. Make a new one with weft token create")]
    TokenUsed {
        /// Which.
        id: Box<str>,
    },
    /// A join token that was taken back.
    #[error("join token {id} has been revoked")]
    TokenRevoked {
        /// Which.
        id: Box<str>,
    },
    /// Too many join tokens.
    #[error(
        "too many join tokens: revoke those that nobody will use (weft token list, weft token revoke), and try again in a minute"
    )]
    TooManyTokens,
    /// The cluster does not know the token.
    #[error("the cluster does not accept the service account token: {0}")]
    AccountRejected(String),
    /// The token was not made for this control plane.
    #[error("the service account token is for the audience {found}, not for {wanted}")]
    AccountAudience {
        /// For whom it is.
        found: String,
        /// For whom it should be.
        wanted: Box<str>,
    },
    /// The token is of a user who is no service account.
    #[error("the token is that of {0:?}, which is not a service account")]
    AccountOther(String),
    /// No API server to ask.
    #[error("service account tokens are not accepted: this control plane has no --token-review")]
    ReviewOff,
    /// The API server did not answer.
    #[error("the cluster could not be asked about the service account token: try again")]
    ReviewUnavailable,
    /// The request asks to be somebody else.
    #[error("the request asks for {wanted}, but the proof is of {proved}")]
    OtherIdentity {
        /// What the request asks for.
        wanted: String,
        /// What was proved.
        proved: String,
    },
    /// The control plane's own identity.
    #[error("{0} is the control plane's own identity, which is given to nobody")]
    OwnIdentity(String),
    /// The request itself.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// A disk or a key that does not work.
    #[error("the authority is at fault; see its log")]
    Internal,
}

impl Refusal {
    /// Every word that a request for a certificate can be refused with.
    pub const WORDS: [&'static str; 20] = [
        "no_proof",
        "proof_unreadable",
        "token_unknown",
        "token_foreign",
        "token_expired",
        "token_used",
        "token_revoked",
        "account_rejected",
        "account_audience",
        "account_other",
        "review_off",
        "review_unavailable",
        "other_identity",
        "own_identity",
        "csr_too_large",
        "csr_unreadable",
        "csr_signature",
        "csr_weak_key",
        "csr_names",
        "internal",
    ];

    /// The word in metrics and logs.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NoProof => "no_proof",
            Self::ProofUnreadable => "proof_unreadable",
            Self::TokenUnknown { .. } => "token_unknown",
            Self::TokenForeign { .. } => "token_foreign",
            Self::TokenExpired { .. } => "token_expired",
            Self::TokenUsed { .. } => "token_used",
            Self::TokenRevoked { .. } => "token_revoked",
            Self::TooManyTokens => "too_many_tokens",
            Self::AccountRejected(_) => "account_rejected",
            Self::AccountAudience { .. } => "account_audience",
            Self::AccountOther(_) => "account_other",
            Self::ReviewOff => "review_off",
            Self::ReviewUnavailable => "review_unavailable",
            Self::OtherIdentity { .. } => "other_identity",
            Self::OwnIdentity(_) => "own_identity",
            Self::Request(bad) => bad.word(),
            Self::Internal => "internal",
        }
    }

    /// What gRPC calls it. Only `UNAVAILABLE` is worth trying again as it is.
    #[must_use]
    pub const fn code(&self) -> Code {
        match self {
            Self::Request(_) => Code::InvalidArgument,
            Self::OtherIdentity { .. } | Self::OwnIdentity(_) => Code::PermissionDenied,
            Self::TooManyTokens => Code::ResourceExhausted,
            Self::ReviewUnavailable | Self::Internal => Code::Unavailable,
            _ => Code::Unauthenticated,
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code(), refusal.to_string())
    }
}
