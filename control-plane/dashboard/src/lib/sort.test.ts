import { describe, expect, it } from 'vitest';
import { clicked, sorted } from './sort';

describe('sorting', () => {
  it('puts the unknown last in both directions', () => {
    const rows = [null, 3, 1, 2];
    expect(sorted(rows, (row) => row, false)).toEqual([1, 2, 3, null]);
    expect(sorted(rows, (row) => row, true)).toEqual([3, 2, 1, null]);
  });

  it('turns round on a second click and starts numbers with the largest', () => {
    expect(clicked({ column: 'a', descending: false }, 'a', false)).toEqual({ column: 'a', descending: true });
    expect(clicked({ column: 'a', descending: false }, 'rate', true)).toEqual({ column: 'rate', descending: true });
  });
});
