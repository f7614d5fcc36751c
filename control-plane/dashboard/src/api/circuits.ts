/**
 * Circuits as this page understands them, and the reading of the API's JSON.
 *
 * In: `GET /api/circuits` or one message of its stream. Out: plain immutable values. Invariant: a state this page
 * does not know is shown as `closed` never as `open`: an alarm needs a reason.
 */
import { instant, list, number, object, text, type Json } from './json';

/** The field's words: closed lets calls through, open refuses them, half_open lets a few try. */
export type CircuitState = 'open' | 'half_open' | 'closed';
export type CircuitKind = 'endpoint' | 'service' | 'limit';

/** Who stands behind an address. */
export interface Endpoint {
  readonly address: string;
  readonly workload: string | null;
  readonly namespace: string | null;
  readonly version: string | null;
  readonly pod: string | null;
}

/** What one sidecar says of a circuit. */
export interface Observation {
  readonly instance: string;
  readonly workload: string;
  readonly namespace: string | null;
  readonly pod: string | null;
  readonly state: CircuitState;
  readonly cause: string | null;
  readonly since: number | null;
  readonly nextProbe: number | null;
  readonly calls: number;
  readonly errors: number;
}

/** One circuit over all sidecars that have it; its state is the worst of theirs. */
export interface Circuit {
  readonly id: string;
  readonly kind: CircuitKind;
  /** `orders.shop:8080`. */
  readonly service: string;
  readonly endpoint: Endpoint | null;
  readonly state: CircuitState;
  /** The word on the wire. */
  readonly cause: string | null;
  /** The same as the server puts it, with numbers. */
  readonly causeText: string | null;
  readonly since: number | null;
  readonly nextProbe: number | null;
  /** In the breaker's window, as are the errors. */
  readonly calls: number;
  readonly errors: number;
  readonly slow: number;
  /** null when nothing was called. */
  readonly errorRatio: number | null;
  readonly openOn: number;
  readonly observersTotal: number;
  /** The worst of them; there may be more. */
  readonly observers: readonly Observation[];
}

/** A change of state that one sidecar reported. */
export interface Transition {
  readonly id: string;
  readonly at: number | null;
  readonly circuit: string;
  readonly service: string;
  readonly endpoint: Endpoint | null;
  readonly observer: string;
  readonly from: CircuitState;
  readonly to: CircuitState;
  readonly cause: string | null;
  readonly causeText: string | null;
}

export interface Circuits {
  readonly version: number;
  /** The server's clock when it wrote this. */
  readonly at: number | null;
  readonly circuits: readonly Circuit[];
  /** How many there are, also those that the answer leaves out. */
  readonly total: number;
  /** Newest first. */
  readonly events: readonly Transition[];
}

export function circuits(value: unknown): Circuits {
  const json = object(value, 'list of circuits');
  const all = list(json.circuits);
  return {
    version: number(json.version) ?? 0,
    at: instant(json.at),
    circuits: all.map(circuit),
    total: number(json.circuits_total) ?? all.length,
    events: list(json.events).map(transition),
  };
}

const STATES: readonly CircuitState[] = ['open', 'half_open', 'closed'];
const KINDS: readonly CircuitKind[] = ['endpoint', 'service', 'limit'];

export function state(value: unknown): CircuitState {
  return STATES.find((known) => known === value) ?? 'closed';
}

function circuit(value: unknown): Circuit {
  const json = object(value, 'circuit');
  const service = text(json.service) ?? '';
  const calls = number(json.calls) ?? 0;
  const observers = list(json.observers).map(observation);
  return {
    id: text(json.id) ?? service,
    kind: KINDS.find((known) => known === json.kind) ?? 'endpoint',
    service,
    endpoint: endpoint(json.endpoint),
    state: state(json.state),
    cause: text(json.cause),
    causeText: text(json.cause_text),
    since: instant(json.since),
    nextProbe: instant(json.next_probe_at),
    calls,
    errors: number(json.errors) ?? 0,
    slow: number(json.slow) ?? 0,
    errorRatio: calls > 0 ? number(json.error_ratio) : null,
    openOn: number(json.open_on) ?? observers.filter((one) => one.state === 'open').length,
    observersTotal: number(json.observers_total) ?? observers.length,
    observers,
  };
}

function endpoint(value: unknown): Endpoint | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return {
    address: text(json.address) ?? '',
    workload: text(json.workload),
    namespace: text(json.namespace),
    version: text(json.version),
    pod: text(json.pod),
  };
}

function observation(value: unknown): Observation {
  const json = object(value, 'observer');
  return {
    instance: text(json.instance) ?? '',
    workload: text(json.workload) ?? '',
    namespace: text(json.namespace),
    pod: text(json.pod),
    state: state(json.state),
    cause: text(json.cause),
    since: instant(json.since),
    nextProbe: instant(json.next_probe_at),
    calls: number(json.calls) ?? 0,
    errors: number(json.errors) ?? 0,
  };
}

function transition(value: unknown): Transition {
  const json = object(value, 'transition');
  const observer = typeof json.observer === 'object' && json.observer !== null ? (json.observer as Json) : {};
  return {
    id: text(json.id) ?? '',
    at: instant(json.at),
    circuit: text(json.circuit) ?? '',
    service: text(json.service) ?? '',
    endpoint: endpoint(json.endpoint),
    observer: text(observer.pod) ?? text(observer.workload) ?? text(observer.instance) ?? '',
    from: state(json.from),
    to: state(json.to),
    cause: text(json.cause),
    causeText: text(json.cause_text),
  };
}
