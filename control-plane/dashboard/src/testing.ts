/** Values for tests: complete, with what a test cares about replaced. */
import type { GraphEdge, GraphNode } from './api/model';

export function node(id: string, change: Partial<GraphNode> = {}): GraphNode {
  const rest = id.slice(id.indexOf(':') + 1);
  const [namespace, name] = rest.includes('/') ? rest.split('/') : [null, rest];
  return {
    id,
    kind: 'workload',
    name: name ?? rest,
    namespace: namespace ?? null,
    versions: [],
    sidecars: 1,
    health: 'healthy',
    healthReason: null,
    cause: null,
    incoming: { rps: 0, success: null },
    outgoing: { rps: 0, success: null },
    circuits: null,
    ...change,
  };
}

export function edge(source: string, target: string, change: Partial<GraphEdge> = {}): GraphEdge {
  return {
    id: `${source}>${target}`,
    source,
    target,
    protocol: 'http',
    services: [],
    reportedBy: 'client',
    idle: false,
    health: 'healthy',
    rate: 1,
    requests: 60,
    success: 1,
    latency: { p50: 1, p90: 2, p95: 3, p99: 4 },
    tls: 'none',
    bytesSent: 0,
    bytesReceived: 0,
    connections: null,
    failures: [],
    retries: null,
    circuits: null,
    firstSeen: null,
    lastSeen: null,
    routes: [],
    routesTotal: 0,
    routesFolded: 0,
    ...change,
  };
}
