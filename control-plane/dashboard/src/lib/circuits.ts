/**
 * The wall's judgement: what comes first, what matches, how long until the next probe, how large a circle is.
 * Pure; `now` is the server's time.
 */
import type { Circuit, Circuits, CircuitState, Transition } from '../api/circuits';
import type { GraphEdge, GraphNode, Health } from '../api/model';
import { judge } from './health';

export const STATES: readonly CircuitState[] = ['open', 'half_open', 'closed'];
export const ORDERS = ['worst', 'busiest', 'name'] as const;
export type WallOrder = (typeof ORDERS)[number];

/** What the wall shows of everything there is. */
export interface WallFilter {
  readonly state: CircuitState | null;
  readonly namespace: string | null;
  readonly service: string | null;
  readonly find: string;
}

/** How errors among the calls are judged; nothing called is idle. */
export function health(circuit: Circuit): Health {
  return judge(circuit.calls, circuit.errorRatio === null ? null : 1 - circuit.errorRatio);
}

const SEVERITY: Record<Health, number> = { failing: 0, degraded: 1, healthy: 2, idle: 3 };

/** `shop` of `orders.shop:8080`. */
export function namespace(service: string): string | null {
  const host = service.split(':')[0] ?? '';
  const dot = host.indexOf('.');
  return dot < 0 ? null : host.slice(dot + 1).split('.')[0] || null;
}

/** What a circuit is called: the pod or address behind it, or the service itself. */
export function title(circuit: Pick<Circuit, 'service' | 'endpoint'>): string {
  return circuit.endpoint?.pod ?? circuit.endpoint?.address ?? circuit.service;
}

/**
 * Sorted for a reader who has one second. `worst` compares only what changes rarely (state, how bad, since when,
 * name), so that a tile does not wander about while its numbers move.
 */
export function ordered(circuits: readonly Circuit[], order: WallOrder): Circuit[] {
  const byName = (a: Circuit, b: Circuit): number => a.service.localeCompare(b.service) || title(a).localeCompare(title(b)) || a.id.localeCompare(b.id);
  const byState = (a: Circuit, b: Circuit): number => STATES.indexOf(a.state) - STATES.indexOf(b.state);
  const worst = (a: Circuit, b: Circuit): number => {
    if (a.state !== b.state) return byState(a, b);
    if (a.state === 'closed') return SEVERITY[health(a)] - SEVERITY[health(b)] || byName(a, b);
    // A circuit of a whole service refuses more than one of an endpoint; then the latest news first.
    return Number(a.kind === 'endpoint') - Number(b.kind === 'endpoint') || (b.since ?? 0) - (a.since ?? 0) || byName(a, b);
  };
  const compare = order === 'worst' ? worst : order === 'busiest' ? (a: Circuit, b: Circuit) => b.calls - a.calls || byName(a, b) : byName;
  return [...circuits].sort(compare);
}

export function matches(filter: WallFilter, circuit: Circuit): boolean {
  if (filter.state !== null && circuit.state !== filter.state) return false;
  return placed(filter, circuit) && found(filter.find, [circuit.id, circuit.service, circuit.cause, circuit.causeText, ...place(circuit), ...circuit.observers.map((one) => one.pod ?? one.workload)]);
}

/** Transitions keep both ends of a state filter: somebody who looks at open ones wants to see them close. */
export function concerns(filter: WallFilter, event: Transition): boolean {
  if (filter.state !== null && event.to !== filter.state && event.from !== filter.state) return false;
  return placed(filter, event) && found(filter.find, [event.circuit, event.service, event.cause, event.causeText, event.observer, ...place(event)]);
}

function placed(filter: WallFilter, one: Circuit | Transition): boolean {
  if (filter.service !== null && one.service !== filter.service) return false;
  return filter.namespace === null || namespace(one.service) === filter.namespace;
}

function place({ endpoint }: Circuit | Transition): (string | null)[] {
  return endpoint ? [endpoint.address, endpoint.workload, endpoint.version, endpoint.pod] : [];
}

/** Every word has to be somewhere. */
function found(find: string, texts: readonly (string | null)[]): boolean {
  const words = find.toLowerCase().split(/\s+/).filter((word) => word !== '');
  return words.every((word) => texts.some((text) => text?.toLowerCase().includes(word)));
}

/** A limit that nobody reaches: true of nearly all of them nearly all the time, so it is no news. */
export function quiet(circuit: Pick<Circuit, 'kind' | 'state'>): boolean {
  return circuit.kind === 'limit' && circuit.state === 'closed';
}

/** Without the quiet ones. */
export function counts(circuits: readonly Circuit[]): Record<CircuitState, number> {
  const result = { open: 0, half_open: 0, closed: 0 };
  for (const circuit of circuits) if (!quiet(circuit)) result[circuit.state] += 1;
  return result;
}

/** Until the next probe: whole seconds, 0 when it is due; null when there is nothing to wait for. */
export function countdown(circuit: { readonly state: CircuitState; readonly nextProbe: number | null }, now: number): number | null {
  if (circuit.state !== 'open' || circuit.nextProbe === null) return null;
  return Math.max(0, Math.ceil((circuit.nextProbe - now) / 1000));
}

/** How far the wait for the probe has come, 0..1. */
export function progress(circuit: Pick<Circuit, 'state' | 'since' | 'nextProbe'>, now: number): number | null {
  if (circuit.state !== 'open' || circuit.since === null || circuit.nextProbe === null) return null;
  const whole = circuit.nextProbe - circuit.since;
  return whole <= 0 ? 1 : Math.min(1, Math.max(0, (now - circuit.since) / whole));
}

const RADIUS = { min: 4, max: 22 };

/** The circle's area grows with the volume; the busiest of the wall sets the scale. */
export function radius(calls: number, busiest: number): number {
  if (calls <= 0 || busiest <= 0) return RADIUS.min;
  return Math.round((RADIUS.min + (RADIUS.max - RADIUS.min) * Math.sqrt(Math.min(1, calls / busiest))) * 10) / 10;
}

/** The circuits in front of a node: those of its endpoints, and those of services that it is called by. */
export function ofNode(all: readonly Circuit[], node: GraphNode, inbound: readonly GraphEdge[]): Circuit[] {
  const services = new Set(inbound.flatMap((edge) => edge.services));
  return ordered(all.filter((one) => behind(one, node) ?? services.has(one.service)), 'worst');
}

/**
 * The circuits of an edge: those in front of its callee that its caller's sidecars report. Where the server names
 * only some of the observers, the caller may be among the others.
 */
export function ofEdge(all: readonly Circuit[], edge: GraphEdge, source: GraphNode | undefined, target: GraphNode | undefined): Circuit[] {
  const asked = new Set(edge.services);
  const mine = all.filter((one) => {
    const there = asked.has(one.service) && (target === undefined || (behind(one, target) ?? true));
    const all = one.observers.length >= one.observersTotal;
    return there && (!all || one.observers.some((seen) => seen.workload === source?.name && (seen.namespace === null || seen.namespace === source.namespace)));
  });
  return ordered(mine, 'worst');
}

/** Whether the endpoint is the node's; null when the circuit has none or does not know whose it is. */
function behind({ endpoint }: Circuit, node: GraphNode): boolean | null {
  if (endpoint?.workload == null) return null;
  return endpoint.workload === node.name && (endpoint.namespace === null || endpoint.namespace === node.namespace);
}

/** Everything the filters can offer. */
export function choices({ circuits }: Circuits): { services: string[]; namespaces: string[] } {
  const services = [...new Set(circuits.map((one) => one.service))].sort();
  const namespaces = [...new Set(services.map(namespace).filter((name) => name !== null))].sort();
  return { services, namespaces };
}
