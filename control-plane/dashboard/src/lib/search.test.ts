import { describe, expect, it } from 'vitest';
import type { GraphEdge, GraphNode } from '../api/model';
import { edge, node } from '../testing';
import { parse } from './search';

const nodes = new Map<string, GraphNode>(
  [node('workload:shop/web'), node('workload:shop/orders'), node('external:api.bank.example:443', { kind: 'external', namespace: null })].map((one) => [one.id, one]),
);
const calls: GraphEdge[] = [
  edge('workload:shop/web', 'workload:shop/orders', { rate: 12, success: 0.9, health: 'failing', tls: 'mutual', failures: [{ reason: 'connect_refused', count: 3 }], circuits: { open: 1, halfOpen: 0, closed: 2 }, retries: { sent: 4, denied: 0, amplification: 1.1 } }),
  edge('workload:shop/orders', 'external:api.bank.example:443', { protocol: 'tls', rate: 2, tls: 'simple', latency: { p50: 100, p90: 300, p95: 400, p99: 900 } }),
];

function found(text: string): string[] {
  const query = parse(text);
  return calls.filter((one) => query.edge(one, nodes.get(one.source), nodes.get(one.target))).map((one) => one.target.replace(/^.*[:/](\w+)\b.*$/, '$1'));
}

describe('the find language', () => {
  it.each([
    ['web', 1],
    ['orders', 2],
    ['ORD', 2],
    ['rps>10', 1],
    ['rt>200ms', 1],
    ['rt > 0.5s', 1],
    ['p50>=100', 1],
    ['success<99%', 1],
    ['error>5', 1],
    ['error', 1],
    ['failing', 1],
    ['!mtls', 1],
    ['-mtls', 1],
    ['protocol=tls', 1],
    ['protocol!=tls', 1],
    ['kind=external', 1],
    ['ns=shop', 2],
    ['reason=connect_refused', 1],
    ['breaker=open', 1],
    ['breaker=half-open', 0],
    ['breaker=closed', 0],
    ['retries>0', 1],
    ['web orders', 1],
    ['web bank', 0],
    ['web or bank', 2],
    ['failing or rt>500ms', 2],
  ])('%s', (text, count) => {
    expect(found(text)).toHaveLength(count);
    expect(parse(text).problems).toEqual([]);
  });

  it('reports what it does not understand', () => {
    expect(parse('rt>fast').problems).toEqual(['rt>fast']);
    expect(parse('colour=red web').problems).toEqual(['colour=red']);
    expect(parse('breaker=ajar').problems).toEqual(['breaker=ajar']);
    expect(parse('web >').problems).toEqual(['web>']);
  });

  it('is empty when nothing is asked', () => {
    expect(parse('   ').empty).toBe(true);
    expect(parse('or').empty).toBe(true);
  });

  it('names nodes without edges, but comparisons ask edges only', () => {
    const lone = node('workload:shop/cron');
    expect(parse('cron').node(lone)).toBe(true);
    expect(parse('!web').node(lone)).toBe(true);
    expect(parse('rps>0').node(lone)).toBe(false);
    expect(parse('cron rps>0').node(lone)).toBe(false);
  });
});
