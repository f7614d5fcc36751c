import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { Graph } from '../api/model';
import { edge, node } from '../testing';
import { Arranger } from './arrange.svelte';
import type { Point } from './geometry';
import type { LayoutInput } from './layout';
import type { Memory } from './memory';

vi.mock('./layout', () => ({
  // One row per node, so that a layout of more nodes moves everybody.
  layered: async ({ nodes }: LayoutInput) => ({
    positions: new Map(nodes.map(({ id }, index): [string, Point] => [id, { x: 1000 * nodes.length, y: 200 * index }])),
    bends: new Map(),
  }),
}));

function picture(ids: string[], links: [string, string][] = []): Graph {
  return {
    version: 1, at: 0, windowSeconds: 60, diagnosis: null,
    nodes: new Map(ids.map((id) => [id, node(id)])),
    edges: new Map(links.map(([a, b]) => [`${a}>${b}`, edge(a, b)])),
  };
}

describe('the arrangement', () => {
  let saved: { dragged: Map<string, Point>; picture: Map<string, Point> };
  const memory: Memory = {
    load: () => ({ dragged: new Map(saved.dragged), picture: new Map(saved.picture) }),
    saveDragged: (positions) => void (saved.dragged = new Map(positions)),
    savePicture: (positions) => void (saved.picture = new Map(positions)),
  };
  const arranged = async (graph: Graph): Promise<Arranger> => {
    const arranger = new Arranger(memory, () => true);
    arranger.update(graph);
    await vi.advanceTimersByTimeAsync(5_000);
    return arranger;
  };

  beforeEach(() => {
    vi.useFakeTimers();
    vi.stubGlobal('requestAnimationFrame', (step: (now: number) => void) => setTimeout(() => step(performance.now()), 16));
    vi.stubGlobal('cancelAnimationFrame', clearTimeout);
    saved = { dragged: new Map(), picture: new Map() };
  });
  afterEach(() => {
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  it('is made again while the first picture fills up, and never after', async () => {
    const arranger = new Arranger(memory, () => true);
    arranger.update(picture(['a', 'b'], [['a', 'b']]));
    await vi.advanceTimersByTimeAsync(500);
    const first = arranger.positions.get('a');
    arranger.update(picture(['a', 'b', 'c'], [['a', 'b'], ['b', 'c']]));
    await vi.advanceTimersByTimeAsync(5_000);
    const settled = arranger.positions.get('a');
    expect(settled).not.toEqual(first);
    expect(arranger.settled).toBe(true);
    arranger.update(picture(['a', 'b', 'c', 'd'], [['a', 'b'], ['b', 'c'], ['a', 'd']]));
    await vi.advanceTimersByTimeAsync(5_000);
    expect(arranger.positions.get('a')).toBe(settled);
    expect(arranger.positions.has('d')).toBe(true);
    expect(arranger.untidy).toBe(1);
  });

  it('does not settle before the first edge', async () => {
    const arranger = await arranged(picture(['a', 'b']));
    expect(arranger.settled).toBe(false);
    arranger.update(picture(['a', 'b'], [['a', 'b']]));
    await vi.advanceTimersByTimeAsync(5_000);
    expect(arranger.settled).toBe(true);
  });

  it('moves a lone node once, when it gets its first edge', async () => {
    const arranger = await arranged(picture(['a', 'b', 'lone'], [['a', 'b']]));
    const before = new Map(arranger.positions);
    arranger.update(picture(['a', 'b', 'lone'], [['a', 'b'], ['b', 'lone']]));
    expect(arranger.positions.get('a')).toBe(before.get('a'));
    expect(arranger.positions.get('b')).toBe(before.get('b'));
    expect(arranger.positions.get('lone')).not.toEqual(before.get('lone'));
    const after = arranger.positions.get('lone');
    arranger.update(picture(['a', 'b', 'lone'], [['a', 'b'], ['b', 'lone'], ['a', 'lone']]));
    expect(arranger.positions.get('lone')).toBe(after);
  });

  it('gives a node that comes back its old place', async () => {
    const arranger = await arranged(picture(['a', 'b', 'c'], [['a', 'b'], ['a', 'c']]));
    const place = arranger.positions.get('c');
    arranger.update(picture(['a', 'b', 'd'], [['a', 'b'], ['a', 'd']]));
    arranger.update(picture(['a', 'b', 'c'], [['a', 'b'], ['a', 'c']]));
    expect(arranger.positions.get('c')).toEqual(place);
  });

  it('continues the picture after a reload', async () => {
    const links: [string, string][] = [['a', 'b'], ['b', 'c']];
    const before = (await arranged(picture(['a', 'b', 'c'], links))).positions;
    const again = new Arranger(memory, () => true);
    again.update(picture(['a', 'b', 'c'], links));
    expect(again.settled).toBe(true);
    for (const [id, point] of before) expect(again.positions.get(id)).toEqual(point);
  });

  it('keeps a drag through layouts until the user asks for a fresh one', async () => {
    const arranger = await arranged(picture(['a', 'b'], [['a', 'b']]));
    arranger.drag('a', { x: -50, y: -60 });
    arranger.drop('a');
    saved.picture.clear();
    const again = await arranged(picture(['a', 'b'], [['a', 'b']]));
    expect(again.positions.get('a')).toEqual({ x: -50, y: -60 });
    const asked = again.relayout();
    await vi.advanceTimersByTimeAsync(1_000);
    await asked;
    expect(again.positions.get('a')).not.toEqual({ x: -50, y: -60 });
    expect(saved.dragged.size).toBe(0);
  });
});
