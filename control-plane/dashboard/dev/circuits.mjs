/**
 * Circuits for the mock: breakers that trip, probe and recover in a rhythm, from the clock alone. The shape is the
 * control plane's API (`/api/circuits`). With POST /mock/break one of three replicas of `orders`
 * (in the quiet scenario, of `recommend`) fails until /mock/heal.
 */
import { edgesOf } from './world.mjs';

const iso = (ms) => new Date(Math.round(ms)).toISOString();
const hash = (text) => [...text].reduce((sum, c) => (sum * 31 + c.charCodeAt(0)) >>> 0, 7);
const round = (value, digits = 4) => Math.round(value * 10 ** digits) / 10 ** digits;

const TEXT = {
  consecutive_5xx: '5 server errors in a row',
  consecutive_gateway_failure: '5 gateway errors in a row',
  consecutive_local_origin_failure: '5 connections failed in a row',
  failure_percentage: '86 % of 58 calls failed, limit 85 %',
  success_rate: '71 % success, the others 99 %',
  error_ratio: '62 of 117 calls failed in 10 s, limit 50 %',
  slow_calls: '83 % of 96 calls took longer than 2 s, limit 80 %',
  health_check: '3 health checks failed in a row',
};

/** [service, endpoint number or null, cause, open seconds, period seconds, share of observers] */
const FAULTS = [
  ['payments.shop:8080', 1, 'consecutive_5xx', 30, 44, 1],
  ['payments.shop:8080', 0, 'failure_percentage', 8, 75, 0.4],
  ['labels.shop:8080', null, 'error_ratio', 20, 24, 1],
  ['orders.shop:8080', 2, 'consecutive_local_origin_failure', 45, 50, 0.75],
  ['shipping.shop:8080', null, 'slow_calls', 6, 120, 1],
];

/** State, since when, and when it probes, of a fault that repeats. */
function phase([, , , open, period], at, seed) {
  const start = at - ((at + seed * 997) % (period * 1000));
  const opened = start + 2_000;
  if (at < opened) return { state: 'closed', since: start - (period - open - 5) * 1000, opened: opened - period * 1000 };
  if (at < opened + open * 1000) return { state: 'open', since: opened, next: opened + open * 1000, opened };
  if (at < opened + (open + 3) * 1000) return { state: 'half_open', since: opened + open * 1000, opened };
  return { state: 'closed', since: opened + (open + 3) * 1000, opened };
}

function services(scenario, late) {
  const result = new Map();
  for (const [source, target, protocol, rate] of edgesOf(scenario, late)) {
    if (protocol !== 'http' && protocol !== 'grpc') continue;
    const [namespace, name] = target.split(':')[1].split('/');
    const service = `${name}.${namespace}:8080`;
    const entry = result.get(service) ?? { service, name, namespace, rate: 0, callers: [], ready: target.startsWith('workload:') };
    entry.rate += rate;
    if (source.startsWith('workload:')) entry.callers.push(source.split('/')[1]);
    result.set(service, entry);
  }
  return [...result.values()];
}

function circuit(entry, number, fault, at, kind) {
  const { service, name, namespace } = entry;
  const address = `10.0.${hash(name) % 250}.${10 + (number ?? 0)}:8080`;
  const version = name === 'orders' && number === 2 ? 'v2' : 'v1';
  const endpoint = kind === 'endpoint' ? { address, workload: name, namespace, version, pod: `${name}-7d9f${number}` } : null;
  const id = endpoint ? `endpoint|${service}|${address}` : `${kind}|${service}`;
  // A replica broken by hand has been so for a moment and stays so: its phase does not run.
  const now = fault?.[0] === '' ? { state: 'open', since: at - (at % 30_000), next: at - (at % 30_000) + 30_000 } : fault ? phase(fault, at, hash(id) % 40) : { state: 'closed', since: null };
  const ill = now.state !== 'closed';
  const share = kind === 'endpoint' ? 1 / 3 : 1;
  const callers = entry.callers.length > 0 ? entry.callers : ['web'];
  const pods = callers.flatMap((caller) => [`${caller}-a`, `${caller}-b`]);
  const observers = pods.map((pod, index) => {
    const sees = ill && (index + 0.5) / pods.length <= (fault?.[5] ?? 1) + 0.01;
    const calls = Math.round((entry.rate * share * 10 * (0.85 + 0.3 * Math.abs(Math.sin(at / 7000 + hash(id + pod))))) / pods.length);
    const wanted = sees ? 0.55 : (hash(id) % 11 === 3 ? 0.02 : 0);
    return {
      instance: `3f0c${hash(pod).toString(16)}`, workload: pod.slice(0, -2), namespace, pod,
      state: sees ? now.state : 'closed', cause: sees ? fault[2] : null, since: sees ? iso(now.since) : null,
      next_probe_at: sees && now.next ? iso(now.next) : null, calls: sees && now.state === 'open' && kind === 'service' ? 0 : calls,
      errors: Math.round(calls * wanted), slow: 0,
    };
  });
  const sum = (key) => observers.reduce((total, one) => total + one[key], 0);
  const calls = sum('calls');
  return {
    id, kind, service, endpoint, state: now.state, cause: fault ? fault[2] : null, cause_text: fault ? TEXT[fault[2]] : null,
    since: now.since === null ? null : iso(now.since), next_probe_at: now.next ? iso(now.next) : null,
    calls, errors: sum('errors'), slow: sum('slow'), error_ratio: calls > 0 ? round(sum('errors') / calls) : null,
    open_on: observers.filter((one) => one.state === 'open').length, observers_total: observers.length, observers,
  };
}

export function circuitsOf(scenario, late, at, broken) {
  const all = [];
  for (const entry of services(scenario, late)) {
    const fault = (number) => {
      if (broken && number === 1 && (scenario === 'quiet' || entry.name === 'orders')) return ['', 1, 'consecutive_5xx', 30, 30, 1];
      const listed = FAULTS.find(([service, which]) => service === entry.service && which === number);
      if (listed || !scenario.match(/big|huge/)) return listed;
      return hash(`${entry.service}${number}`) % 23 === 5 ? [entry.service, number, Object.keys(TEXT)[hash(entry.service) % 8], 20 + (hash(entry.name) % 40), 70, 0.6] : undefined;
    };
    if (entry.ready) for (const number of [0, 1, 2]) all.push(circuit(entry, number, fault(number), at, 'endpoint'));
    if (fault(null) || hash(entry.service) % 3 === 0) all.push(circuit(entry, null, fault(null), at, 'service'));
  }
  return all;
}

function event(circuit, at, from, to, cause) {
  const { instance, workload, namespace, pod } = circuit.observers[0];
  return { id: `${circuit.id}-${at}`, at: iso(at), circuit: circuit.id, service: circuit.service, endpoint: circuit.endpoint, observer: { instance, workload, namespace, pod }, from, to, cause, cause_text: TEXT[cause], next_probe_at: null, calls: 30, errors: 16 };
}

/** What the phases say happened in the last ten minutes. */
function events(circuits, at) {
  const list = [];
  for (const one of circuits) {
    const fault = FAULTS.find(([service, number, cause]) => service === one.service && cause === one.cause && (number === null) === (one.endpoint === null));
    if (!fault && one.state === 'open') list.push(event(one, Date.parse(one.since), 'closed', 'open', one.cause));
    if (!fault) continue;
    const [, , cause, open, period] = fault;
    const { opened } = phase(fault, at, hash(one.id) % 40);
    for (let start = opened; start > at - 600_000; start -= period * 1000) {
      for (const [offset, from, to] of [[0, 'closed', 'open'], [open * 1000, 'open', 'half_open'], [(open + 3) * 1000, 'half_open', 'closed']]) {
        if (start + offset > at) continue;
        list.push(event(one, start + offset, from, to, cause));
      }
    }
  }
  return list.sort((a, b) => (a.at < b.at ? 1 : -1)).slice(0, 200);
}

export function circuitsView(scenario, late, at, broken) {
  const circuits = scenario === 'empty' || (scenario === 'quiet' && !late) ? [] : circuitsOf(scenario, late, at, broken);
  return { version: Math.floor(at / 1000), at: iso(at), circuits, events: events(circuits, at) };
}

/** `{open, half_open, closed}` of those that match; null where there are none. */
export function tally(circuits) {
  if (circuits.length === 0) return null;
  const count = (state) => circuits.filter((one) => one.state === state).length;
  return { open: count('open'), half_open: count('half_open'), closed: count('closed') };
}

/** The graph with the state of its circuits, and with the retries that failing calls cause. */
export function adorned(graph, scenario, late, at, broken) {
  const circuits = graph.edges.length === 0 ? [] : circuitsOf(scenario, late, at, broken);
  const of = (target) => circuits.filter((one) => target.endsWith(`/${one.service.split('.')[0]}`));
  return {
    ...graph,
    nodes: graph.nodes.map((node) => ({ ...node, circuits: tally(of(node.id)) })),
    edges: graph.edges.map((edge) => {
      const calls = edge.protocol === 'http' || edge.protocol === 'grpc';
      const sent = Math.round(edge.requests * (1 - (edge.success_rate ?? 1)) * 1.4);
      const retries = calls ? { sent, denied: Math.round(sent * 0.06), amplification: edge.requests > 0 ? round((edge.requests + sent) / edge.requests, 3) : 1 } : null;
      return { ...edge, retries, circuits: calls && edge.source.startsWith('workload:') ? tally(of(edge.target)) : null };
    }),
  };
}
