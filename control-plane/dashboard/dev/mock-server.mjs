/**
 * A stand-in for the control plane, for development and for the browser test without Rust.
 *
 *   node dev/mock-server.mjs [--port 8099] [--scenario shop|empty|quiet|big|huge|namespaces] [--dist dist]
 *
 * Serves the built dashboard under the strictest content security policy it must survive, and the API from
 * `world.mjs` and `circuits.mjs`. POST /mock/traffic adds calls, POST /mock/down breaks streams and answers 503,
 * POST /mock/up heals; POST /mock/break opens the circuit of one replica of `orders`, POST /mock/heal closes it.
 */
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { adorned, circuitsView } from './circuits.mjs';
import { routesView } from './routes.mjs';
import { authority, detail, proxies, view } from './world.mjs';

const { values } = parseArgs({
  options: {
    port: { type: 'string', default: '8099' },
    scenario: { type: 'string', default: 'shop' },
    dist: { type: 'string', default: fileURLToPath(new URL('../dist', import.meta.url)) },
  },
});
const CSP = "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml' };
const started = Date.now() - 400_000;
let late = false;
let down = false;
let broken = false;
let rotating = false;
const streams = new Set();

function json(response, body, status = 200, type = 'application/json') {
  response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store' });
  response.end(JSON.stringify(body));
}
const picture = (window, at) => adorned(view(values.scenario, late, window, at, started), values.scenario, late, at, broken);
const problem = (response, status, title, text) => json(response, { type: 'about:blank', title, status, detail: text }, status, 'application/problem+json');

function events(response, window) {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  let sent = picture(window, Date.now());
  response.write(`event: snapshot\ndata: ${JSON.stringify(sent)}\n\n`);
  const changes = (base, next) => {
    const before = new Map(base.map((one) => [one.id, JSON.stringify(one)]));
    const after = new Set(next.map((one) => one.id));
    return { upsert: next.filter((one) => before.get(one.id) !== JSON.stringify(one)), remove: base.map((one) => one.id).filter((id) => !after.has(id)) };
  };
  const timer = setInterval(() => {
    const next = picture(window, Date.now());
    const diff = { version: next.version, base_version: sent.version, at: next.at, covered_seconds: next.covered_seconds, diagnosis: next.diagnosis, nodes: changes(sent.nodes, next.nodes), edges: changes(sent.edges, next.edges) };
    sent = next;
    response.write(`event: diff\nid: ${next.version}\ndata: ${JSON.stringify(diff)}\n\n`);
  }, 1000);
  streams.add(response);
  response.on('close', () => {
    clearInterval(timer);
    streams.delete(response);
  });
}

function circuitEvents(response) {
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
  const send = () => {
    const document = circuitsView(values.scenario, late, Date.now(), broken);
    response.write(`event: circuits\nid: ${document.version}\ndata: ${JSON.stringify(document)}\n\n`);
  };
  send();
  const timer = setInterval(send, 1000);
  streams.add(response);
  response.on('close', () => {
    clearInterval(timer);
    streams.delete(response);
  });
}

async function file(response, path) {
  const wanted = path === '/' ? '/index.html' : normalize(path);
  try {
    const body = await readFile(join(values.dist, wanted));
    response.writeHead(200, { 'content-type': TYPES[extname(wanted)] ?? 'application/octet-stream', 'content-security-policy': CSP, 'x-content-type-options': 'nosniff' });
    response.end(body);
  } catch {
    problem(response, 404, 'Not found', `there is nothing at ${path}`);
  }
}

const server = createServer((request, response) => {
  const url = new URL(request.url ?? '/', 'http://mock');
  const window = url.searchParams.get('window') ?? '1m';
  const now = Date.now();
  if (request.method === 'POST' && url.pathname === '/api/ca/rotate') {
    rotating = true;
    return json(response, authority(values.scenario, now, started, rotating));
  }
  if (request.method === 'POST') {
    if (url.pathname === '/mock/traffic') late = true;
    if (url.pathname === '/mock/down') {
      down = true;
      for (const stream of streams) stream.destroy();
    }
    if (url.pathname === '/mock/up') down = false;
    if (url.pathname === '/mock/break') broken = true;
    if (url.pathname === '/mock/heal') broken = false;
    response.end();
    return;
  }
  if (!url.pathname.startsWith('/api')) return void file(response, url.pathname);
  if (down) return problem(response, 503, 'Unavailable', 'the mock is down');
  if (url.pathname === '/api/session') return json(response, { required: false, who: { name: 'anybody', role: 'operator', how: 'open', session: false }, ways: { token: false } });
  if (url.pathname === '/api/graph') return json(response, picture(window, now));
  if (url.pathname === '/api/graph/events') return events(response, window);
  if (url.pathname.startsWith('/api/edges/')) {
    const body = detail(values.scenario, late, url.pathname.split('/').at(-1), window, now, started);
    return body ? json(response, body) : problem(response, 404, 'Not found', 'there is no such edge');
  }
  if (url.pathname === '/api/circuits') return json(response, circuitsView(values.scenario, late, now, broken));
  if (url.pathname === '/api/circuits/events') return circuitEvents(response);
  if (url.pathname === '/api/routes') return json(response, routesView(values.scenario, late, window, now));
  if (url.pathname === '/api/proxies') return json(response, { proxies: proxies(values.scenario, now, started, rotating) });
  if (url.pathname === '/api/ca') return json(response, authority(values.scenario, now, started, rotating));
  if (url.pathname === '/api/overview') return json(response, { proxies: { connected: proxies(values.scenario, now, started).length } });
  if (url.pathname === '/api/config/errors') {
    return json(response, { errors: values.scenario === 'namespaces' ? [{ file: 'orders.yaml', line: 14, column: 9, object: 'Service shop/orders', field: 'spec.ports[0].appProtcol', message: 'unknown field `appProtcol`, did you mean `appProtocol`?' }] : [] });
  }
  return problem(response, 404, 'Not found', `there is nothing at ${url.pathname}`);
});
server.listen(Number(values.port), '127.0.0.1', () => process.stdout.write(`http://127.0.0.1:${server.address().port}\n`));
