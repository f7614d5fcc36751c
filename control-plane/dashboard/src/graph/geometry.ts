/**
 * The shape of an edge: one curve, used by Cytoscape to draw and hit-test it, by the traffic layer to move
 * dots along it, and by the labels to sit on it. Pure.
 *
 * A long edge bends around the cards in between: as the layout says, else by a lane above or below them.
 *
 * A curve is a quadratic B-spline: it starts and ends on the cards and bends towards its control points.
 * Calls leave a card on the right and arrive on the left; a call back to an earlier column goes below.
 * Invariant: every consumer sees the same points, so dots never leave their line.
 */

export interface Point {
  readonly x: number;
  readonly y: number;
}

/** Size of a node's card, the same for every kind: a calm grid matters more than a snug fit. */
export const CARD = { width: 204, height: 56 } as const;

export interface Link {
  readonly id: string;
  readonly source: string;
  readonly target: string;
}

export interface Curve {
  readonly start: Point;
  readonly end: Point;
  readonly controls: readonly Point[];
  /** The same curve as a polyline, for dots and labels. */
  readonly samples: readonly Point[];
  readonly lengths: readonly number[];
  readonly middle: Point;
}

type Side = 'left' | 'right' | 'bottom';

const SAMPLES_PER_SEGMENT = 12;
const PORT_STEP = 9;

/** Curves for all links whose ends have a position. `bends` come from the layout and hold until an end moves. */
export function curves(
  links: Iterable<Link>,
  positions: ReadonlyMap<string, Point>,
  bends: ReadonlyMap<string, readonly Point[]>,
): Map<string, Curve> {
  const placed = [...links].filter((link) => positions.has(link.source) && positions.has(link.target));
  const ports = spread(placed, positions);
  const result = new Map<string, Curve>();
  for (const link of placed) {
    const ends = ports.get(link.id);
    if (!ends) continue;
    const known = bends.get(link.id);
    const controls = shape(ends, known ?? detour(link, ends, positions));
    result.set(link.id, trace(ends.start, ends.end, controls));
  }
  return result;
}

interface Ends {
  start: Point;
  end: Point;
  leaves: Side;
  arrives: Side;
}

function sides(source: Point, target: Point): [Side, Side] {
  const dx = target.x - source.x;
  if (dx > CARD.width + 24) return ['right', 'left'];
  if (dx > -CARD.width / 2) return ['right', 'right'];
  return ['bottom', 'bottom'];
}

/** Gives each end its own spot on the card's side, ordered by where the other end is, so lines do not cross at the card. */
function spread(links: readonly Link[], positions: ReadonlyMap<string, Point>): Map<string, Ends> {
  const result = new Map<string, Ends>();
  const slots = new Map<string, { other: Point; put: (point: Point) => void }[]>();
  for (const link of links) {
    const source = positions.get(link.source) as Point;
    const target = positions.get(link.target) as Point;
    const [leaves, arrives] = link.source === link.target ? (['right', 'bottom'] as const) : sides(source, target);
    const ends: Ends = { start: source, end: target, leaves, arrives };
    result.set(link.id, ends);
    slot(slots, `${link.source}\n${leaves}`, target, (point) => (ends.start = point));
    slot(slots, `${link.target}\n${arrives}`, source, (point) => (ends.end = point));
  }
  for (const [key, all] of slots) {
    const [id = '', side = 'left'] = key.split('\n');
    const centre = positions.get(id) as Point;
    const along = side === 'bottom' ? 'x' : 'y';
    all.sort((a, b) => a.other[along] - b.other[along]);
    const room = side === 'bottom' ? CARD.width - 60 : CARD.height - 20;
    const step = Math.min(PORT_STEP, room / Math.max(1, all.length - 1));
    all.forEach(({ put }, index) => put(port(centre, side as Side, (index - (all.length - 1) / 2) * step)));
  }
  return result;
}

function slot<T>(map: Map<string, T[]>, key: string, other: Point, put: (point: Point) => void): void {
  const entry = { other, put } as T;
  const list = map.get(key);
  if (list) list.push(entry);
  else map.set(key, [entry]);
}

function port(centre: Point, side: Side, offset: number): Point {
  if (side === 'bottom') return { x: centre.x + offset, y: centre.y + CARD.height / 2 };
  return { x: centre.x + ((side === 'right' ? 1 : -1) * CARD.width) / 2, y: centre.y + offset };
}

function shape({ start, end, leaves, arrives }: Ends, bends: readonly Point[]): Point[] {
  if (leaves === 'right' && arrives === 'left') {
    const reach = Math.min(110, Math.max(24, (end.x - start.x) / 2));
    const first = { x: start.x + reach, y: start.y };
    const last = { x: end.x - reach, y: end.y };
    const between = bends.filter((bend) => bend.x > first.x && bend.x < last.x);
    return [first, ...between, last];
  }
  if (leaves === 'right' && arrives === 'right') {
    const x = Math.max(start.x, end.x) + 56;
    return [
      { x, y: start.y },
      { x, y: end.y },
    ];
  }
  const y = Math.max(start.y, end.y) + 64;
  const outward = arrives === 'bottom' && leaves === 'bottom' ? 0 : 70;
  return [
    { x: start.x + outward, y },
    { x: end.x, y },
  ];
}

/** Room between a card and a lane that passes it. */
const LANE = 20;
/** A lane that is blocked itself moves on; after this many tries the line may cross a card. */
const LANES_MAX = 6;

/** Bends for an edge that would run behind a card that is none of its ends. */
function detour(link: Link, { start, end, leaves, arrives }: Ends, positions: ReadonlyMap<string, Point>): Point[] {
  if (leaves !== 'right' || arrives !== 'left' || end.x - start.x < CARD.width) return [];
  const between: Point[] = [];
  for (const [id, point] of positions) {
    const beside = point.x + CARD.width / 2 < start.x || point.x - CARD.width / 2 > end.x;
    if (!beside && id !== link.source && id !== link.target) between.push(point);
  }
  const straight = trace(start, end, shape({ start, end, leaves, arrives }, []));
  const blocking = between.filter((card) => straight.samples.some((point) => covers(card, point)));
  if (blocking.length === 0) return [];
  const reach = CARD.width / 2 + LANE;
  const [left, right] = [Math.min(...blocking.map((card) => card.x)) - reach, Math.max(...blocking.map((card) => card.x)) + reach];
  const lanes = [-1, 1].map((side) => {
    let y = edgeOf(blocking, side);
    for (let tries = 0; tries < LANES_MAX; tries += 1) {
      const inTheWay = between.filter((card) => Math.abs(card.y - y) < CARD.height / 2 + 2 && card.x + reach > left && card.x - reach < right);
      if (inTheWay.length === 0) break;
      y = edgeOf(inTheWay, side);
    }
    return y;
  });
  const middle = (start.y + end.y) / 2;
  const y = lanes.reduce((best, lane) => (Math.abs(lane - middle) < Math.abs(best - middle) ? lane : best));
  return [
    { x: left, y },
    { x: right, y },
  ];
}

function edgeOf(cards: readonly Point[], side: number): number {
  const ys = cards.map((card) => card.y + side * (CARD.height / 2 + LANE));
  return side < 0 ? Math.min(...ys) : Math.max(...ys);
}

function covers(card: Point, point: Point): boolean {
  return Math.abs(card.x - point.x) < CARD.width / 2 && Math.abs(card.y - point.y) < CARD.height / 2 + 2;
}

/** Evaluates the B-spline: pieces join at the midpoints between neighbouring controls. */
export function trace(start: Point, end: Point, controls: readonly Point[]): Curve {
  const samples: Point[] = [start];
  let from = start;
  controls.forEach((control, index) => {
    const next = controls[index + 1];
    const to = next ? mix(control, next, 0.5) : end;
    for (let step = 1; step <= SAMPLES_PER_SEGMENT; step += 1) {
      const t = step / SAMPLES_PER_SEGMENT;
      samples.push(mix(mix(from, control, t), mix(control, to, t), t));
    }
    from = to;
  });
  if (controls.length === 0) samples.push(end);
  const lengths = [0];
  for (let index = 1; index < samples.length; index += 1) {
    const a = samples[index - 1] as Point;
    const b = samples[index] as Point;
    lengths.push((lengths[index - 1] as number) + Math.hypot(b.x - a.x, b.y - a.y));
  }
  const curve = { start, end, controls, samples, lengths, middle: start };
  return { ...curve, middle: along(curve, 0.5) };
}

/** The point at share `t` (0..1) of the curve's length. */
export function along(curve: Pick<Curve, 'samples' | 'lengths'>, t: number): Point {
  const { samples, lengths } = curve;
  const wanted = t * (lengths.at(-1) ?? 0);
  let low = 0;
  let high = lengths.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if ((lengths[middle] as number) <= wanted) low = middle;
    else high = middle;
  }
  const a = lengths[low] as number;
  const b = lengths[high] as number;
  return mix(samples[low] as Point, samples[high] as Point, b > a ? (wanted - a) / (b - a) : 0);
}

/** Cytoscape wants a control point as a share along the line between the ends and a distance from that line. */
export function relative(curve: Curve): { weights: number[]; distances: number[] } {
  const dx = curve.end.x - curve.start.x;
  const dy = curve.end.y - curve.start.y;
  const length = Math.hypot(dx, dy) || 1;
  const weights: number[] = [];
  const distances: number[] = [];
  for (const control of curve.controls) {
    const cx = control.x - curve.start.x;
    const cy = control.y - curve.start.y;
    weights.push((cx * dx + cy * dy) / (length * length));
    distances.push((-cx * dy + cy * dx) / length);
  }
  return { weights, distances };
}

function mix(a: Point, b: Point, t: number): Point {
  return { x: a.x + (b.x - a.x) * t, y: a.y + (b.y - a.y) * t };
}
