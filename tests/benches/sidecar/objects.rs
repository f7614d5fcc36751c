//! What the control plane of the bench is told: services with nothing configured, and their twins with everything.
//!
//! The twins have 100 route rules, of which the load takes the last, and every policy set to values that no request of
//! the load meets: what is measured is the asking, not the refusing.

use std::fmt::Write as _;

use crate::load::Protocol;

/// Rules of a service with everything.
const RULES: usize = 100;

/// Which sidecar is measured, and with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    InboundPlain,
    InboundLimited,
    OutboundPlain,
    OutboundPolicies,
}

/// The service that a sidecar stands for.
pub(crate) fn service(setting: Setting, protocol: Protocol) -> String {
    let twin = match setting {
        Setting::InboundPlain | Setting::OutboundPlain => "plain",
        Setting::InboundLimited => "limited",
        Setting::OutboundPolicies => "full",
    };
    format!("{twin}-{protocol}.bench:80")
}

/// The service that the callee of a pair registers for.
pub(crate) fn pair(protocol: Protocol) -> String {
    format!("pair-{protocol}.bench:80")
}

/// Every object, as YAML documents.
pub(crate) fn all(backend_h1: u16, backend_h2: u16) -> String {
    let mut yaml = String::new();
    for (protocol, backend) in [(Protocol::H1, backend_h1), (Protocol::H2, backend_h2)] {
        for (twin, configured) in [("plain", false), ("full", true)] {
            let name = format!("{twin}-{protocol}");
            yaml += &declared(&name, protocol, Some(backend));
            if configured {
                yaml += &routes(&name);
                yaml += &policies(&name);
            }
        }
        let limited = format!("limited-{protocol}");
        yaml += &declared(&limited, protocol, None);
        let pair = format!("pair-{protocol}");
        yaml += &declared(&pair, protocol, None);
        yaml += &strict(&pair);
        yaml += &routes(&limited);
        yaml += &limits(&limited);
    }
    yaml
}

/// A service, and the backend as its endpoint where it does not register itself.
fn declared(name: &str, protocol: Protocol, backend: Option<u16>) -> String {
    let word = protocol.declared();
    let mut yaml = format!(
        "---
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: bench}}
spec:
  ports: [{{name: main, port: 80, protocol: TCP, appProtocol: {word}}}]
"
    );
    if let Some(port) = backend {
        // Written into a string, which cannot fail.
        let _written = write!(
            yaml,
            "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}, namespace: bench, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports: [{{name: main, port: {port}, protocol: TCP}}]
endpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]
"
        );
    }
    yaml
}

/// Rules for paths, methods, headers and query parameters that the load does not have, and one for the rest.
fn routes(name: &str) -> String {
    let mut yaml = String::new();
    // Gateway API allows 16 rules to a route.
    for (route, rules) in (0..RULES).collect::<Vec<_>>().chunks(16).enumerate() {
        let _written = write!(
            yaml,
            "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}-{route}, namespace: bench}}
spec:
  parentRefs: [{{group: \"\", kind: Service, name: {name}, port: 80}}]
  rules:
"
        );
        for &rule in rules {
            let matches = match (rule + 1 == RULES, rule % 4) {
                (true, _) => "{path: {type: PathPrefix, value: /}}".to_owned(),
                (false, 0) => format!("{{path: {{type: Exact, value: /orders/{rule}}}, method: GET}}"),
                (false, 1) => format!("{{path: {{type: PathPrefix, value: /users/{rule}}}}}"),
                (false, 2) => format!(
                    "{{path: {{type: PathPrefix, value: /}}, headers: [{{name: x-team, value: team-{rule}}}]}}"
                ),
                (false, _) => format!(
                    "{{path: {{type: RegularExpression, value: '/v[0-9]+/items-{rule}/.*'}}, method: POST}}"
                ),
            };
            let _written = writeln!(
                yaml,
                "  - matches: [{matches}]\n    backendRefs: [{{name: {name}, port: 80}}]\n    timeouts: {{request: 30s}}"
            );
        }
    }
    yaml
}

/// Everything that the caller's sidecar does.
fn policies(name: &str) -> String {
    format!(
        "---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: bench}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: {name}}}]
  timeouts: {{request: 30s, connect: 2s}}
  retry: {{attempts: 2, retryOn: [5xx, connect-failure, reset], perTryTimeout: 10s}}
  retryBudget: {{percent: 20, minConcurrency: 3}}
  loadBalancer: {{type: PeakEwma, panicThreshold: 50}}
  fault:
    delay: {{fixed: 1s, percent: 100}}
    headers: [{{name: x-fault, value: please}}]
---
apiVersion: weft.dev/v1alpha1
kind: CircuitBreaker
metadata: {{name: {name}, namespace: bench}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: {name}}}]
  endpoints:
    consecutiveFailures: 5
    failurePercentage: {{threshold: 85, minimumHosts: 5, requestVolume: 50}}
    successRate: {{stdevFactor: 1.9, minimumHosts: 5, requestVolume: 100}}
  service: {{window: 10s, minimumCalls: 20, errorPercent: 50, slowCall: {{threshold: 2s, percent: 80}}}}
  limits: {{maxConnections: 10000, maxPendingRequests: 10000, maxRequests: 10000, maxRetries: 100}}
"
    )
}

/// Nothing but mutual TLS, so that what is measured cannot be anything else.
fn strict(name: &str) -> String {
    format!(
        "---
apiVersion: weft.dev/v1alpha1
kind: AccessPolicy
metadata: {{name: {name}, namespace: bench}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: {name}}}]
  mtls: {{mode: strict}}
"
    )
}

/// What the callee's sidecar does.
fn limits(name: &str) -> String {
    format!(
        "---
apiVersion: weft.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}, namespace: bench}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: {name}}}]
  rateLimit: {{requests: 10000000, per: 1s}}
"
    )
}
