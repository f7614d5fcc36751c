/**
 * What this page has seen of each edge since it was opened, for the sparklines.
 *
 * Bounded twice: SAMPLES_MAX per edge (5 minutes at one picture a second) and EDGES_MAX edges, the longest
 * unseen dropped first; 300 × 500 samples of five numbers are about 12 MB in the worst case.
 * Only for a server that keeps no history of its own: these are averages over the window, its are moments.
 */
import type { GraphEdge, Sample } from '../api/model';

export const SAMPLES_MAX = 300;
export const EDGES_MAX = 500;

export class History {
  readonly #edges = new Map<string, Sample[]>();

  record(at: number, edges: Iterable<GraphEdge>): void {
    for (const edge of edges) {
      const samples = this.#edges.get(edge.id) ?? [];
      if ((samples.at(-1)?.at ?? -Infinity) >= at) continue;
      samples.push(sample(at, edge));
      if (samples.length > SAMPLES_MAX) samples.splice(0, samples.length - SAMPLES_MAX);
      this.#edges.delete(edge.id); // re-inserted last: the map's order is the order of last sight
      this.#edges.set(edge.id, samples);
    }
    for (const id of this.#edges.keys()) {
      if (this.#edges.size <= EDGES_MAX) break;
      this.#edges.delete(id);
    }
  }

  of(id: string): readonly Sample[] {
    return this.#edges.get(id) ?? [];
  }

  clear(): void {
    this.#edges.clear();
  }
}

export function sample(at: number, edge: GraphEdge): Sample {
  return {
    at,
    rate: edge.rate,
    failures: edge.success === null ? 0 : edge.rate * (1 - edge.success),
    p50: edge.latency?.p50 ?? null,
    p99: edge.latency?.p99 ?? null,
    bytesSent: edge.bytesSent,
    bytesReceived: edge.bytesReceived,
  };
}
