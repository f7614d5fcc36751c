import { describe, expect, it } from 'vitest';
import { along, CARD, curves, relative, trace, type Point } from './geometry';

const positions = new Map<string, Point>([
  ['a', { x: 0, y: 0 }],
  ['b', { x: 500, y: 120 }],
  ['c', { x: 10, y: 200 }],
]);
const link = (source: string, target: string) => ({ id: `${source}>${target}`, source, target });

describe('curves', () => {
  it('leave on the right and arrive on the left', () => {
    const curve = curves([link('a', 'b')], positions, new Map()).get('a>b');
    expect(curve?.start).toEqual({ x: CARD.width / 2, y: 0 });
    expect(curve?.end).toEqual({ x: 500 - CARD.width / 2, y: 120 });
  });

  it('go below on the way back and beside in the same column', () => {
    const all = curves([link('b', 'a'), link('a', 'c')], positions, new Map());
    expect(all.get('b>a')?.start.y).toBe(120 + CARD.height / 2);
    expect(all.get('a>c')?.end.x).toBe(10 + CARD.width / 2);
  });

  it('give edges on one side spots in the order of their other ends', () => {
    const spread = new Map<string, Point>([['a', { x: 0, y: 0 }], ['u', { x: 500, y: -90 }], ['v', { x: 500, y: 90 }]]);
    const all = curves([link('a', 'v'), link('a', 'u')], spread, new Map());
    expect(all.get('a>u')?.start.y).toBeLessThan(all.get('a>v')?.start.y ?? 0);
  });

  it('go around a card in between, also when all the near lanes are taken', () => {
    const row = new Map<string, Point>([['a', { x: 0, y: 0 }], ['x', { x: 400, y: 0 }], ['y', { x: 400, y: 90 }], ['b', { x: 800, y: 20 }]]);
    const curve = curves([link('a', 'b')], row, new Map()).get('a>b');
    for (const id of ['x', 'y']) {
      const card = row.get(id) as Point;
      for (const { x, y } of curve?.samples ?? []) {
        expect(Math.abs(x - card.x) < CARD.width / 2 && Math.abs(y - card.y) < CARD.height / 2).toBe(false);
      }
    }
  });

  it('skip edges whose ends have no place', () => {
    expect(curves([link('a', 'nowhere')], positions, new Map()).size).toBe(0);
  });

  it('say the same to Cytoscape as to the dots', () => {
    const curve = trace({ x: 10, y: 20 }, { x: 310, y: 140 }, [{ x: 120, y: 20 }, { x: 200, y: 140 }]);
    const { weights, distances } = relative(curve);
    const [dx, dy] = [curve.end.x - curve.start.x, curve.end.y - curve.start.y];
    const length = Math.hypot(dx, dy);
    curve.controls.forEach((control, index) => {
      const [w, d] = [weights[index] ?? 0, distances[index] ?? 0];
      expect(curve.start.x + dx * w - (dy / length) * d).toBeCloseTo(control.x);
      expect(curve.start.y + dy * w + (dx / length) * d).toBeCloseTo(control.y);
    });
  });

  it('are walked at even speed from end to end', () => {
    const curve = trace({ x: 0, y: 0 }, { x: 100, y: 0 }, []);
    expect(along(curve, 0)).toEqual({ x: 0, y: 0 });
    expect(along(curve, 0.25)).toEqual({ x: 25, y: 0 });
    expect(along(curve, 1)).toEqual({ x: 100, y: 0 });
  });
});
