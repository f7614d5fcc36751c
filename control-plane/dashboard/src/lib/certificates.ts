/** Which certificates and clocks deserve a word. Pure; moments are Unix milliseconds. */
import type { Authority, Link } from '../api/authority';
import type { Proxy } from '../api/model';

/** A sidecar renews at about half of a life; with less than this share left, something keeps it from it. */
export const OVERDUE_SHARE = 0.25;
/** Roots, and issuers that people bring, are replaced by people: they need time. */
export const AUTHORITY_SOON_MS = 30 * 86_400_000;
/** As the control plane has it: less may be the time on the way. */
const CLOCK_MS = 2_000;
/** A report that waited on a busy machine looks like a clock that is behind, and certificates are dated back by a minute. */
const CLOCK_WARN_MS = 10_000;

export type State = 'none' | 'expired' | 'soon' | 'valid';

/** How a certificate is at `now`. */
export function state({ certificate }: Proxy, now: number): State {
  if (certificate === null) return 'none';
  if (certificate.notAfter <= now) return 'expired';
  return certificate.notAfter - now < OVERDUE_SHARE * (certificate.notAfter - certificate.notBefore) ? 'soon' : 'valid';
}

/** The same of a certificate of the authority. */
export function linkState({ notBefore, notAfter }: Link, now: number): State {
  if (notAfter <= now) return 'expired';
  // One that lives for less altogether is replaced by itself.
  return notAfter - now < Math.min(AUTHORITY_SOON_MS, OVERDUE_SHARE * (notAfter - notBefore)) ? 'soon' : 'valid';
}

/** How far a clock is wrong; null when it is right enough, or not known. */
export function skew({ clockBehindMs }: Proxy): number | null {
  return clockBehindMs === null || Math.abs(clockBehindMs) < CLOCK_MS ? null : clockBehindMs;
}

export type Warning =
  | { readonly kind: 'anonymous' | 'expired' | 'soon' | 'distrust' | 'clock'; readonly of: readonly string[] }
  | { readonly kind: 'authority' | 'memory' };

/** What somebody should know, worst first. */
export function warnings(proxies: readonly Proxy[], authority: Authority | null, now: number): Warning[] {
  const names = (which: (proxy: Proxy) => boolean): string[] => [...new Set(proxies.filter(which).map(({ workload, id }) => workload || id))].sort();
  const found: Warning[] = [];
  const add = (kind: 'anonymous' | 'expired' | 'soon' | 'distrust' | 'clock', which: (proxy: Proxy) => boolean): void => {
    const of = names(which);
    if (of.length > 0) found.push({ kind, of });
  };
  add('expired', (proxy) => state(proxy, now) === 'expired');
  add('anonymous', (proxy) => proxy.identity === null);
  add('soon', (proxy) => state(proxy, now) === 'soon');
  if (authority && [...authority.roots, authority.issuer].some((link) => linkState(link, now) !== 'valid')) found.push({ kind: 'authority' });
  // While a root is replaced, they are what is waited for.
  if (authority && authority.rotation === null) add('distrust', (proxy) => proxy.identity !== null && proxy.trustsBundle === false);
  add('clock', (proxy) => Math.abs(proxy.clockBehindMs ?? 0) >= CLOCK_WARN_MS);
  if (authority && !authority.kept && !authority.brought) found.push({ kind: 'memory' });
  return found;
}
