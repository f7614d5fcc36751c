//! How a sidecar asks for its certificate: `istio.v1.auth.IstioCertificateService`, the protocol that Istio's agents,
//! ztunnel and cert-manager's istio-csr speak. See ADR 12.
//!
//! One unary call: a PKCS #10 request in, a chain out. Who asks is proved by `authorization: Bearer <token>`: a Kubernetes
//! service account token, a join token, or, for a renewal, by the certificate of the connection itself. Field numbers are
//! those of Istio's `security/v1alpha1/ca.proto`.

/// The method's path.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The service's name.
pub const SERVICE: &str = "istio.v1.auth.IstioCertificateService";

/// A request for a certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateRequest {
    /// PKCS #10, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// How long it shall be valid, seconds; the authority may make it shorter. 0: as long as the authority likes.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
}

/// The certificate.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CertificateResponse {
    /// PEM, one certificate each: the leaf, its intermediates, and last the root.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
