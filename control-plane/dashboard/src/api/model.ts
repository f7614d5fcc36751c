/**
 * The picture as this page understands it: plain immutable values.
 *
 * Wire shapes stay in `decode.ts`; nothing else in the dashboard reads raw JSON. A field the server does not
 * send is `null` (unknown), never zero: the screen must not claim what nobody measured.
 */

export type NodeKind = 'workload' | 'service' | 'external' | 'unmeshed';
/** `mixed`: it changed during the window. `unknown`: nothing was reported, for instance on an idle edge. */
export type Tls = 'mutual' | 'simple' | 'none' | 'mixed' | 'unknown';
/** The server's word; the rule behind it stands in `lib/health.ts`. */
export type Health = 'idle' | 'healthy' | 'degraded' | 'failing';

export interface Latency {
  readonly p50: number | null;
  readonly p90: number | null;
  readonly p95: number | null;
  readonly p99: number | null;
}

/** Requests of all edges of a node in one direction. */
export interface Flow {
  readonly rps: number;
  readonly success: number | null;
}

/** How many circuits are in which state. */
export interface CircuitCounts {
  readonly open: number;
  readonly halfOpen: number;
  readonly closed: number;
}

/** Attempts beyond the first; `amplification` is all attempts per request, 1 when nothing was sent again. */
export interface Retries {
  readonly sent: number;
  /** Wanted, but beyond the budget. */
  readonly denied: number;
  readonly amplification: number;
}

export interface GraphNode {
  readonly id: string;
  readonly kind: NodeKind;
  readonly name: string;
  readonly namespace: string | null;
  readonly versions: readonly string[];
  /** Connected sidecars; null when the server does not say. */
  readonly sidecars: number | null;
  /** Pods that should have a sidecar and have none. */
  readonly uninjected: number;
  readonly health: Health;
  /** Why, in the server's words. */
  readonly healthReason: string | null;
  /** The node whose failures are the probable cause of this one's. */
  readonly cause: string | null;
  readonly incoming: Flow;
  readonly outgoing: Flow;
  /** Those in front of it, over all its callers; null where there are none. */
  readonly circuits: CircuitCounts | null;
}

export interface Failure {
  readonly reason: string;
  readonly count: number;
}

export interface Route {
  readonly method: string;
  readonly route: string;
  readonly rps: number;
  readonly requests: number;
  readonly success: number | null;
  readonly latency: Latency | null;
  readonly failures: readonly Failure[];
}

/** Connections that are not HTTP. */
export interface Connections {
  readonly opened: number;
  readonly ended: number;
  readonly failed: number;
  readonly openedPerSecond: number;
}

/** Calls by how they were protected on the wire; those that never had a connection are in none of these. */
export interface TlsCalls {
  readonly mutual: number;
  readonly simple: number;
  readonly none: number;
}

export interface GraphEdge {
  readonly id: string;
  readonly source: string;
  readonly target: string;
  readonly protocol: string;
  readonly services: readonly string[];
  /** Who counted: the caller's or the callee's sidecar. */
  readonly reportedBy: 'client' | 'server' | null;
  readonly idle: boolean;
  readonly health: Health;
  /** Calls per second: requests, or new connections where there are no requests. */
  readonly rate: number;
  readonly requests: number;
  /** Share of calls that did not fail, 0..1; null when none ended. */
  readonly success: number | null;
  /** Of requests, or of the life of ended connections. */
  readonly latency: Latency | null;
  readonly tls: Tls;
  readonly tlsCalls: TlsCalls;
  readonly bytesSent: number;
  readonly bytesReceived: number;
  readonly connections: Connections | null;
  readonly failures: readonly Failure[];
  /** null where nothing can be sent again. */
  readonly retries: Retries | null;
  readonly circuits: CircuitCounts | null;
  readonly firstSeen: number | null;
  readonly lastSeen: number | null;
  /** The busiest ones; the edge's detail has all. */
  readonly routes: readonly Route[];
  readonly routesTotal: number;
  readonly routesFolded: number;
}

/** Why there is nothing to see. */
export interface Diagnosis {
  /** `no_sidecar`, `no_traffic` … */
  readonly code: string;
  readonly text: string;
  readonly hint: string;
}

export interface Graph {
  readonly version: number;
  readonly at: number;
  readonly windowSeconds: number;
  readonly nodes: ReadonlyMap<string, GraphNode>;
  readonly edges: ReadonlyMap<string, GraphEdge>;
  readonly diagnosis: Diagnosis | null;
}

export interface Diff {
  readonly version: number;
  readonly baseVersion: number;
  readonly at: number | null;
  readonly nodes: { readonly upsert: readonly GraphNode[]; readonly remove: readonly string[] };
  readonly edges: { readonly upsert: readonly GraphEdge[]; readonly remove: readonly string[] };
  /** Absent in the message: unchanged. */
  readonly diagnosis?: Diagnosis | null;
}

/** What a sidecar showed when it connected; it connects again as soon as it has another. */
export interface Certificate {
  readonly serial: string;
  readonly notBefore: number;
  readonly notAfter: number;
  readonly issuer: string;
  /** The beginning of the root key's hash. */
  readonly root: string | null;
}

export interface Proxy {
  readonly id: string;
  /** Who it proved to be; null on a connection without proof. */
  readonly identity: string | null;
  readonly certificate: Certificate | null;
  /** null where there is no authority. */
  readonly trustsBundle: boolean | null;
  /** Negative: ahead; null until its first report. */
  readonly clockBehindMs: number | null;
  readonly workload: string;
  readonly namespace: string | null;
  readonly version: string | null;
  readonly pod: string | null;
  readonly addresses: readonly string[];
  readonly connectedSince: number | null;
  readonly subscriptions: number;
  /** Whether it has acknowledged everything sent to it. */
  readonly synced: boolean;
  /** What it said about the last resource it rejected, while that stands. */
  readonly rejected: string | null;
  /** null until its first report. */
  readonly lastReport: number | null;
}

/** What the picture itself does not tell. */
export interface Overview {
  readonly sidecars: number | null;
  readonly synced: number | null;
}

export interface ConfigError {
  readonly file: string;
  readonly line: number | null;
  /** `Kind namespace/name`. */
  readonly object: string | null;
  readonly field: string | null;
  readonly message: string;
}

/** One moment of one edge, for the sparklines. */
export interface Sample {
  readonly at: number;
  readonly rate: number;
  readonly failures: number;
  readonly p50: number | null;
  readonly p99: number | null;
  readonly bytesSent: number;
  readonly bytesReceived: number;
}

export interface EdgeDetail {
  readonly edge: GraphEdge;
  readonly series: readonly Sample[];
}
