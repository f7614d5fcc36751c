/** What an edge's calls prove of its protection, and what to do where it is not whole. Pure. */
import type { GraphEdge, GraphNode, Proxy, Tls } from '../api/model';

/** Share of the calls that went by mutual TLS; null when none was seen on the wire. */
export function mutualShare({ tlsCalls: { mutual, simple, none } }: GraphEdge): number | null {
  const all = mutual + simple + none;
  return all === 0 ? null : mutual / all;
}

export interface Mark {
  readonly icon: Exclude<Tls, 'unknown'>;
  /** Worth a look: not everything is protected although both could. */
  readonly notable: boolean;
  /** Of a mixed edge. */
  readonly share: number | null;
}

/**
 * The lock on the line. Plain text is marked where the callee has a sidecar, and is worth a look where that sidecar has an
 * identity and the caller has a sidecar too: whatever the mesh cannot protect carries no lock at all.
 */
export function mark(edge: GraphEdge, callee: readonly Proxy[]): Mark | null {
  if (edge.idle || edge.tls === 'unknown') return null;
  const able = edge.source.startsWith('workload:') && callee.some((proxy) => proxy.identity !== null);
  if (edge.tls === 'none') return callee.length === 0 ? null : { icon: 'none', notable: able, share: null };
  return { icon: edge.tls, notable: edge.tls === 'mixed', share: edge.tls === 'mixed' ? mutualShare(edge) : null };
}

/** The sidecars of a node. */
export function sidecars(node: GraphNode | undefined, proxies: readonly Proxy[] | null): readonly Proxy[] {
  if (node?.kind !== 'workload') return [];
  return (proxies ?? []).filter((proxy) => proxy.workload === node.name && (proxy.namespace === null || proxy.namespace === node.namespace));
}

/** The identities that a node's sidecars have proved. */
export function identities(proxies: readonly Proxy[]): readonly string[] {
  return [...new Set(proxies.flatMap(({ identity }) => (identity === null ? [] : [identity])))].sort();
}

/** What stands in the way of mutual TLS, as far as it can be seen from here. */
export type Advice = 'caller_unmeshed' | 'callee_external' | 'caller_anonymous' | 'callee_anonymous' | 'mode';

export function advice(edge: GraphEdge, source: GraphNode | undefined, target: GraphNode | undefined, proxies: readonly Proxy[] | null): Advice | null {
  if (edge.idle || (edge.tls !== 'none' && edge.tls !== 'mixed')) return null;
  if (target?.kind === 'external') return 'callee_external';
  if (source?.kind !== 'workload') return 'caller_unmeshed';
  const anonymous = (node: GraphNode | undefined): boolean => sidecars(node, proxies).some(({ identity }) => identity === null);
  if (anonymous(target)) return 'callee_anonymous';
  if (anonymous(source)) return 'caller_anonymous';
  return 'mode';
}
