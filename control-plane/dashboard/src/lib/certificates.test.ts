import { describe, expect, it } from 'vitest';
import { authority } from '../api/authority';
import { proxy } from '../testing';
import { linkState, skew, state, warnings } from './certificates';

const NOW = 1_800_000_000_000;
const link = (days: number) => ({ subject: 'CN=x', fingerprint: '1a2b3c4d', not_before: NOW / 1000 - 86_400, not_after: NOW / 1000 + days * 86_400 });
const read = (change: object = {}) =>
  authority({ trust_domain: 'cluster.local', kept: true, brought: false, roots: [link(3650)], issuer: link(365), own: link(1), leaf_seconds: 86_400, sidecars: { connected: 2, trusting: 2, renewed: 2 }, rotation: null, ...change });
const lasting = (name: string, leftMs: number) => {
  const one = proxy(name, NOW);
  return { ...one, certificate: one.certificate && { ...one.certificate, notAfter: NOW + leftMs, notBefore: NOW + leftMs - 86_400_000 } };
};

describe('certificates', () => {
  it('are overdue when half of their life is long over', () => {
    expect(state(lasting('a', 43_200_000), NOW)).toBe('valid');
    expect(state(lasting('a', 20_000_000), NOW)).toBe('soon');
    expect(state(lasting('a', 0), NOW)).toBe('expired');
    expect(state(proxy('a', NOW, { certificate: null }), NOW)).toBe('none');
  });

  it('of the authority need a word a month ahead', () => {
    expect(linkState(read({ issuer: link(31) }).issuer, NOW)).toBe('valid');
    expect(linkState({ ...read().issuer, notBefore: NOW - 86_400_000 * 300, notAfter: NOW + 86_400_000 * 29 }, NOW)).toBe('soon');
    expect(linkState(read({ issuer: link(0) }).issuer, NOW)).toBe('expired');
  });

  it('that are well need no word', () => {
    expect(warnings([proxy('a', NOW), proxy('b', NOW)], read(), NOW)).toEqual([]);
    expect(warnings([], null, NOW)).toEqual([]);
  });

  it('that are not are named, worst first', () => {
    const all = [proxy('late', NOW, { clockBehindMs: 12_000 }), proxy('busy', NOW, { clockBehindMs: 9_000 }), proxy('nobody', NOW, { identity: null, certificate: null }), lasting('over', -1), proxy('old', NOW, { trustsBundle: false })];
    expect(warnings(all, read({ kept: false }), NOW)).toEqual([
      { kind: 'expired', of: ['over'] },
      { kind: 'anonymous', of: ['nobody'] },
      { kind: 'distrust', of: ['old'] },
      { kind: 'clock', of: ['late'] },
      { kind: 'memory' },
    ]);
    const rotation = { phase: 'distributing', since: 0, old: 'a', new: 'b', until: null, text: '', waiting: ['old-1'] };
    expect(warnings([all[4]!], read({ rotation }), NOW)).toEqual([]);
  });

  it('a clock that is right enough is right', () => {
    expect(skew(proxy('a', NOW, { clockBehindMs: -1_999 }))).toBe(null);
    expect(skew(proxy('a', NOW, { clockBehindMs: -2_000 }))).toBe(-2_000);
    expect(skew(proxy('a', NOW, { clockBehindMs: null }))).toBe(null);
  });

  it('a rotation is read', () => {
    const rotation = { phase: 'replacing', since: 1, old: 'aa', new: 'bb', until: 10, text: '', waiting: [] };
    expect(read({ rotation }).rotation).toEqual({ phase: 'replacing', old: 'aa', new: 'bb', until: 10_000, waiting: [] });
  });
});
