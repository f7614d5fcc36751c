/** Who looks at the page, and how one signs in: `GET /api/session`. */
import { object, text, type Json } from './json';

export type Role = 'viewer' | 'operator';

export interface Who {
  readonly name: string;
  readonly role: Role;
  /** Whether a cookie stands for them, so that they can sign out. */
  readonly session: boolean;
}

export interface Session {
  readonly required: boolean;
  readonly who: Who | null;
  readonly token: boolean;
  /** Another authority that signs people in. */
  readonly oidc: { readonly name: string; readonly href: string } | null;
}

export function session(value: unknown): Session {
  const json = object(value, 'session');
  const ways = (json.ways ?? {}) as Json;
  return { required: json.required === true, who: who(json.who), token: ways.token === true, oidc: oidc(ways.oidc) };
}

function who(value: unknown): Who | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = value as Json;
  // What this page does not know is worth least.
  return { name: text(json.name) ?? '', role: json.role === 'operator' ? 'operator' : 'viewer', session: json.session === true };
}

function oidc(value: unknown): Session['oidc'] {
  if (typeof value !== 'object' || value === null) return null;
  const { name, href } = value as Json;
  return typeof name === 'string' && typeof href === 'string' ? { name, href } : null;
}
