/**
 * Decides where every node stands, and keeps it there.
 *
 * The first picture gets the layered layout. While it is still filling up (SETTLE_MS from the first edge on, and
 * only until somebody drags a node) the layout may be made again; after that nothing moves by itself: newcomers
 * are placed around the others, a node that comes back gets its old place, and a drag is for good.
 * Surprise: a node without any edge has no place of its own yet; it moves once, when it gets its first edge.
 */
import type { Graph } from '../api/model';
import type { Point } from './geometry';
import { layered, type LayoutInput } from './layout';
import type { Memory } from './memory';
import { placeAll } from './place';

/** How long after its first edge a picture may still be arranged as a whole. */
const SETTLE_MS = 4_000;
const SETTLE_DEBOUNCE_MS = 350;
/** A worker that does not answer by then is not going to; nodes are then placed one by one. */
const LAYOUT_DEADLINE_MS = 6_000;
const GLIDE_MS = 420;

export class Arranger {
  positions = $state.raw<ReadonlyMap<string, Point>>(new Map());
  bends = $state.raw<ReadonlyMap<string, readonly Point[]>>(new Map());
  /** Newcomers since the last whole layout: a hint that "re-layout" would tidy up. */
  untidy = $state(0);
  settled = $state(false);
  /** Grows when the picture as a whole was arranged: time to fit the view. */
  arranged = $state(0);

  readonly #memory: Memory;
  readonly #calm: () => boolean;
  #dragged: Map<string, Point>;
  #remembered: Map<string, Point>;
  #graph: Graph | null = null;
  #since: number | null = null;
  #shape = '';
  /** Nodes of a settled picture that have never had an edge. */
  #lone = new Set<string>();
  readonly #picture: ReadonlyMap<string, Point>;
  #running = false;
  #again = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #frame = 0;

  constructor(memory: Memory, calm: () => boolean) {
    this.#memory = memory;
    this.#calm = calm;
    const { dragged, picture } = memory.load();
    this.#dragged = dragged;
    this.#picture = picture;
    this.#remembered = new Map([...picture, ...dragged]);
  }

  update(graph: Graph): void {
    this.#graph = graph;
    const unknown = [...graph.nodes.keys()].filter((id) => !this.positions.has(id));
    const shape = signature(graph);
    if (shape === this.#shape && unknown.length === 0) return;
    this.#shape = shape;
    if (this.settled) {
      this.#join(unknown);
      return;
    }
    if (this.positions.size === 0 && this.#continues(unknown)) return;
    if (graph.edges.size > 0 && this.#since === null) {
      // Without a call there is no left and no right: only from here on does a layout mean something.
      this.#since = Date.now();
      setTimeout(() => this.#settle(), SETTLE_MS);
    }
    clearTimeout(this.#timer);
    if (this.positions.size === 0) void this.#whole(false);
    else this.#timer = setTimeout(() => void this.#whole(true), SETTLE_DEBOUNCE_MS);
  }

  /** After a reload of the page: the same picture as before, if most of it is still there. */
  #continues(ids: readonly string[]): boolean {
    const graph = this.#graph;
    if (!graph || graph.edges.size === 0) return false;
    const known = ids.filter((id) => this.#picture.has(id));
    if (known.length * 2 <= ids.length) return false;
    this.#settle();
    this.#join(ids);
    this.untidy = 0;
    this.arranged += 1;
    return true;
  }

  /** Newcomers find a place; a lone node that makes or gets its first call moves to where it belongs. */
  #join(newcomers: readonly string[]): void {
    const graph = this.#graph;
    if (!graph) return;
    const called = new Set([...graph.edges.values()].flatMap((edge) => [edge.source, edge.target]));
    const found = [...this.#lone].filter((id) => called.has(id));
    for (const id of found) this.#lone.delete(id);
    for (const id of newcomers) if (!called.has(id)) this.#lone.add(id);
    if (newcomers.length === 0 && found.length === 0) return;
    const moving = found.filter((id) => !this.#dragged.has(id));
    for (const id of moving) this.#remembered.delete(id);
    this.#add([...newcomers, ...moving]);
    this.untidy += newcomers.length;
  }

  /** The user asks for a fresh arrangement; drags are forgotten. */
  async relayout(): Promise<void> {
    this.#dragged.clear();
    this.#memory.saveDragged(this.#dragged);
    await this.#whole(true, true);
  }

  drag(id: string, point: Point): void {
    this.#settle();
    cancelAnimationFrame(this.#frame);
    const next = new Map(this.positions);
    next.set(id, point);
    this.positions = next;
    const touched = [...(this.#graph?.edges.values() ?? [])].filter((edge) => edge.source === id || edge.target === id);
    if (touched.some((edge) => this.bends.has(edge.id))) {
      const bends = new Map(this.bends);
      for (const edge of touched) bends.delete(edge.id);
      this.bends = bends;
    }
  }

  drop(id: string): void {
    const point = this.positions.get(id);
    if (!point) return;
    this.#dragged.delete(id);
    this.#dragged.set(id, point);
    this.#memory.saveDragged(this.#dragged);
    this.#keep(this.positions);
  }

  #settle(): void {
    if (this.settled) return;
    this.settled = true;
    clearTimeout(this.#timer);
    const called = new Set([...(this.#graph?.edges.values() ?? [])].flatMap((edge) => [edge.source, edge.target]));
    this.#lone = new Set([...(this.#graph?.nodes.keys() ?? [])].filter((id) => !called.has(id)));
    if (!this.#running && this.positions.size > 0) this.#join(this.#missing());
  }

  #add(ids: readonly string[]): void {
    const graph = this.#graph;
    if (!graph) return;
    const moving = new Set(ids);
    const standing = new Map([...this.positions].filter(([id]) => graph.nodes.has(id) && !moving.has(id)));
    const fresh: string[] = [];
    for (const id of ids) {
      const before = this.#remembered.get(id);
      if (before && free(before, standing)) standing.set(id, before);
      else fresh.push(id);
    }
    this.positions = placeAll(fresh, [...graph.edges.values()], standing);
    this.#keep(this.positions);
  }

  #missing(): string[] {
    return [...(this.#graph?.nodes.keys() ?? [])].filter((id) => !this.positions.has(id));
  }

  async #whole(glide: boolean, asked = false): Promise<void> {
    if (this.#running) {
      this.#again = true;
      return;
    }
    this.#running = true;
    try {
      do {
        this.#again = false;
        const graph = this.#graph;
        if (!graph) return;
        const layout = await deadline(layered(input(graph)), LAYOUT_DEADLINE_MS);
        if (this.settled && !asked && this.positions.size > 0) {
          // Settled while the layout was being made: too late to move anybody.
          this.#join(this.#missing());
          return;
        }
        for (const [id, point] of this.#dragged) if (layout.positions.has(id)) layout.positions.set(id, point);
        this.untidy = 0;
        this.bends = layout.bends;
        await this.#move(layout.positions, glide && !this.#calm());
        this.arranged += 1;
        // Nodes that came while the layout was being made.
        const late = this.#missing();
        if (late.length > 0) {
          if (this.settled) this.#join(late);
          else this.#again = true;
        }
      } while (this.#again);
    } catch (cause) {
      console.warn('no layout; nodes are placed one by one', cause);
      this.#add(this.#missing());
      this.arranged += 1;
    } finally {
      this.#running = false;
      this.#keep(this.positions);
    }
  }

  #move(goal: ReadonlyMap<string, Point>, glide: boolean): Promise<void> {
    cancelAnimationFrame(this.#frame);
    const from = this.positions;
    if (!glide || from.size === 0) {
      this.positions = goal;
      return Promise.resolve();
    }
    const started = performance.now();
    return new Promise((done) => {
      const step = (now: number): void => {
        const t = Math.min(1, (now - started) / GLIDE_MS);
        const eased = 1 - (1 - t) ** 3;
        const next = new Map<string, Point>();
        for (const [id, to] of goal) {
          const start = from.get(id) ?? to;
          next.set(id, { x: start.x + (to.x - start.x) * eased, y: start.y + (to.y - start.y) * eased });
        }
        this.positions = t < 1 ? next : goal;
        if (t < 1) this.#frame = requestAnimationFrame(step);
        else done();
      };
      this.#frame = requestAnimationFrame(step);
    });
  }

  #keep(positions: ReadonlyMap<string, Point>): void {
    for (const [id, point] of positions) {
      this.#remembered.delete(id);
      this.#remembered.set(id, point);
    }
    this.#memory.savePicture(this.#remembered);
  }
}

/** What a layout depends on. */
function signature(graph: Graph): string {
  return [...graph.nodes.keys(), '', ...graph.edges.keys()].sort().join('\n');
}

function input(graph: Graph): LayoutInput {
  const spaces = new Set([...graph.nodes.values()].map((node) => node.namespace).filter((name) => name !== null));
  return {
    nodes: [...graph.nodes.values()].map((node) => ({ id: node.id, group: spaces.size > 1 ? node.namespace : null })),
    links: [...graph.edges.values()],
  };
}

function free(point: Point, standing: ReadonlyMap<string, Point>): boolean {
  for (const other of standing.values()) if (Math.abs(other.x - point.x) < 60 && Math.abs(other.y - point.y) < 30) return false;
  return true;
}

function deadline<T>(promise: Promise<T>, ms: number): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('the layout took too long')), ms);
    promise.then(
      (value) => {
        clearTimeout(timer);
        resolve(value);
      },
      (cause: unknown) => {
        clearTimeout(timer);
        reject(cause instanceof Error ? cause : new Error(String(cause)));
      },
    );
  });
}
