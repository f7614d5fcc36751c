/** Values for tests: complete, with what a test cares about replaced. */
import type { Certificate, GraphEdge, GraphNode, Proxy } from './api/model';

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
    uninjected: 0,
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
    tlsCalls: { mutual: 0, simple: 0, none: 0 },
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

/** A sidecar with a certificate for a day, half of which is over at `now`. */
export function proxy(workload: string, now: number, change: Partial<Proxy> = {}): Proxy {
  const half = 43_200_000;
  const certificate: Certificate = { serial: '0a1b', notBefore: now - half, notAfter: now + half, issuer: 'CN=Weft intermediate', root: '1a2b3c4d' };
  return {
    id: `${workload}-1`,
    identity: `spiffe://cluster.local/ns/shop/sa/${workload}`,
    certificate,
    trustsBundle: true,
    clockBehindMs: 0,
    workload,
    namespace: 'shop',
    version: null,
    pod: null,
    addresses: [],
    connectedSince: now,
    subscriptions: 1,
    synced: true,
    rejected: null,
    lastReport: now,
    ...change,
  };
}
