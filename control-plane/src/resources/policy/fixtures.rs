//! Policies, good and bad, for the tests of all who read them: the strict reader, and the schemas for API servers.

/// What is written instead of what, the field that is wrong then, and a part of why.
pub(crate) type Mistake = (&'static str, &'static str, &'static str, &'static str);

/// A CircuitBreaker with something of everything.
pub(crate) const BREAKER: &str = "\
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: orders, sectionName: http}]
  endpoints:
    consecutiveFailures: 3
    interval: 1s
    baseEjectionTime: 10s
    maxEjectionTime: 60s
    maxEjectionPercent: 34
    successRate: {stdevFactor: 2.5}
  service:
    window: 10s
    errorPercent: 40
    slowCall: {threshold: 2s}
    halfOpenProbes: 2
  limits: {maxRequests: 100}
";

/// A TrafficPolicy with something of everything.
pub(crate) const POLICY: &str = "\
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  timeouts: {request: 3s, backendRequest: 1s, connect: 500ms}
  retry: {attempts: 2, retryOn: [5xx, unavailable], statusCodes: [429], backoff: 25ms, backoffMax: 250ms}
  retryBudget: {percent: 10, minConcurrency: 1}
  loadBalancer:
    type: RingHash
    hashOn: {cookie: {name: Session, ttl: 0s}}
    panicThreshold: 0
    zonePreference: {enabled: true, minHealthyPercent: 70}
  healthCheck: {type: HTTP, path: /healthz, expectedStatuses: [200, 204], interval: 5s}
  rateLimit: {requests: 100, per: 1s, burst: 150, by: [caller]}
  concurrency: {adaptive: {maxConcurrency: 200}}
  fault: {delay: {fixed: 1s, percent: 0.5}, abort: {grpcStatus: 14, percent: 10}, headers: [{name: X-Test, value: a}]}
  mirror: {backendRef: {name: shadow, port: 8080}, percent: 12.5}
";

/// An AccessPolicy with something of everything.
pub(crate) const ACCESS: &str = "apiVersion: weft.dev/v1alpha1
kind: AccessPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: Deny
  mode: Enforce
  rules:
  - from: [{serviceAccount: web, namespace: front, trustDomain: elsewhere.org}, {unauthenticated: true}, {notServiceAccount: api}]
    to: [{methods: [GET, PURGE], paths: [{type: Exact, value: /a}, {value: /b/}], headers: [{name: X-Team, value: blue}], ports: [8080]}]
  - to: [{grpc: {service: shop.Orders}}]
  mtls: {mode: strict, ports: {'9090': disabled}}
";

/// Mistakes in [`BREAKER`].
pub(crate) const BREAKER_MISTAKES: &[Mistake] = &[
    ("consecutiveFailures", "consecutiveFailure", "spec.endpoints.consecutiveFailure", "unknown field"),
    ("consecutiveFailures: 3", "consecutiveFailures: -1", "spec.endpoints.consecutiveFailures", "0 or more"),
    (
        "maxEjectionPercent: 34",
        "maxEjectionPercent: 101",
        "spec.endpoints.maxEjectionPercent",
        "between 0 and 100",
    ),
    (
        "maxEjectionTime: 60s",
        "maxEjectionTime: 1s",
        "spec.endpoints.maxEjectionTime",
        "shorter than baseEjectionTime",
    ),
    ("interval: 1s", "interval: 0s", "spec.endpoints.interval", "longer than zero"),
    ("interval: 1s", "interval: soon", "spec.endpoints.interval", "not a duration"),
    ("stdevFactor: 2.5", "stdevFactor: 0", "spec.endpoints.successRate.stdevFactor", "between 0.001"),
    ("window: 10s", "window: 2h", "spec.service.window", "longer than 1h"),
    ("errorPercent: 40", "errorPercent: 0", "spec.service.errorPercent", "between 1 and 100"),
    ("halfOpenProbes: 2", "halfOpenProbes: 64", "spec.service.halfOpenProbes", "between 1 and 63"),
    ("slowCall: {threshold: 2s}", "slowCall: {percent: 2}", "spec.service.slowCall", "threshold"),
    ("maxRequests: 100", "maxRequests: 0", "spec.limits.maxRequests", "1 or more"),
    ("kind: Service", "kind: Deployment", "spec.targetRefs[0].kind", "not a Service"),
    (
        "group: '', kind: Service",
        "group: gateway.networking.k8s.io, kind: HTTPRoute",
        "spec.targetRefs[0].kind",
        "a route has no endpoints",
    ),
];

/// Mistakes in [`POLICY`].
pub(crate) const POLICY_MISTAKES: &[Mistake] = &[
    ("connect: 500ms", "conect: 500ms", "spec.timeouts.conect", "unknown field"),
    ("request: 3s", "request: 100ms", "spec.timeouts.request", "shorter than backendRequest"),
    ("attempts: 2", "attempts: 11", "spec.retry.attempts", "between 0 and 10"),
    ("retryOn", "on", "spec.retry.on", "it is called retryOn"),
    ("unavailable", "unavailible", "spec.retry.retryOn[1]", "is not one of 5xx"),
    ("[429]", "[200]", "spec.retry.statusCodes[0]", "not an error status"),
    ("backoffMax: 250ms", "backoffMax: 1ms", "spec.retry.backoffMax", "shorter than backoff"),
    (
        "percent: 10, minConcurrency",
        "percent: 200, minConcurrency",
        "spec.retryBudget.percent",
        "between 0 and 100",
    ),
    ("RingHash", "Ringhash", "spec.loadBalancer.type", "is not one of"),
    ("type: RingHash", "type: Random", "spec.loadBalancer.hashOn", "RingHash and Maglev only"),
    (
        "cookie: {name: Session, ttl: 0s}",
        "header: a b",
        "spec.loadBalancer.hashOn.header",
        "not a header name",
    ),
    ("cookie: {name: Session, ttl: 0s}", "source: false", "spec.loadBalancer.hashOn", "not one of header"),
    ("panicThreshold: 0", "slowStart: {window: 10s}", "spec.loadBalancer.slowStart", "PeakEwma"),
    ("type: HTTP", "type: TCP", "spec.healthCheck.path", "means nothing"),
    ("path: /healthz", "service: x", "spec.healthCheck.service", "means nothing"),
    ("interval: 5s", "interval: 5s, timeout: 6s", "spec.healthCheck.timeout", "longer than interval"),
    ("requests: 100", "requests: 0", "spec.rateLimit.requests", "1 or more"),
    ("per: 1s", "per: 10ms", "spec.rateLimit.per", "shorter than 50ms"),
    ("by: [caller]", "by: [service, caller]", "spec.rateLimit.by", "excludes"),
    ("by: [caller]", "by: [client]", "spec.rateLimit.by[0]", "not one of service"),
    ("maxConcurrency: 200", "maxConcurrency: 1", "spec.concurrency.adaptive.maxConcurrency", "less than"),
    ("percent: 0.5", "percent: 101", "spec.fault.delay.percent", "between 0 and 100"),
    ("grpcStatus: 14", "grpcStatus: 17", "spec.fault.abort.grpcStatus", "between 0 and 16"),
    ("grpcStatus: 14", "grpcStatus: 14, httpStatus: 503", "spec.fault.abort.grpcStatus", "excludes"),
    ("{name: shadow, port: 8080}", "{name: shadow, port: 0}", "spec.mirror.backendRef.port", "not a port"),
    ("targetRefs: [{kind: Service, name: orders}]", "targetRefs: []", "spec.targetRefs", "is empty"),
];

/// Mistakes in [`ACCESS`].
pub(crate) const ACCESS_MISTAKES: &[Mistake] = &[
    ("action: Deny", "action: deny", "spec.action", "not one of Allow, Deny"),
    ("mode: Enforce", "mode: Warn", "spec.mode", "not one of Enforce, Audit"),
    ("mode: Enforce", "mode: Audit", "spec.mtls", "cannot be audited"),
    ("action: Deny", "acton: Deny", "spec.acton", "unknown field"),
    ("serviceAccount: web", "serviceAccounts: web", "spec.rules[0].from[0].serviceAccounts", "unknown field"),
    ("serviceAccount: web", "serviceAccount: Web", "spec.rules[0].from[0].serviceAccount", "not a name"),
    (
        "unauthenticated: true",
        "unauthenticated: false",
        "spec.rules[0].from[1].unauthenticated",
        "say authenticated: true",
    ),
    (
        "unauthenticated: true",
        "unauthenticated: true, namespace: a",
        "spec.rules[0].from[1].unauthenticated",
        "excludes everything else",
    ),
    ("{unauthenticated: true}", "{}", "spec.rules[0].from[1]", "says nothing"),
    (
        "{unauthenticated: true}",
        "{workload: web}",
        "spec.rules[0].from[1].workload",
        "unknown field: a certificate names a service account and no workload; write serviceAccount",
    ),
    ("[GET, PURGE]", "[GET, 'A B']", "spec.rules[0].to[0].methods[1]", "not a method"),
    ("[GET, PURGE]", "[]", "spec.rules[0].to[0].methods", "leave it out for any"),
    ("value: /a", "value: a", "spec.rules[0].to[0].paths[0].value", "begin with a slash"),
    ("value: /a", "value: /a/../b", "spec.rules[0].to[0].paths[0].value", "segment of dots"),
    ("[8080]", "[0]", "spec.rules[0].to[0].ports[0]", "not a port"),
    ("X-Team", "'X Team'", "spec.rules[0].to[0].headers[0].name", "not a header name"),
    ("{grpc: {service: shop.Orders}}", "{}", "spec.rules[1].to[0]", "says nothing"),
    ("{grpc: {service: shop.Orders}}", "{grpc: {}}", "spec.rules[1].to[0].grpc", "neither a service"),
    ("{grpc: {", "{methods: [GET], grpc: {", "spec.rules[1].to[0].methods", "excluded by grpc"),
    ("mode: strict", "mode: Strict", "spec.mtls.mode", "not one of strict"),
    ("'9090': disabled", "http: disabled", "spec.mtls.ports.http", "not a port"),
    ("{mode: strict, ports: {'9090': disabled}}", "{}", "spec.mtls", "says nothing"),
    (
        "{kind: Service, name: orders}",
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}",
        "spec.targetRefs[0].kind",
        "name a Service",
    ),
];
