/**
 * The find language: `orders`, `rt>200ms`, `rps>10`, `success<99`, `error`, `protocol=grpc`, `breaker=open`, `!mtls`.
 *
 * Terms are joined by AND; `or` between terms starts a new alternative; `!` or `-` before a term negates it.
 * A comparison or flag asks edges; a bare word asks names of nodes and either end of an edge. Pure.
 * A term that means nothing is reported, never silently dropped. Non-goal: brackets, `hide`.
 */
import type { CircuitCounts, GraphEdge, GraphNode } from '../api/model';

export interface Query {
  readonly empty: boolean;
  readonly problems: readonly string[];
  edge(edge: GraphEdge, source: GraphNode | undefined, target: GraphNode | undefined): boolean;
  /** Whether the node itself is asked for by name or kind (edges may still bring it in). */
  node(node: GraphNode): boolean;
}

interface Term {
  readonly negated: boolean;
  readonly edge: (edge: GraphEdge, ends: readonly GraphNode[]) => boolean;
  /** null: the term says nothing about nodes. */
  readonly node: ((node: GraphNode) => boolean) | null;
}

const NUMBERS: Record<string, (edge: GraphEdge) => number | null> = {
  rt: (edge) => edge.latency?.p99 ?? null,
  p50: (edge) => edge.latency?.p50 ?? null,
  p90: (edge) => edge.latency?.p90 ?? null,
  p95: (edge) => edge.latency?.p95 ?? null,
  p99: (edge) => edge.latency?.p99 ?? null,
  rps: (edge) => edge.rate,
  success: (edge) => (edge.success === null ? null : edge.success * 100),
  error: (edge) => (edge.success === null ? null : (1 - edge.success) * 100),
  retries: (edge) => edge.retries?.sent ?? null,
};
const ALIASES: Record<string, string> = { sr: 'success', err: 'error', errors: 'error', '%error': 'error', '%err': 'error', '%httperr': 'error', rate: 'rps', namespace: 'ns', proto: 'protocol' };

const FLAGS: Record<string, (edge: GraphEdge) => boolean> = {
  error: (edge) => edge.success !== null && edge.success < 1,
  failing: (edge) => edge.health === 'failing',
  degraded: (edge) => edge.health === 'degraded',
  healthy: (edge) => edge.health === 'healthy',
  idle: (edge) => edge.health === 'idle',
  mtls: (edge) => edge.tls === 'mutual',
  tls: (edge) => edge.tls === 'mutual' || edge.tls === 'simple',
};

const BREAKERS: Record<string, (circuits: CircuitCounts) => boolean> = {
  open: (circuits) => circuits.open > 0,
  half_open: (circuits) => circuits.halfOpen > 0,
  closed: (circuits) => circuits.open + circuits.halfOpen === 0,
};

const COMPARISON = /^(%?[a-z0-9]+)\s*(>=|<=|!=|>|<|=|:)\s*(.+)$/i;

export function parse(text: string): Query {
  const problems: string[] = [];
  const alternatives: Term[][] = [[]];
  for (const token of tokens(text)) {
    if (token.toLowerCase() === 'or') {
      alternatives.push([]);
      continue;
    }
    if (token.toLowerCase() === 'and') continue;
    const term = read(token);
    if (term) alternatives.at(-1)?.push(term);
    else problems.push(token);
  }
  const wanted = alternatives.filter((terms) => terms.length > 0);
  return {
    empty: wanted.length === 0,
    problems,
    edge: (edge, source, target) => {
      const ends = [source, target].filter((node) => node !== undefined);
      return wanted.some((terms) => terms.every((term) => term.edge(edge, ends) !== term.negated));
    },
    node: (node) =>
      wanted.some((terms) => {
        const about = terms.filter((term) => term.node !== null);
        return about.length === terms.length && about.every((term) => term.node?.(node) !== term.negated);
      }),
  };
}

/** Blanks separate terms, except around an operator: `rt > 200ms` is one term. */
function tokens(text: string): string[] {
  return text
    .replace(/\s*(>=|<=|!=|>|<|=)\s*/g, '$1')
    .split(/\s+/)
    .filter((token) => token !== '');
}

function read(token: string): Term | null {
  const negated = /^[!-]./.test(token);
  const body = negated ? token.slice(1) : token;
  const match = COMPARISON.exec(body);
  if (!match) {
    if (/[<>=]/.test(body)) return null; // half a comparison
    const key = ALIASES[body.toLowerCase()] ?? body.toLowerCase();
    const flag = FLAGS[key];
    if (flag) return { negated, edge: flag, node: null };
    return named(negated, (node) => contains(node.name, body) || contains(node.id, body));
  }
  const [, rawKey = '', operator = '', value = ''] = match;
  const key = ALIASES[rawKey.toLowerCase()] ?? rawKey.toLowerCase();
  const opposite = operator === '!=' ? !negated : negated;
  const equality = operator === '=' || operator === ':' || operator === '!=';
  if (key === 'ns' && equality) return named(opposite, (node) => node.namespace === value);
  if (key === 'kind' && equality) return named(opposite, (node) => node.kind === value.toLowerCase());
  if (key === 'name' && equality) return named(opposite, (node) => contains(node.name, value));
  if (key === 'protocol' && equality) {
    return { negated: opposite, edge: (edge) => edge.protocol.toLowerCase() === value.toLowerCase(), node: null };
  }
  if (key === 'breaker' && equality) {
    const state = BREAKERS[value.toLowerCase().replace('-', '_')];
    return state ? { negated: opposite, edge: (edge) => edge.circuits !== null && state(edge.circuits), node: null } : null;
  }
  if (key === 'route' && equality) {
    return { negated: opposite, edge: (edge) => edge.routes.some((route) => contains(route.route, value)), node: null };
  }
  if (key === 'reason' && equality) {
    return { negated: opposite, edge: (edge) => edge.failures.some((failure) => failure.reason === value), node: null };
  }
  const operand = NUMBERS[key];
  const limit = quantity(value);
  if (!operand || limit === null) return null;
  const compare = comparison(operator);
  return {
    negated,
    edge: (edge) => {
      const measured = operand(edge);
      return measured !== null && compare(measured, limit);
    },
    node: null,
  };
}

function named(negated: boolean, test: (node: GraphNode) => boolean): Term {
  return { negated, node: test, edge: (_, ends) => ends.some(test) };
}

function comparison(operator: string): (measured: number, limit: number) => boolean {
  switch (operator) {
    case '>':
      return (a, b) => a > b;
    case '<':
      return (a, b) => a < b;
    case '>=':
      return (a, b) => a >= b;
    case '<=':
      return (a, b) => a <= b;
    case '!=':
      return (a, b) => a !== b;
    default:
      return (a, b) => a === b;
  }
}

/** `200ms`, `1.5s`, `99%`, `10`: milliseconds for times, the number itself otherwise. */
function quantity(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|%|\/s)?$/i.exec(text);
  if (!match) return null;
  const value = Number(match[1]);
  switch (match[2]?.toLowerCase()) {
    case 's':
      return value * 1000;
    case 'm':
      return value * 60_000;
    default:
      return value;
  }
}

function contains(text: string, part: string): boolean {
  return text.toLowerCase().includes(part.toLowerCase());
}
