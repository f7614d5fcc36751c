/**
 * Applies a diff of the event stream to the picture. Pure.
 *
 * Invariant: a diff fits only the version it was made from; otherwise the answer is `null` and the caller
 * fetches the whole picture. Values that did not change keep their identity, which is what makes a
 * one-edge diff cost one edge of drawing.
 */
import type { Diff, Graph } from '../api/model';

export function applyDiff(graph: Graph, diff: Diff): Graph | null {
  if (diff.version <= graph.version) return graph; // already in the picture
  if (diff.baseVersion !== graph.version) return null;
  return {
    ...graph,
    version: diff.version,
    at: diff.at ?? graph.at,
    nodes: merge(graph.nodes, diff.nodes),
    edges: merge(graph.edges, diff.edges),
    diagnosis: diff.diagnosis === undefined ? graph.diagnosis : diff.diagnosis,
  };
}

function merge<T extends { readonly id: string }>(
  old: ReadonlyMap<string, T>,
  change: { readonly upsert: readonly T[]; readonly remove: readonly string[] },
): ReadonlyMap<string, T> {
  if (change.upsert.length === 0 && change.remove.length === 0) return old;
  const next = new Map(old);
  for (const id of change.remove) next.delete(id);
  for (const value of change.upsert) next.set(value.id, value);
  return next;
}
