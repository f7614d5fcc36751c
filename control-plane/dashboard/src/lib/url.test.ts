import { describe, expect, it } from 'vitest';
import { read, WALL, wallHref, write, type View } from './url';

const SCREEN = { screen: 'topology', window: '1m', selection: null, search: '', tab: 'edges', wall: WALL } as const;

describe('the address', () => {
  it('gives back what was written', () => {
    const views: View[] = [
      { ...SCREEN, window: '5m', selection: { kind: 'edge', id: 'ab12' }, search: 'rt>200ms or !mtls', tab: 'proxies' },
      { ...SCREEN, selection: { kind: 'node', id: 'external:api.example.com:443' } },
      { ...SCREEN, screen: 'routes' },
      { ...SCREEN, screen: 'circuits', wall: { state: 'half_open', namespace: 'shop', service: 'orders.shop:8080', find: 'v2 web', order: 'busiest', circuit: 'endpoint|orders.shop:8080|10.0.0.7:8080' } },
      SCREEN,
    ];
    for (const view of views) expect(read(write(view))).toEqual(view);
  });

  it('is clean for an untouched screen, and survives nonsense', () => {
    expect(write(SCREEN)).toBe('');
    expect(wallHref({ state: 'open' })).toBe('?view=circuits&state=open');
    expect(read('?window=99d&tab=secrets&q=&view=walls&state=ajar&sort=')).toEqual(SCREEN);
  });
});
