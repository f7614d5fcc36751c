/**
 * Asks the control plane questions. Every request has a deadline; errors are problem+json (RFC 9457) in words.
 */
import { access as decodeAccess, type Access } from './access';
import { circuits as decodeCircuits, type Circuits } from './circuits';
import { authority as decodeAuthority, type Authority } from './authority';
import * as decode from './decode';
import { routes as decodeRoutes, type Routes } from './routes';
import { session as decodeSession, type Session } from './session';
import type { ConfigError, EdgeDetail, Graph, Overview, Proxy } from './model';

const DEADLINE_MS = 8_000;

export class Problem extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

export const graph = (window: string): Promise<Graph> => get(`api/graph?window=${window}`).then(decode.graph);
export const edge = (id: string, window: string): Promise<EdgeDetail> =>
  get(`api/edges/${encodeURIComponent(id)}?window=${window}`).then(decode.edgeDetail);
export const proxies = (): Promise<Proxy[]> => get('api/proxies').then(decode.proxies);
export const overview = (): Promise<Overview> => get('api/overview').then(decode.overview);
export const configErrors = (): Promise<ConfigError[]> => get('api/config/errors').then(decode.configErrors);
export const routes = (window: string): Promise<Routes> => get(`api/routes?window=${window}`).then(decodeRoutes);
export const access = (window: string): Promise<Access> => get(`api/access?window=${window}`).then(decodeAccess);
export const authority = (): Promise<Authority> => get('api/ca').then(decodeAuthority);
/** Begins to replace the root. For operators. */
export const rotate = (): Promise<Authority> =>
  ask('api/ca/rotate', { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{"force":false}' }).then(decodeAuthority);
export const circuits = (): Promise<Circuits> => get('api/circuits').then(decodeCircuits);
export const session = (): Promise<Session> => get('api/session').then(decodeSession);
/** The token goes out once; from then on a cookie stands for it. */
export const signIn = (token: string): Promise<Session> =>
  ask('api/session', { method: 'POST', headers: { authorization: `Bearer ${token}` } }).then(decodeSession);
export const signOut = (): Promise<unknown> => ask('api/session', { method: 'DELETE' });

const get = (path: string): Promise<unknown> => ask(path, {});

async function ask(path: string, how: RequestInit): Promise<unknown> {
  const response = await fetch(path, {
    ...how,
    headers: { accept: 'application/json', ...how.headers },
    cache: 'no-store',
    signal: AbortSignal.timeout(DEADLINE_MS),
  });
  if (!response.ok) throw new Problem(response.status, await problem(response));
  return response.json();
}

async function problem(response: Response): Promise<string> {
  try {
    const body = (await response.json()) as { title?: unknown; detail?: unknown };
    const words = [body.title, body.detail].filter((part) => typeof part === 'string');
    if (words.length > 0) return words.join(': ');
  } catch {
    // Not JSON: the status line is all there is.
  }
  return `${response.status} ${response.statusText}`.trim();
}
