/**
 * Services with their routes and backends, and the reading of the API's JSON (`GET /api/routes`).
 *
 * Invariant: what was configured and what was observed are two fields, never mixed: their difference is the point.
 */
import { state, type CircuitState } from './circuits';
import { latency } from './decode';
import { instant, list, number, object, text, texts, type Json } from './json';
import type { Latency } from './model';

export interface Backend {
  /** `orders-v2.shop:8080`. */
  readonly cluster: string;
  readonly weight: number | null;
  /** Of the weights, 0..1. */
  readonly share: number | null;
  /** Of the requests that came, 0..1; null when none came. */
  readonly observed: number | null;
  readonly rps: number;
  readonly success: number | null;
  readonly latency: Latency | null;
  readonly circuit: CircuitState | null;
}

export interface RetryRule {
  readonly attempts: number;
  readonly on: readonly string[];
}

export interface ServiceRoute {
  /** `HTTPRoute/shop/orders/0`, or `default` without a route object. */
  readonly name: string;
  readonly matches: readonly string[];
  readonly timeoutMs: number | null;
  readonly backendTimeoutMs: number | null;
  readonly retry: RetryRule | null;
  readonly rps: number;
  readonly success: number | null;
  readonly latency: Latency | null;
  readonly backends: readonly Backend[];
}

export interface Service {
  readonly service: string;
  readonly protocol: string | null;
  /** Of the whole service; null where it has none. */
  readonly circuit: CircuitState | null;
  /** `TrafficPolicy shop/orders`. */
  readonly policies: readonly string[];
  readonly routes: readonly ServiceRoute[];
}

export interface Routes {
  readonly at: number | null;
  readonly services: readonly Service[];
}

export function routes(value: unknown): Routes {
  const json = object(value, 'list of routes');
  return { at: instant(json.at), services: list(json.services).map(service) };
}

function service(value: unknown): Service {
  const json = object(value, 'service');
  return {
    service: text(json.service) ?? '',
    protocol: text(json.protocol),
    circuit: circuit(json.circuit),
    policies: texts(json.policies),
    routes: list(json.routes).map(route),
  };
}

function route(value: unknown): ServiceRoute {
  const json = object(value, 'route');
  return {
    name: text(json.name) ?? 'default',
    matches: texts(json.matches),
    timeoutMs: number(json.timeout_ms),
    backendTimeoutMs: number(json.backend_timeout_ms),
    retry: retry(json.retry),
    rps: number(json.requests_per_second) ?? 0,
    success: number(json.success_rate),
    latency: latency(json.latency_ms),
    backends: list(json.backends).map(backend),
  };
}

function retry(value: unknown): RetryRule | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  return { attempts: number(json.attempts) ?? 0, on: texts(json.on) };
}

function backend(value: unknown): Backend {
  const json = object(value, 'backend');
  return {
    cluster: text(json.cluster) ?? '',
    weight: number(json.weight),
    share: number(json.share),
    observed: number(json.observed_share),
    rps: number(json.requests_per_second) ?? 0,
    success: number(json.success_rate),
    latency: latency(json.latency_ms),
    circuit: circuit(json.circuit),
  };
}

function circuit(value: unknown): CircuitState | null {
  return typeof value === 'string' ? state(value) : null;
}
