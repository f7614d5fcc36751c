import { describe, expect, it } from 'vitest';
import { CARD, type Point } from './geometry';
import { COLUMN, grid, place, placeAll } from './place';

const link = (source: string, target: string) => ({ id: `${source}>${target}`, source, target });

describe('placing a newcomer', () => {
  it('puts a callee one column right of its caller', () => {
    expect(place('b', [link('a', 'b')], new Map([['a', { x: 0, y: 40 }]]))).toEqual({ x: COLUMN, y: 40 });
  });

  it('puts a caller one column left of what it calls', () => {
    expect(place('a', [link('a', 'b')], new Map([['b', { x: 0, y: 0 }]])).x).toBe(-COLUMN);
  });

  it('never moves anybody and never overlaps, whoever comes', () => {
    let taken: ReadonlyMap<string, Point> = new Map([['root', { x: 0, y: 0 }]]);
    const links = Array.from({ length: 40 }, (_, index) => link(index < 20 ? 'root' : `n${index - 20}`, `n${index}`));
    for (let index = 0; index < 40; index += 1) {
      const next: ReadonlyMap<string, Point> = placeAll([`n${index}`], links, taken);
      for (const [id, point] of taken) expect(next.get(id)).toBe(point);
      taken = next;
    }
    const points = [...taken.values()];
    points.forEach((a, index) =>
      points.slice(index + 1).forEach((b) => {
        expect(Math.abs(a.x - b.x) >= CARD.width || Math.abs(a.y - b.y) >= CARD.height).toBe(true);
      }),
    );
  });

  it('grows a chain from what is known, in whatever order the names come', () => {
    const chain = placeAll(['a', 'b', 'c'], [link('root', 'c'), link('c', 'b'), link('b', 'a')], new Map([['root', { x: 0, y: 0 }]]));
    expect([chain.get('c')?.x, chain.get('b')?.x, chain.get('a')?.x]).toEqual([COLUMN, 2 * COLUMN, 3 * COLUMN]);
  });
});

describe('lone nodes', () => {
  it('stand in rows below the rest', () => {
    const points = [...grid(['d', 'c', 'b', 'a'], new Map([['x', { x: 0, y: 100 }]])).values()];
    expect(new Set(points.map((point) => point.y)).size).toBe(2);
    expect(Math.min(...points.map((point) => point.y))).toBeGreaterThan(100 + CARD.height);
  });

  it('need nobody else', () => {
    expect(grid(['a'], new Map()).get('a')).toEqual({ x: 0, y: 0 });
    expect(grid([], new Map()).size).toBe(0);
  });
});
