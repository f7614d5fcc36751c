//! Telemetry attribute and metric names: OpenTelemetry semantic conventions where they have a word, `weft.`
//! where they have none.
//!
//! Both the reporter in the sidecar and the receiver in the control plane spell names only through this
//! module, so a name cannot drift on one side.

// --- resource attributes (who reports) -------------------------------------------------------------------

/// The workload that reports, for instance the Deployment's name.
pub const SERVICE_NAME: &str = "service.name";
/// The workload's namespace.
pub const SERVICE_NAMESPACE: &str = "service.namespace";
/// The workload's version, when known.
pub const SERVICE_VERSION: &str = "service.version";
/// One start of one proxy. A restarted proxy has a new one, so report sequences never collide.
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
/// The pod's name.
pub const K8S_POD_NAME: &str = "k8s.pod.name";

// --- metrics ---------------------------------------------------------------------------------------------

/// Outbound HTTP and gRPC requests, seconds, exponential histogram.
pub const HTTP_CLIENT_REQUEST_DURATION: &str = "http.client.request.duration";
/// Inbound HTTP and gRPC requests, seconds, exponential histogram.
pub const HTTP_SERVER_REQUEST_DURATION: &str = "http.server.request.duration";
/// Bytes of an outbound edge, sum, split by [`NETWORK_IO_DIRECTION`] as the *caller* sees it.
pub const CLIENT_IO: &str = "weft.client.io";
/// Bytes of an inbound edge, sum, split by [`NETWORK_IO_DIRECTION`] as the *server* sees it.
pub const SERVER_IO: &str = "weft.server.io";
/// Outbound connections that were not HTTP and have ended (or failed: see [`ERROR_TYPE`]), seconds from accept to close,
/// exponential histogram.
pub const CLIENT_CONNECTION_DURATION: &str = "weft.client.connection.duration";
/// Inbound counterpart of [`CLIENT_CONNECTION_DURATION`].
pub const SERVER_CONNECTION_DURATION: &str = "weft.server.connection.duration";
/// Outbound connections that were not HTTP and have been opened, sum.
pub const CLIENT_CONNECTIONS: &str = "weft.client.connections";
/// Inbound counterpart of [`CLIENT_CONNECTIONS`].
pub const SERVER_CONNECTIONS: &str = "weft.server.connections";
/// Requests whose route was folded into [`ROUTE_OVERFLOW`] because the cap on route templates was reached, sum.
/// Carries the peer attributes of the edge it happened on.
pub const ROUTE_FOLDED: &str = "weft.http.route.folded";
/// Data points that a proxy lost because its report buffer was full, sum.
pub const REPORT_DROPPED: &str = "weft.report.dropped";
/// Attempts beyond the first that were sent or refused, sum, split by [`RETRY_OUTCOME`]. Carries the peer attributes of the
/// edge. Requests plus what was sent here, divided by requests, is the amplification.
pub const CLIENT_RETRIES: &str = "weft.client.retries";
/// Outbound requests by the configured rule that routed them and the backend it chose, seconds, exponential histogram.
pub const CLIENT_ROUTE_DURATION: &str = "weft.client.route.duration";
/// What rules of access said to calls, sum. Carries the attributes of the inbound edge, [`ACCESS_RULE`] and
/// [`ACCESS_VERDICT`].
pub const ACCESS_DECISIONS: &str = "weft.access.decisions";
/// State of a circuit as one proxy sees it, gauge: 0 closed, 1 half open, 2 open. Carries everything that is known of the
/// circuit as attributes, so that one point is enough to show it.
pub const CIRCUIT_STATE: &str = "weft.circuit.state";
/// Outbound requests by where their trace came from, sum, split by [`TRACE_ORIGIN`].
pub const TRACE_REQUESTS: &str = "weft.trace.requests";
/// How long protocol detection took, seconds, exponential histogram.
pub const DETECT_DURATION: &str = "weft.detect.duration";

// --- metric attributes -----------------------------------------------------------------------------------

/// Request method; methods outside RFC 9110 and PATCH are reported as `_OTHER`.
pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
/// Response status as a number.
pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
/// Path template, for instance `/users/{id}`.
pub const HTTP_ROUTE: &str = "http.route";
/// Present iff the request or connection failed: a [`Reason`](crate::Reason) word when the proxy answered,
/// else the HTTP status (`500`) or gRPC status name in lower_snake (`unavailable`).
pub const ERROR_TYPE: &str = "error.type";
/// `http`, `tls` or `tcp`.
pub const NETWORK_PROTOCOL_NAME: &str = "network.protocol.name";
/// `1.0`, `1.1` or `2`.
pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
/// `transmit` or `receive`.
pub const NETWORK_IO_DIRECTION: &str = "network.io.direction";
/// `grpc` for gRPC requests; absent otherwise.
pub const RPC_SYSTEM: &str = "rpc.system";
/// gRPC status as a number.
pub const RPC_GRPC_STATUS_CODE: &str = "rpc.grpc.status_code";
/// The host that was asked for: a service's name, an SNI, an authority or an address.
pub const SERVER_ADDRESS: &str = "server.address";
/// The port that was asked for.
pub const SERVER_PORT: &str = "server.port";
/// The caller's address as the inbound side saw it. Beside a verified identity it tells workloads apart that share one.
pub const CLIENT_ADDRESS: &str = "client.address";

/// Where a request's trace came from: `carried` on by the app from a request that it was sent, its `own`, `new` (made here), or
/// `unprompted` (nobody had called the app yet); only on [`TRACE_REQUESTS`].
pub const TRACE_ORIGIN: &str = "weft.trace.origin";
/// How protocol detection ended; only on [`DETECT_DURATION`].
pub const DETECT_RESULT: &str = "weft.detect.result";
/// The workload on the other side of the edge.
pub const PEER_WORKLOAD: &str = "weft.peer.workload";
/// The namespace of the workload on the other side of the edge.
pub const PEER_NAMESPACE: &str = "weft.peer.namespace";
/// The version of the workload on the other side of the edge.
pub const PEER_VERSION: &str = "weft.peer.version";
/// The service that was called, as `name.namespace`. On both sides of an edge.
pub const PEER_SERVICE: &str = "weft.peer.service";
/// Whom the certificate of the other side of the edge names, verified: a SPIFFE id. Only where [`TLS`] is `mutual`.
pub const PEER_IDENTITY: &str = "weft.peer.identity";
/// How the bytes were protected: `mutual`, `simple` or `none`.
pub const TLS: &str = "weft.tls";

/// What became of a further attempt: [`RETRY_SENT`] or [`RETRY_BUDGET_EXHAUSTED`]; only on [`CLIENT_RETRIES`].
pub const RETRY_OUTCOME: &str = "weft.retry.outcome";
/// The configured rule: `HTTPRoute/<namespace>/<name>/<rule>`, `GRPCRoute/…`, or [`ROUTE_DEFAULT`].
pub const ROUTE_NAME: &str = "weft.route.name";
/// The cluster that a rule chose, for instance `orders-v2.shop:8080`.
pub const ROUTE_BACKEND: &str = "weft.route.backend";

// --- access ---------------------------------------------------------------------------------------------

/// The rule that spoke: `AccessPolicy/<namespace>/<name>/<rule>`, or [`NO_RULE`](crate::access::NO_RULE).
pub const ACCESS_RULE: &str = "weft.access.rule";
/// What it said: one of the words in [`access::verdict`](crate::access::verdict).
pub const ACCESS_VERDICT: &str = "weft.access.verdict";

// --- circuits --------------------------------------------------------------------------------------------

/// Name of the log record that tells of a circuit's transition.
pub const CIRCUIT_TRANSITION: &str = "weft.circuit.transition";
/// What a circuit guards: `endpoint` (one address), `service` (all of a cluster) or `limit` (its concurrency).
pub const CIRCUIT_KIND: &str = "weft.circuit.kind";
/// The cluster a circuit belongs to.
pub const CIRCUIT_CLUSTER: &str = "weft.circuit.cluster";
/// Why it is, or last was, open: `consecutive_5xx`, `error_ratio`, `slow_calls`, `health_check`, …
pub const CIRCUIT_CAUSE: &str = "weft.circuit.cause";
/// What the cause's measure was compared with, a whole number: errors in a row, percent. Absent where there is none.
pub const CIRCUIT_THRESHOLD: &str = "weft.circuit.threshold";
/// When it came into its state, Unix nanoseconds.
pub const CIRCUIT_SINCE: &str = "weft.circuit.since";
/// When it lets something through again, Unix nanoseconds; absent while closed.
pub const CIRCUIT_NEXT_PROBE: &str = "weft.circuit.next_probe";
/// Calls in the circuit's window.
pub const CIRCUIT_CALLS: &str = "weft.circuit.calls";
/// Failed calls in the circuit's window.
pub const CIRCUIT_ERRORS: &str = "weft.circuit.errors";
/// Calls in the circuit's window that were slower than its threshold.
pub const CIRCUIT_SLOW: &str = "weft.circuit.slow";
/// The state before a transition: `closed`, `half_open` or `open`.
pub const CIRCUIT_FROM: &str = "weft.circuit.from";
/// The state after a transition.
pub const CIRCUIT_TO: &str = "weft.circuit.to";
/// Position of an event in its proxy instance's series, from 1; a receiver ignores what it has seen.
pub const EVENT_SEQUENCE: &str = "weft.event.sequence";
/// The endpoint's IP address.
pub const NETWORK_PEER_ADDRESS: &str = "network.peer.address";
/// The endpoint's port.
pub const NETWORK_PEER_PORT: &str = "network.peer.port";

// --- attribute values ------------------------------------------------------------------------------------

/// The route of every request beyond the cap on route templates.
pub const ROUTE_OVERFLOW: &str = "__other__";
/// The method of every request whose method is not a registered one.
pub const METHOD_OTHER: &str = "_OTHER";
/// Value of [`ERROR_TYPE`] where only the fact counts, as on [`CLIENT_ROUTE_DURATION`].
pub const ERROR_FAILED: &str = "failed";
/// Value of [`RETRY_OUTCOME`].
pub const RETRY_SENT: &str = "sent";
/// Value of [`RETRY_OUTCOME`].
pub const RETRY_BUDGET_EXHAUSTED: &str = "budget_exhausted";
/// Value of [`ROUTE_NAME`] where no route object is attached to the service.
pub const ROUTE_DEFAULT: &str = "default";
/// Value of [`NETWORK_IO_DIRECTION`].
pub const IO_TRANSMIT: &str = "transmit";
/// Value of [`NETWORK_IO_DIRECTION`].
pub const IO_RECEIVE: &str = "receive";
