import { describe, expect, it } from 'vitest';
import { read, write, type View } from './url';

describe('the address', () => {
  it('gives back what was written', () => {
    const views: View[] = [
      { window: '5m', selection: { kind: 'edge', id: 'ab12' }, search: 'rt>200ms or !mtls', tab: 'proxies' },
      { window: '1m', selection: { kind: 'node', id: 'external:api.example.com:443' }, search: '', tab: 'edges' },
      { window: '1m', selection: null, search: '', tab: 'edges' },
    ];
    for (const view of views) expect(read(write(view))).toEqual(view);
  });

  it('is clean for an untouched screen, and survives nonsense', () => {
    expect(write({ window: '1m', selection: null, search: '', tab: 'edges' })).toBe('');
    expect(read('?window=99d&tab=secrets&q=').window).toBe('1m');
  });
});
