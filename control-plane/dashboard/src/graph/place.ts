/**
 * Finds a spot for a node that appears later, without moving anybody. Pure.
 *
 * In: the positions there are, and who the newcomer talks to. Out: one position: a column right of its callers
 * (or left of what it calls), at its neighbours' height, moved up or down to the nearest free spot.
 * Non-goal: beauty over time; that is what "re-layout" is for.
 */
import { CARD, type Link, type Point } from './geometry';

export const COLUMN = CARD.width + 180;
export const ROW = CARD.height + 34;

/** Rows tried above and below before giving up and taking the place below everything. */
const ROWS_MAX = 200;

export function place(id: string, links: readonly Link[], taken: ReadonlyMap<string, Point>): Point {
  const callers: Point[] = [];
  const callees: Point[] = [];
  for (const link of links) {
    if (link.target === id && link.source !== id) add(callers, taken.get(link.source));
    if (link.source === id && link.target !== id) add(callees, taken.get(link.target));
  }
  return nearestFree(wish(callers, callees, taken), taken);
}

/** Places several newcomers; those with a placed neighbour go first, so that chains grow from what is known. */
export function placeAll(ids: readonly string[], links: readonly Link[], taken: ReadonlyMap<string, Point>): Map<string, Point> {
  const all = new Map(taken);
  const waiting = [...ids].sort();
  while (waiting.length > 0) {
    const known = waiting.findIndex((id) =>
      links.some((link) => (link.target === id && all.has(link.source)) || (link.source === id && all.has(link.target))),
    );
    const [id] = waiting.splice(Math.max(0, known), 1);
    if (id === undefined) break;
    all.set(id, place(id, links, all));
  }
  return all;
}

function wish(callers: readonly Point[], callees: readonly Point[], taken: ReadonlyMap<string, Point>): Point {
  if (callers.length > 0) {
    return { x: Math.max(...callers.map((point) => point.x)) + COLUMN, y: average(callers) };
  }
  if (callees.length > 0) {
    return { x: Math.min(...callees.map((point) => point.x)) - COLUMN, y: average(callees) };
  }
  if (taken.size === 0) return { x: 0, y: 0 };
  const points = [...taken.values()];
  return { x: Math.min(...points.map((point) => point.x)), y: Math.max(...points.map((point) => point.y)) + ROW };
}

function nearestFree(wanted: Point, taken: ReadonlyMap<string, Point>): Point {
  const points = [...taken.values()];
  for (let step = 0; step <= ROWS_MAX; step += 1) {
    for (const direction of step === 0 ? [0] : [1, -1]) {
      const candidate = { x: wanted.x, y: wanted.y + direction * step * (ROW / 2) };
      if (points.every((point) => !collide(candidate, point))) return candidate;
    }
  }
  return { x: wanted.x, y: Math.max(...points.map((point) => point.y)) + ROW };
}

function collide(a: Point, b: Point): boolean {
  return Math.abs(a.x - b.x) < CARD.width + 24 && Math.abs(a.y - b.y) < ROW - 8;
}

function average(points: readonly Point[]): number {
  return points.reduce((sum, point) => sum + point.y, 0) / points.length;
}

function add(list: Point[], point: Point | undefined): void {
  if (point) list.push(point);
}

/** Rows of lone nodes, below everything that has edges: a grid about twice as wide as high. */
export function grid(ids: readonly string[], taken: ReadonlyMap<string, Point>): Map<string, Point> {
  const points = [...taken.values()];
  const left = points.length > 0 ? Math.min(...points.map((point) => point.x)) : 0;
  const right = points.length > 0 ? Math.max(...points.map((point) => point.x)) : 0;
  const top = points.length > 0 ? Math.max(...points.map((point) => point.y)) + 1.5 * ROW : 0;
  const step = CARD.width + 36;
  const columns = Math.max(Math.floor((right - left) / step) + 1, Math.ceil(Math.sqrt(ids.length)), 1);
  return new Map(
    [...ids].sort().map((id, index): [string, Point] => [id, { x: left + (index % columns) * step, y: top + Math.floor(index / columns) * ROW }]),
  );
}
