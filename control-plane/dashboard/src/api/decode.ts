/**
 * Reads the API's JSON into the model, once, at the border.
 *
 * Unknown fields are ignored and missing ones become `null`, so an older page survives a newer server; what is
 * not even the right kind of thing (a graph without nodes) is an error the screen can show.
 */
import type {
  Certificate, CircuitCounts, ConfigError, Connections, Diagnosis, Diff, EdgeDetail, Failure, Flow, Graph, GraphEdge, GraphNode, Health,
  Latency, NodeKind, Overview, Proxy, Retries, Route, Sample, Tls, TlsCalls,
} from './model';
import { instant, keyed, list, Malformed, number, object, text, texts, type Json } from './json';
import { judge } from '../lib/health';

export function graph(value: unknown): Graph {
  const json = object(value, 'graph');
  return {
    version: number(json.version) ?? 0,
    at: instant(json.at) ?? Date.now(),
    windowSeconds: number(json.window_seconds) ?? 60,
    nodes: keyed(list(json.nodes).map(node)),
    edges: keyed(list(json.edges).map(edge)),
    diagnosis: diagnosis(json.diagnosis),
  };
}

export function diff(value: unknown): Diff {
  const json = object(value, 'diff');
  const version = number(json.version);
  const baseVersion = number(json.base_version);
  if (version === null || baseVersion === null) throw new Malformed('a diff without versions');
  const part = <T>(raw: unknown, one: (value: unknown) => T): { upsert: T[]; remove: string[] } => {
    const change = typeof raw === 'object' && raw !== null ? (raw as Json) : {};
    return { upsert: list(change.upsert).map(one), remove: list(change.remove).filter((id) => typeof id === 'string') };
  };
  return {
    version,
    baseVersion,
    at: instant(json.at),
    nodes: part(json.nodes, node),
    edges: part(json.edges, edge),
    ...('diagnosis' in json ? { diagnosis: diagnosis(json.diagnosis) } : {}),
  };
}

const KINDS: readonly NodeKind[] = ['workload', 'service', 'external', 'unmeshed'];
const TLS: readonly Tls[] = ['mutual', 'simple', 'none', 'mixed'];
const HEALTH: readonly Health[] = ['idle', 'healthy', 'degraded', 'failing'];

function node(value: unknown): GraphNode {
  const json = object(value, 'node');
  const id = text(json.id);
  if (id === null) throw new Malformed('a node without id');
  return {
    id,
    kind: KINDS.find((kind) => kind === json.kind) ?? 'external',
    name: text(json.name) ?? id,
    namespace: text(json.namespace),
    versions: texts(json.versions),
    sidecars: number(json.sidecars),
    uninjected: number(json.uninjected) ?? 0,
    health: HEALTH.find((health) => health === json.health) ?? 'idle',
    healthReason: text(json.health_reason),
    cause: text(json.cause),
    incoming: flow(json.incoming),
    outgoing: flow(json.outgoing),
    circuits: circuits(json.circuits),
  };
}

function flow(value: unknown): Flow {
  const json = typeof value === 'object' && value !== null ? (value as Json) : {};
  return { rps: number(json.requests_per_second) ?? 0, success: number(json.success_rate) };
}

function edge(value: unknown): GraphEdge {
  const json = object(value, 'edge');
  const id = text(json.id);
  const source = text(json.source);
  const target = text(json.target);
  if (id === null || source === null || target === null) throw new Malformed('an edge without id or ends');
  const rate = number(json.requests_per_second) ?? 0;
  const opened = connections(json.connections);
  const success = number(json.success_rate);
  return {
    id,
    source,
    target,
    protocol: text(json.protocol) ?? 'tcp',
    services: texts(json.services),
    reportedBy: json.reported_by === 'client' || json.reported_by === 'server' ? json.reported_by : null,
    idle: json.idle === true,
    health: HEALTH.find((health) => health === json.health) ?? judge(rate, success),
    rate: opened && rate === 0 ? opened.openedPerSecond : rate,
    requests: number(json.requests) ?? 0,
    success,
    latency: latency(json.latency_ms),
    tls: TLS.find((word) => word === json.tls) ?? 'unknown',
    tlsCalls: tlsCalls(json.tls_calls),
    bytesSent: number(json.bytes_sent_per_second) ?? 0,
    bytesReceived: number(json.bytes_received_per_second) ?? 0,
    connections: opened,
    failures: list(json.failures).map(failure),
    retries: retries(json.retries),
    circuits: circuits(json.circuits),
    firstSeen: instant(json.first_seen),
    lastSeen: instant(json.last_seen),
    routes: list(json.routes).map(route),
    routesTotal: number(json.routes_total) ?? list(json.routes).length,
    routesFolded: number(json.routes_folded) ?? 0,
  };
}

function tlsCalls(value: unknown): TlsCalls {
  const json = typeof value === 'object' && value !== null ? (value as Json) : {};
  return { mutual: number(json.mutual) ?? 0, simple: number(json.simple) ?? 0, none: number(json.none) ?? 0 };
}

function certificate(value: unknown): Certificate | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  const [notBefore, notAfter] = [instant(json.not_before), instant(json.not_after)];
  if (notBefore === null || notAfter === null) return null;
  return { serial: text(json.serial) ?? '', notBefore, notAfter, issuer: text(json.issuer) ?? '', root: text(json.root) };
}

function connections(value: unknown): Connections | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return {
    opened: number(json.opened) ?? 0,
    ended: number(json.ended) ?? 0,
    failed: number(json.failed) ?? 0,
    openedPerSecond: number(json.opened_per_second) ?? 0,
  };
}

function circuits(value: unknown): CircuitCounts | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return { open: number(json.open) ?? 0, halfOpen: number(json.half_open) ?? 0, closed: number(json.closed) ?? 0 };
}

function retries(value: unknown): Retries | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return { sent: number(json.sent) ?? 0, denied: number(json.denied) ?? 0, amplification: number(json.amplification) ?? 1 };
}

function route(value: unknown): Route {
  const json = object(value, 'route');
  return {
    method: text(json.method) ?? '',
    route: text(json.route) ?? '/',
    rps: number(json.requests_per_second) ?? 0,
    requests: number(json.requests) ?? 0,
    success: number(json.success_rate),
    latency: latency(json.latency_ms),
    failures: list(json.failures).map(failure),
  };
}

function failure(value: unknown): Failure {
  const json = object(value, 'failure');
  return { reason: text(json.reason) ?? 'unknown', count: number(json.count) ?? 0 };
}

export function latency(value: unknown): Latency | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return { p50: number(json.p50), p90: number(json.p90), p95: number(json.p95), p99: number(json.p99) };
}

function diagnosis(value: unknown): Diagnosis | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return { code: text(json.code) ?? '', text: text(json.text) ?? '', hint: text(json.hint) ?? '' };
}

export function edgeDetail(value: unknown): EdgeDetail {
  const json = object(value, 'edge detail');
  return { edge: edge(json.edge), series: series(json.series, instant(json.at)) };
}

/** Sidecars report every second, so the newest slots are still being filled: they would look like a fall. */
const UNFINISHED_MS = 2_000;

/** Column by column on the wire, moment by moment here; without the unfinished end. */
function series(value: unknown, now: number | null): Sample[] {
  if (typeof value !== 'object' || value === null) return [];
  const json = value as Json;
  const start = instant(json.start);
  const step = number(json.step_seconds);
  if (start === null || step === null) return [];
  const column = (key: string, index: number): number | null => number(list(json[key])[index]);
  const samples = list(json.requests_per_second).map((rate, index) => ({
    at: start + index * step * 1000,
    rate: number(rate) ?? 0,
    failures: column('failures_per_second', index) ?? 0,
    p50: column('p50_ms', index),
    p99: column('p99_ms', index),
    bytesSent: column('bytes_sent_per_second', index) ?? 0,
    bytesReceived: column('bytes_received_per_second', index) ?? 0,
  }));
  const finished = now === null ? Infinity : now - UNFINISHED_MS;
  return samples.filter((sample) => sample.at + step * 1000 <= finished);
}

export function proxies(value: unknown): Proxy[] {
  return list(object(value, 'list of sidecars').proxies).map((item) => {
    const json = object(item, 'sidecar');
    const reports = typeof json.reports === 'object' && json.reports !== null ? (json.reports as Json) : {};
    return {
      id: text(json.instance) ?? '',
      identity: text(json.identity),
      certificate: certificate(json.certificate),
      trustsBundle: typeof json.trusts_bundle === 'boolean' ? json.trusts_bundle : null,
      clockBehindMs: number(reports.clock_behind_ms),
      workload: text(json.workload) ?? '',
      namespace: text(json.namespace),
      version: text(json.version),
      pod: text(json.pod),
      addresses: texts(json.addresses),
      connectedSince: instant(json.connected_since),
      subscriptions: number(json.subscriptions) ?? 0,
      synced: json.synced === true,
      rejected: text(json.rejected),
      lastReport: instant(reports.last_report_at),
    };
  });
}

export function overview(value: unknown): Overview {
  const counts = object(value, 'overview').proxies;
  const json = typeof counts === 'object' && counts !== null ? (counts as Json) : {};
  return { sidecars: number(json.connected), synced: number(json.synced) };
}

export function configErrors(value: unknown): ConfigError[] {
  return list(object(value, 'list of problems').errors).map((item) => {
    const json = object(item, 'problem');
    return {
      file: text(json.file) ?? '',
      line: number(json.line),
      object: text(json.object),
      field: text(json.field),
      message: text(json.message) ?? '',
    };
  });
}
