import { describe, expect, it } from 'vitest';
import { Malformed } from '../api/json';
import * as decode from '../api/decode';
import type { Diff, Graph } from '../api/model';
import { edge, node } from '../testing';
import { applyDiff } from './apply';

const graph: Graph = {
  version: 7,
  at: 1000,
  windowSeconds: 60,
  nodes: new Map([['a', node('a')], ['b', node('b')]]),
  edges: new Map([['a>b', edge('a', 'b')]]),
  diagnosis: null,
};
const diff = (change: Partial<Diff>): Diff => ({
  version: 8,
  baseVersion: 7,
  at: 2000,
  nodes: { upsert: [], remove: [] },
  edges: { upsert: [], remove: [] },
  ...change,
});

describe('a diff', () => {
  it('adds, replaces and removes, and leaves the rest identical', () => {
    const next = applyDiff(graph, diff({ nodes: { upsert: [node('c')], remove: ['b'] }, edges: { upsert: [edge('a', 'c')], remove: ['a>b'] } }));
    expect([...(next?.nodes.keys() ?? [])]).toEqual(['a', 'c']);
    expect([...(next?.edges.keys() ?? [])]).toEqual(['a>c']);
    expect(next?.nodes.get('a')).toBe(graph.nodes.get('a'));
    expect(next?.version).toBe(8);
  });

  it('keeps whole maps identical when nothing in them changed', () => {
    expect(applyDiff(graph, diff({}))?.nodes).toBe(graph.nodes);
  });

  it('asks for a fetch when it was made from another version', () => {
    expect(applyDiff(graph, diff({ baseVersion: 5 }))).toBeNull();
  });

  it('is ignored when the picture is already newer', () => {
    expect(applyDiff(graph, diff({ version: 6, baseVersion: 5 }))).toBe(graph);
  });
});

describe('reading the wire', () => {
  it('takes what the server sends and tolerates what it does not know', () => {
    const read = decode.graph({
      version: 3, at: '2026-01-01T00:00:00Z', window_seconds: 60, novelty: true,
      nodes: [{ id: 'workload:shop/web', kind: 'workload', name: 'web', namespace: 'shop', health: 'degraded', incoming: { requests_per_second: 2, success_rate: 0.98 }, circuits: { open: 1, half_open: 2, closed: 5 } }],
      edges: [{ id: 'e', source: 'a', target: 'b', protocol: 'tcp', requests_per_second: 0, tls: null, connections: { opened: 6, ended: 1, failed: 0, opened_per_second: 0.1 }, retries: null }, { id: 'f', source: 'a', target: 'b', protocol: 'http', retries: { sent: 12, denied: 1, amplification: 1.04 } }],
    });
    expect(read.nodes.get('workload:shop/web')).toMatchObject({ health: 'degraded', incoming: { rps: 2, success: 0.98 } });
    expect(read.edges.get('e')).toMatchObject({ rate: 0.1, tls: 'unknown', latency: null });
    expect(read.nodes.get('workload:shop/web')?.circuits).toEqual({ open: 1, halfOpen: 2, closed: 5 });
    expect(read.edges.get('e')).toMatchObject({ retries: null, circuits: null });
    expect(read.edges.get('f')?.retries).toEqual({ sent: 12, denied: 1, amplification: 1.04 });
    expect(read.at).toBe(Date.UTC(2026, 0, 1));
  });

  it('refuses what is not a graph at all', () => {
    expect(() => decode.graph([])).toThrow(Malformed);
    expect(() => decode.diff({ version: 1 })).toThrow(Malformed);
  });

  it('turns columns into moments', () => {
    const { series } = decode.edgeDetail({
      at: '2026-01-01T00:00:25Z',
      edge: { id: 'e', source: 'a', target: 'b' },
      series: { start: '2026-01-01T00:00:00Z', step_seconds: 10, requests_per_second: [1, 2, 0.1], failures_per_second: [0, 1, 0], p50_ms: [null, 4, null], p99_ms: [null, 9, null], bytes_sent_per_second: [0, 7, 0] },
    });
    expect(series).toHaveLength(2); // the third slot is still being filled
    expect(series[1]).toEqual({ at: Date.UTC(2026, 0, 1) + 10_000, rate: 2, failures: 1, p50: 4, p99: 9, bytesSent: 7, bytesReceived: 0 });
  });
});
