/**
 * How the page judges and sums up. The server judges nodes and edges; its rule is repeated here for the legend,
 * for sums that only the page makes (the overview), and for a server that sends no verdict. Pure.
 */
import type { Graph, GraphEdge, Health } from '../api/model';

/** From this share of failures an edge is degraded … */
export const DEGRADED_FROM = 0.01;
/** … and from this one it is failing. */
export const FAILING_FROM = 0.1;

const ORDER: readonly Health[] = ['idle', 'healthy', 'degraded', 'failing'];

export function judge(rate: number, success: number | null): Health {
  if (rate <= 0) return 'idle';
  if (success === null) return 'healthy';
  // A hair of tolerance: 1 - 0.99 is not 0.01 in binary.
  const failed = 1 - success + 1e-9;
  if (failed >= FAILING_FROM) return 'failing';
  return failed >= DEGRADED_FROM ? 'degraded' : 'healthy';
}

export function severity(health: Health): number {
  return ORDER.indexOf(health);
}

/** Whether an edge is made of requests; the life of an opaque connection is not a latency. */
export function hasRequests(edge: GraphEdge): boolean {
  return edge.protocol !== 'tcp' && edge.protocol !== 'tls';
}

export interface Sum {
  readonly rps: number;
  readonly success: number | null;
  /** The slowest of the edges: an upper bound, because quantiles of edges do not add up. */
  readonly slowest: GraphEdge | null;
}

/** The requests of several edges together. */
export function sum(edges: Iterable<GraphEdge>): Sum {
  let rps = 0;
  let judged = 0;
  let good = 0;
  let slowest: GraphEdge | null = null;
  for (const edge of edges) {
    if (!hasRequests(edge)) continue;
    rps += edge.rate;
    if (edge.success !== null) {
      judged += edge.rate;
      good += edge.rate * edge.success;
    }
    const p99 = edge.latency?.p99 ?? null;
    if (p99 !== null && p99 > (slowest?.latency?.p99 ?? -1)) slowest = edge;
  }
  return { rps, success: judged > 0 ? good / judged : null, slowest };
}

export interface Arriving {
  /** The largest p99 among the edges that arrive. */
  readonly p99: number | null;
  /** Bytes per second of opaque connections, both ways; null where there are none. */
  readonly opaqueBytes: number | null;
}

/** What the edges say of each node that the node itself does not carry. */
export function arriving(graph: Graph): ReadonlyMap<string, Arriving> {
  const result = new Map<string, Arriving>();
  for (const edge of graph.edges.values()) {
    const { p99, opaqueBytes } = result.get(edge.target) ?? { p99: null, opaqueBytes: null };
    const slow = hasRequests(edge) ? (edge.latency?.p99 ?? null) : null;
    const bytes = hasRequests(edge) || edge.idle ? null : edge.bytesSent + edge.bytesReceived;
    result.set(edge.target, {
      p99: slow === null ? p99 : Math.max(slow, p99 ?? 0),
      opaqueBytes: bytes === null ? opaqueBytes : bytes + (opaqueBytes ?? 0),
    });
  }
  return result;
}
