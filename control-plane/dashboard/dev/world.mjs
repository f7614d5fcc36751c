/**
 * A believable shop for development: services, calls, routes, faults. Numbers wander a little around their mean,
 * from the clock alone, so that the same moment always looks the same. The shape is the control plane's API.
 */

/** [source, target, protocol, rate, p50 ms, success, tls, routes [[method, route, share, success, slowness]]] */
const SHOP = [
  ['unmeshed:10.0.0.9', 'workload:shop/web', 'http', 38, 21, 0.998, 'none', [['GET', '/', 0.4], ['GET', '/products/{id}', 0.35], ['POST', '/checkout', 0.1, 0.982, 4], ['GET', '/cart', 0.15]]],
  ['workload:shop/web', 'workload:shop/catalog', 'http', 61, 6, 1, 'mutual', [['GET', '/products', 0.3], ['GET', '/products/{id}', 0.6], ['GET', '/search', 0.1, 1, 3]]],
  ['workload:shop/web', 'workload:shop/cart', 'http', 17, 4, 1, 'mixed', [['GET', '/carts/{uuid}', 0.7], ['PUT', '/carts/{uuid}/items/{id}', 0.3]]],
  ['workload:shop/web', 'workload:shop/orders', 'http', 9.4, 84, 0.981, 'mutual', [['POST', '/orders', 0.4, 0.954, 2], ['GET', '/orders/{id}', 0.55], ['GET', '__other__', 0.05]]],
  ['workload:shop/web', 'workload:shop/live', 'http', 0.6, 900, 1, 'mutual', [['GET', '/events', 1]]],
  ['workload:shop/catalog', 'workload:shop/redis', 'tcp', 0.4, 42000, 1, 'mutual', []],
  ['workload:shop/cart', 'workload:shop/redis', 'tcp', 0.2, 38000, 1, 'mutual', []],
  ['workload:shop/orders', 'workload:shop/pricing', 'grpc', 23, 3, 1, 'mutual', [['POST', '/pricing.v1.Pricing/Quote', 1]]],
  ['workload:shop/orders', 'workload:shop/payments', 'http', 4.1, 118, 0.86, 'mutual', [['POST', '/charges', 0.8, 0.83, 1.3], ['GET', '/charges/{uuid}', 0.2]]],
  ['workload:shop/orders', 'workload:shop/postgres', 'tcp', 0.1, 60000, 1, 'mutual', []],
  ['workload:shop/payments', 'external:api.bank.example:443', 'tls', 3.3, 2400, 0.985, 'simple', []],
  ['workload:shop/orders', 'workload:shop/shipping', 'http', 3.8, 640, 0.998, 'mutual', [['POST', '/shipments', 1]]],
  ['workload:shop/shipping', 'service:shop/labels', 'http', 1.2, 0.4, 0, 'none', [['POST', '/labels', 1, 0]]],
];
const FAILURES = {
  'workload:shop/payments': [['503', 0.6], ['request_timeout', 0.3], ['upstream_reset', 0.1]],
  'service:shop/labels': [['no_ready_endpoint', 1]],
  'workload:shop/orders': [['500', 0.8], ['client_cancelled', 0.2]],
};
const LATE = ['workload:shop/web', 'workload:shop/recommend', 'http', 12, 14, 0.999, 'mutual', [['GET', '/recommendations/{id}', 1]]];

export function edgesOf(scenario, late) {
  if (scenario === 'empty' || scenario === 'quiet') return late ? [LATE] : [];
  if (scenario === 'big') return big([4, 12, 18, 16, 10]);
  if (scenario === 'huge') return big([8, 26, 44, 44, 28]);
  if (scenario === 'namespaces') return [...SHOP, LATE, ...platform()];
  return late ? [...SHOP, LATE] : SHOP;
}

function platform() {
  return [
    ['workload:shop/web', 'workload:identity/login', 'http', 5, 24, 1, 'mutual', [['POST', '/sessions', 1]]],
    ['workload:identity/login', 'workload:identity/users', 'grpc', 9, 5, 1, 'mutual', [['POST', '/users.v1.Users/Find', 1]]],
    ['workload:identity/users', 'workload:data/postgres-users', 'tcp', 0.1, 60000, 1, 'mutual', []],
    ['workload:shop/orders', 'workload:data/kafka', 'tcp', 0.3, 60000, 1, 'mutual', []],
    ['workload:data/kafka', 'workload:data/audit', 'tcp', 0.2, 60000, 1, 'mutual', []],
    ['workload:data/audit', 'external:archive.example:443', 'tls', 0.4, 300, 1, 'simple', []],
  ];
}

/** Tiers of nodes, deterministic. */
function big(tiers) {
  const names = tiers.map((count, tier) => Array.from({ length: count }, (_, index) => `workload:shop/${['gateway', 'front', 'service', 'worker', 'store'][tier]}-${index + 1}`));
  const edges = [];
  let seed = 7;
  const random = () => ((seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648);
  names.forEach((tier, level) => {
    const next = names[level + 1];
    if (!next) return;
    next.forEach((target, index) => {
      const source = tier[index % tier.length];
      const success = random() < 0.06 ? 0.8 : random() < 0.1 ? 0.975 : 1;
      edges.push([source, target, level === 3 ? 'tcp' : random() < 0.3 ? 'grpc' : 'http', Math.round(random() * 90) + 1, 2 + random() * 60, success, 'mutual', [['GET', '/items/{id}', 1, success]]]);
      if (random() < 0.3) edges.push([tier[Math.floor(random() * tier.length)], target, 'http', 1 + random() * 8, 12, 1, 'mutual', [['GET', '/', 1]]]);
    });
  });
  const seen = new Set();
  return edges.filter(([s, t, p]) => !seen.has(`${s}${t}${p}`) && seen.add(`${s}${t}${p}`));
}

const iso = (ms) => new Date(ms).toISOString();
const hash = (text) => [...text].reduce((sum, c) => (sum * 31 + c.charCodeAt(0)) >>> 0, 7);
const round = (value, digits = 3) => Math.round(value * 10 ** digits) / 10 ** digits;
const wave = (key, at, depth = 0.18) => 1 + depth * Math.sin(at / 9000 + hash(key)) + (depth / 2) * Math.sin(at / 2300 + 2 * hash(key));
const health = (count, success) => (count === 0 ? 'idle' : success === null || success > 0.99 ? 'healthy' : success > 0.9 ? 'degraded' : 'failing');
const latency = (p50) => ({ p50: round(p50), p90: round(p50 * 1.9), p95: round(p50 * 2.6), p99: round(p50 * 4.4), mean: round(p50 * 1.2) });
export const idOf = ([source, target, protocol]) => `${hash(source + target).toString(16).padStart(8, '0')}${hash(protocol + target).toString(16).padStart(8, '0')}`;

function edge(raw, seconds, at, started) {
  const [source, target, protocol, mean, p50, wanted, tls, routes] = raw;
  const rate = round(mean * wave(source + target, at));
  const calls = protocol === 'http' || protocol === 'grpc';
  const success = wanted === 1 ? 1 : round(Math.min(1, Math.max(0, 1 - (1 - wanted) * wave(target, at, 0.4))), 5);
  const count = Math.round(rate * seconds);
  const failed = Math.round(count * (1 - success));
  const failures = failed === 0 ? [] : (FAILURES[target] ?? [['503', 1]]).map(([reason, share]) => ({ reason, count: Math.max(1, Math.round(failed * share)) }));
  return {
    id: idOf(raw), source, target, protocol,
    services: target.startsWith('external') ? [] : [`${target.split('/')[1]}.${target.split(':')[1].split('/')[0]}:8080`],
    reported_by: source.startsWith('unmeshed') ? 'server' : 'client',
    idle: false,
    health: health(count, success),
    tls,
    tls_calls: { mutual: tls === 'mutual' ? count : tls === 'mixed' ? Math.round(count * 0.62) : 0, simple: tls === 'simple' ? count : 0, none: tls === 'none' ? count : tls === 'mixed' ? count - Math.round(count * 0.62) : 0 },
    requests: calls ? count : 0, requests_total: calls ? Math.round(((at - started) / 1000) * rate) : 0,
    requests_per_second: calls ? rate : 0,
    success_rate: success,
    latency_ms: latency(p50 * wave(target + source, at, 0.12)),
    failures,
    connections: calls ? null : { opened: Math.round(rate * seconds), ended: Math.round(rate * seconds * 0.8), failed: 0, opened_total: 40, opened_per_second: rate },
    bytes_sent_per_second: Math.round(rate * (calls ? 820 : 21000)),
    bytes_received_per_second: Math.round(rate * (calls ? 4300 : 96000)),
    first_seen: iso(started), last_seen: iso(at),
    routes: routes.map(([method, route, share, ok = 1, slow = 1]) => ({
      method, route, requests: Math.round(count * share), requests_per_second: round(rate * share), success_rate: ok,
      latency_ms: latency(p50 * slow * (0.8 + (hash(route) % 50) / 100)), failures: ok === 1 ? [] : failures, statuses: [{ status: '200', count: Math.round(count * share * ok) }],
    })),
    routes_total: routes.length,
    routes_folded: routes.some(([, route]) => route === '__other__') ? 1284 : 0,
  };
}

function node(id, edges, sidecars) {
  const [kind, rest] = [id.slice(0, id.indexOf(':')), id.slice(id.indexOf(':') + 1)];
  const sum = (list) => {
    const rps = list.reduce((total, one) => total + one.requests_per_second, 0);
    const good = list.reduce((total, one) => total + one.requests_per_second * (one.success_rate ?? 1), 0);
    return { requests_per_second: round(rps), success_rate: rps > 0 ? round(good / rps, 5) : null };
  };
  const incoming = sum(edges.filter((one) => one.target === id));
  const outgoing = sum(edges.filter((one) => one.source === id));
  const word = health(edges.filter((one) => one.target === id).length, incoming.success_rate);
  const active = edges.some((one) => one.source === id || one.target === id);
  return {
    id, kind,
    name: rest.includes('/') ? rest.split('/')[1] : rest,
    namespace: rest.includes('/') ? rest.split('/')[0] : null,
    versions: kind === 'workload' ? (rest.endsWith('orders') ? ['v1', 'v2'] : ['v1']) : [],
    sidecars: kind === 'workload' ? sidecars : 0,
    uninjected: kind === 'unmeshed' ? 1 : 0,
    health: word === 'idle' && active ? 'healthy' : word,
    health_reason: word === 'healthy' ? 'no failure among 412 in the last minute' : word === 'idle' ? 'calls others, is not called' : `${round((1 - (incoming.success_rate ?? 1)) * 100, 1)} % of 412 failed in the last minute`,
    cause: rest === 'shop/web' || rest === 'shop/orders' ? 'workload:shop/payments' : null,
    idle: !active, incoming, outgoing,
  };
}

export function view(scenario, late, window, at, started) {
  const seconds = { '10s': 10, '1m': 60, '5m': 300, '1h': 3600 }[window] ?? 60;
  const raws = edgesOf(scenario, late);
  const edges = raws.map((raw) => edge(raw, seconds, at, started)).sort((a, b) => (a.id < b.id ? -1 : 1));
  const ids = new Set(edges.flatMap((one) => [one.source, one.target]));
  if (scenario === 'quiet') for (const name of ['web', 'orders', 'payments']) ids.add(`workload:shop/${name}`);
  const diagnosis = edges.length > 0 ? null
    : scenario === 'quiet'
      ? { code: 'no_traffic', text: '3 sidecars are connected, no request in the last minute', hint: 'send a request to one of the workloads; if it does not show, `/api/proxies` says what each sidecar does' }
      : { code: 'no_sidecar', text: 'no sidecar is connected', hint: 'start one with `weft run --name NAME --port PORT -- COMMAND`, or see `weft demo`' };
  return { version: at, at: iso(at), window, window_seconds: seconds, covered_seconds: Math.min(seconds, (at - started) / 1000), diagnosis, nodes: [...ids].sort().map((id) => node(id, edges, 1)), edges };
}

export function detail(scenario, late, id, window, at, started) {
  const raw = edgesOf(scenario, late).find((one) => idOf(one) === id);
  if (!raw) return null;
  const step = { '10s': 1, '1m': 1, '5m': 10, '1h': 60 }[window] ?? 1;
  const slots = { '10s': 10, '1m': 60, '5m': 30, '1h': 60 }[window] ?? 60;
  const times = Array.from({ length: slots }, (_, index) => Math.floor(at / 1000 / step) * step * 1000 - (slots - 1 - index) * step * 1000);
  const edges = times.map((time) => edge(raw, step, time, started));
  return {
    at: iso(at), window, window_seconds: slots * step, covered_seconds: slots * step,
    edge: edge(raw, slots * step, at, started),
    series: {
      start: iso(times[0]), step_seconds: step,
      requests_per_second: edges.map((one) => one.requests_per_second), failures_per_second: edges.map((one) => round(one.requests_per_second * (1 - one.success_rate))),
      success_rate: edges.map((one) => one.success_rate), p50_ms: edges.map((one) => one.latency_ms.p50), p99_ms: edges.map((one) => one.latency_ms.p99),
      bytes_sent_per_second: edges.map((one) => one.bytes_sent_per_second), bytes_received_per_second: edges.map((one) => one.bytes_received_per_second),
    },
  };
}

/** Seconds, of a certificate that lives for a day and of which so much is over. */
const DAY = 86_400;
const ROOTS = { old: '9f3c01aa', new: '1a2b3c4d' };

export function proxies(scenario, at, started, rotating = false) {
  if (scenario === 'empty') return [];
  const names = scenario === 'quiet' ? ['web', 'orders', 'payments'] : [...new Set(edgesOf(scenario, false).flatMap(([s, t]) => [s, t]).filter((id) => id.startsWith('workload:')).map((id) => id.split('/')[1]))];
  if (scenario === 'namespaces') names.push('recommendation-candidate-generation-service-with-a-long-name');
  return names.map((name, index) => {
    // For people to look at: one without an identity, one that does not renew, one whose clock is wrong.
    const odd = scenario === 'namespaces' || scenario === 'big';
    const anonymous = odd && index === 5;
    const over = odd && index === 2 ? 0.83 : 0.05 + (hash(name) % 40) / 100;
    const begun = at - over * DAY * 1000;
    return {
      instance: `3f0c${hash(name).toString(16)}`, agent: 'weft-proxy', workload: name, namespace: 'shop', version: 'v1', pod: `${name}-7c4f9`, addresses: [`10.0.1.${index + 10}`],
      connected_since: iso(started), subscriptions: 4 + (index % 5), synced: index % 7 !== 3, rejected: null,
      identity: anonymous ? null : `spiffe://cluster.local/ns/shop/sa/${name}`,
      certificate: anonymous ? null : { serial: `4d${hash(name).toString(16)}`, not_before: iso(begun), not_after: iso(begun + DAY * 1000), issuer: 'O=cluster.local, CN=Weft intermediate 51c0ffee', root: rotating && index % 3 > 0 ? ROOTS.new : ROOTS.old },
      trusts_bundle: anonymous ? false : !rotating || index % 5 !== 0,
      clock: null,
      reports: { last_sequence: 400, last_report_at: iso(at - (at % 1000)), reports: 400, clock_behind_ms: odd && index === 7 ? 17_400 : 12 },
    };
  });
}

/** `/api/ca`: two minutes of a rotation once somebody asked for one. */
export function authority(scenario, at, started, rotating) {
  const all = proxies(scenario, at, started, rotating).filter((one) => one.identity !== null);
  const link = (subject, fingerprint, since, days) => ({ subject, fingerprint, not_before: Math.floor(at / 1000) - since, not_after: Math.floor(at / 1000) - since + days * DAY });
  const sidecars = { connected: all.length, trusting: all.filter((one) => one.trusts_bundle).length, renewed: all.filter((one) => one.certificate.root === (rotating ? ROOTS.new : ROOTS.old)).length };
  const roots = [link('O=cluster.local, CN=Weft root 9f3c01aa', ROOTS.old, 90 * DAY, 3650)];
  if (rotating) roots.push(link('O=cluster.local, CN=Weft root 1a2b3c4d', ROOTS.new, 40, 3650));
  return {
    at: Math.floor(at / 1000), trust_domain: 'cluster.local', kept: true, brought: false, roots,
    issuer: link('O=cluster.local, CN=Weft intermediate 51c0ffee', '51c0ffee', 90 * DAY, 365),
    own: link('spiffe://cluster.local/ns/weft-system/sa/weft-control-plane', '77aa0b1c', 7200, 1),
    leaf_seconds: DAY, sidecars, clocks: [],
    rotation: rotating ? { phase: 'distributing', since: Math.floor(at / 1000) - 40, old: ROOTS.old, new: ROOTS.new, until: null, text: `${sidecars.trusting} of ${sidecars.connected} sidecars trust the new root`, waiting: all.filter((one) => !one.trusts_bundle).map((one) => one.instance) } : null,
  };
}
