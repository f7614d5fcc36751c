/** Services with routes and backends for the mock: a canary of `orders`, a split of `catalog`, defaults elsewhere. */
import { circuitsOf } from './circuits.mjs';
import { edgesOf } from './world.mjs';

const round = (value, digits = 3) => Math.round(value * 10 ** digits) / 10 ** digits;
const worst = (list) => ['open', 'half_open', 'closed'].find((state) => list.some((one) => one.state === state)) ?? null;
const latency = (p50) => ({ p50: round(p50), p90: round(p50 * 1.9), p95: round(p50 * 2.6), p99: round(p50 * 4.4), mean: round(p50 * 1.2) });

/** By service: [route, matches, timeout, backend timeout, retry, share of requests, [[backend, weight, success, slowness]]] */
const RULES = {
  'orders.shop:8080': [
    ['HTTPRoute/shop/orders/0', ['GET /orders/**', 'x-canary: always'], 2000, 800, { attempts: 2, on: ['5xx', 'reset'] }, 0.55, [['orders-v1.shop:8080', 90, 0.999, 1], ['orders-v2.shop:8080', 10, 0.93, 1.8]]],
    ['HTTPRoute/shop/orders/1', ['POST /orders'], 10000, null, null, 0.45, [['orders-v1.shop:8080', 1, 0.98, 1.4]]],
  ],
  'catalog.shop:8080': [
    ['HTTPRoute/shop/catalog/0', ['/**'], null, null, { attempts: 1, on: ['connect-failure'] }, 1, [['catalog-v1.shop:8080', 50, 1, 1], ['catalog-v2.shop:8080', 40, 1, 0.8], ['catalog-v3.shop:8080', 10, 0.99, 1.1], ['catalog-v4.shop:8080', 0, null, 1]]],
  ],
};

export function routesView(scenario, late, window, at) {
  const circuits = circuitsOf(scenario, late, at, false);
  const sums = new Map();
  for (const [, target, protocol, rate, p50, success] of edgesOf(scenario, late)) {
    if ((protocol !== 'http' && protocol !== 'grpc') || !target.startsWith('workload:')) continue;
    const [namespace, name] = target.split(':')[1].split('/');
    const service = `${name}.${namespace}:8080`;
    const before = sums.get(service) ?? { rate: 0, p50, success, protocol };
    sums.set(service, { ...before, rate: before.rate + rate });
  }
  const services = [...sums].sort().map(([service, { rate, p50, success, protocol }]) => {
    const mine = circuits.filter((one) => one.service === service);
    const rules = RULES[service] ?? [['default', [], null, null, null, 1, [[service, 1, success, 1]]]];
    return {
      service, protocol, circuit: worst(mine.filter((one) => one.kind === 'service')),
      policies: RULES[service] ? [`TrafficPolicy ${service.split(':')[0].split('.').reverse().join('/')}`] : [],
      routes: rules.map(([name, matches, timeout_ms, backend_timeout_ms, retry, share, backends]) => {
        const total = backends.reduce((sum, [, weight]) => sum + weight, 0);
        const wobble = (index) => 1 + 0.12 * Math.sin(at / 6000 + index * 2);
        const parts = backends.map(([, weight], index) => weight * wobble(index));
        const whole = parts.reduce((sum, part) => sum + part, 0);
        return {
          name, matches, timeout_ms, backend_timeout_ms, retry, requests_per_second: round(rate * share), success_rate: success, latency_ms: latency(p50),
          backends: backends.map(([cluster, weight, ok, slow], index) => ({
            cluster, weight, share: round(weight / total, 4), observed_share: round(parts[index] / whole, 4), requests_per_second: round((rate * share * parts[index]) / whole),
            success_rate: ok, latency_ms: ok === null ? null : latency(p50 * slow), circuit: worst(mine.filter((one) => one.kind === 'endpoint')),
          })),
        };
      }),
    };
  });
  return { at: new Date(at).toISOString(), window, services: scenario === 'empty' || scenario === 'quiet' ? [] : services };
}
