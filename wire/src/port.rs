//! The ports of DESIGN: one reserved block per program, named.

/// Outbound capture.
pub const OUTBOUND: u16 = 15001;
/// Inbound capture.
pub const INBOUND: u16 = 15006;
/// `/live`, `/ready`, `/metrics` on the pod's address.
pub const METRICS: u16 = 15020;
/// Sidecar admin on loopback.
pub const ADMIN: u16 = 15000;
/// Control plane: xDS, CA and OTLP from sidecars, plain text; only with `--insecure`.
pub const CONTROL_PLAIN: u16 = 15010;
/// Control plane: xDS, CA and OTLP from sidecars, mutual TLS.
pub const CONTROL_TLS: u16 = 15012;
/// Control plane: OTLP over gRPC from apps.
pub const OTLP_GRPC: u16 = 4317;
/// Control plane: OTLP over HTTP from apps.
pub const OTLP_HTTP: u16 = 4318;
/// Control plane: API and dashboard.
pub const API: u16 = 8080;
/// The uid that a sidecar runs as and that interception leaves alone.
pub const PROXY_UID: u32 = 2102;
/// The socket mark a sidecar puts on its own connections where it cannot have a uid of its own.
pub const PROXY_MARK: u32 = 0x2102;
