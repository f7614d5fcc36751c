import { describe, expect, it } from 'vitest';
import { access } from './access';

describe('policies on access', () => {
  it('keep what was done apart from what would have been done', () => {
    const { policies, unmatched } = access({
      window: '1m',
      policies: [
        { name: 'shop/orders', action: 'Deny', audit: true, targets: ['Service shop/orders'], said: [{ rule: 'AccessPolicy/shop/orders/0', service: 'orders.shop:80', would_deny_per_second: 2 }] },
        { name: 'shop/tls', action: null, audit: false, targets: ['Namespace shop'], said: [] },
      ],
      unmatched: [{ rule: null, service: 'orders.shop:80', denied_per_second: 0.5 }],
    });
    expect(policies[0]).toMatchObject({ action: 'Deny', audit: true });
    expect(policies[0]?.said[0]).toMatchObject({ allowed: 0, denied: 0, wouldDeny: 2 });
    expect(policies[1]?.action).toBeNull();
    expect(unmatched[0]).toMatchObject({ rule: null, denied: 0.5 });
  });
});
