import { describe, expect, it } from 'vitest';
import { edge, node, proxy } from '../testing';
import { advice, identities, mark, mutualShare, sidecars } from './lock';

const WEB = node('workload:shop/web');
const ORDERS = node('workload:shop/orders');
const call = (change: object) => edge(WEB.id, ORDERS.id, change);
const plain = proxy('orders', 0, { identity: null, certificate: null });

describe('the lock', () => {
  it('is closed only when every call was mutual', () => {
    expect(mark(call({ tls: 'mutual' }), [proxy('orders', 0)])).toEqual({ icon: 'mutual', notable: false, share: null });
    expect(mark(call({ tls: 'mixed', tlsCalls: { mutual: 3, simple: 0, none: 1 } }), [])).toEqual({ icon: 'mixed', notable: true, share: 0.75 });
  });

  it('is open where the callee could do better, and absent where the mesh has no say', () => {
    expect(mark(call({ tls: 'none' }), [proxy('orders', 0)])).toMatchObject({ icon: 'none', notable: true });
    expect(mark(call({ tls: 'none' }), [plain])).toMatchObject({ icon: 'none', notable: false });
    expect(mark(edge('unmeshed:10.0.0.9', ORDERS.id, { tls: 'none' }), [proxy('orders', 0)])).toMatchObject({ icon: 'none', notable: false });
    expect(mark(call({ tls: 'none' }), [])).toBe(null);
    expect(mark(call({ tls: 'mutual', idle: true }), [proxy('orders', 0)])).toBe(null);
    expect(mark(call({ tls: 'unknown' }), [proxy('orders', 0)])).toBe(null);
  });

  it('knows no share of nothing', () => {
    expect(mutualShare(call({}))).toBe(null);
  });

  it('says who was verified, of this workload only', () => {
    const all = [proxy('orders', 0), proxy('orders', 0, { id: 'orders-2' }), proxy('web', 0), proxy('orders', 0, { namespace: 'other', identity: 'spiffe://x/ns/other/sa/orders' })];
    expect(identities(sidecars(ORDERS, all))).toEqual(['spiffe://cluster.local/ns/shop/sa/orders']);
    expect(sidecars(node('external:bank', { kind: 'external', name: 'orders' }), all)).toEqual([]);
  });

  it('says what stands in the way', () => {
    const both = [proxy('web', 0), proxy('orders', 0)];
    const none = call({ tls: 'none' });
    expect(advice(none, WEB, ORDERS, both)).toBe('mode');
    expect(advice(none, WEB, ORDERS, [proxy('web', 0), plain])).toBe('callee_anonymous');
    expect(advice(none, WEB, ORDERS, [proxy('web', 0, { identity: null }), proxy('orders', 0)])).toBe('caller_anonymous');
    expect(advice(none, node('unmeshed:10.0.0.9', { kind: 'unmeshed' }), ORDERS, both)).toBe('caller_unmeshed');
    expect(advice(none, WEB, node('external:bank:80', { kind: 'external' }), both)).toBe('callee_external');
    expect(advice(call({ tls: 'mutual' }), WEB, ORDERS, both)).toBe(null);
  });
});
