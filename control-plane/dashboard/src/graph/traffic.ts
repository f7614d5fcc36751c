/**
 * Dots that move along the edges: more dots, more calls; slower dots, slower answers; squares are failures.
 *
 * Cheap by design: no state per dot (its place follows from the clock), at most DOTS_MAX in all, about 30 frames
 * a second, nothing while the tab is hidden, and not started at all when the reader prefers reduced motion.
 */
import { along, type Curve, type Point } from './geometry';
import type { Palette } from './palette';
import type { Viewport } from './surface';

export interface Flow {
  readonly curve: Curve;
  readonly rate: number;
  readonly failureShare: number;
  readonly latencyMs: number | null;
  /** How visible: 1 in the foreground. */
  readonly strength: number;
}

const DOTS_MAX = 700;
const DOTS_PER_EDGE_MAX = 9;
const FRAME_MS = 32;

export class Traffic {
  readonly #canvas: HTMLCanvasElement;
  #flows: readonly Flow[] = [];
  #viewport: Viewport = { zoom: 1, pan: { x: 0, y: 0 } };
  #palette: Palette;
  #frame = 0;
  #last = 0;

  constructor(canvas: HTMLCanvasElement, palette: Palette) {
    this.#canvas = canvas;
    this.#palette = palette;
  }

  set flows(flows: readonly Flow[]) {
    this.#flows = flows;
  }

  set viewport(viewport: Viewport) {
    this.#viewport = viewport;
    if (this.#frame !== 0) this.#draw(performance.now());
  }

  set palette(palette: Palette) {
    this.#palette = palette;
  }

  resize(width: number, height: number, ratio: number): void {
    this.#canvas.width = Math.round(width * ratio);
    this.#canvas.height = Math.round(height * ratio);
  }

  run(on: boolean): void {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (!on) {
      this.#clear();
      return;
    }
    const step = (now: number): void => {
      this.#frame = requestAnimationFrame(step);
      if (now - this.#last < FRAME_MS) return;
      this.#last = now;
      this.#draw(now);
    };
    this.#frame = requestAnimationFrame(step);
  }

  #clear(): CanvasRenderingContext2D | null {
    const context = this.#canvas.getContext('2d');
    context?.setTransform(1, 0, 0, 1, 0, 0);
    context?.clearRect(0, 0, this.#canvas.width, this.#canvas.height);
    return context;
  }

  #draw(now: number): void {
    const context = this.#clear();
    if (!context) return;
    const { zoom, pan } = this.#viewport;
    const ratio = this.#canvas.width / Math.max(1, this.#canvas.clientWidth);
    context.setTransform(zoom * ratio, 0, 0, zoom * ratio, pan.x * ratio, pan.y * ratio);
    let left = DOTS_MAX;
    for (const flow of this.#flows) {
      const dots = Math.min(left, density(flow.rate));
      left -= dots;
      context.globalAlpha = 0.9 * flow.strength;
      const period = duration(flow);
      for (let index = 0; index < dots; index += 1) {
        const place = now / period + index / dots;
        const lap = Math.floor(place);
        const failed = chance(lap * 31 + index * 7) < flow.failureShare;
        this.#dot(context, along(flow.curve, place - lap), failed);
      }
      if (left <= 0) break;
    }
    context.globalAlpha = 1;
  }

  #dot(context: CanvasRenderingContext2D, { x, y }: Point, failed: boolean): void {
    context.fillStyle = failed ? this.#palette.failing : this.#palette.flow;
    if (failed) {
      context.fillRect(x - 3.2, y - 3.2, 6.4, 6.4);
      return;
    }
    context.beginPath();
    context.arc(x, y, 2.6, 0, Math.PI * 2);
    context.fill();
  }
}

export function density(rate: number): number {
  return rate <= 0 ? 0 : Math.min(DOTS_PER_EDGE_MAX, 1 + Math.floor(1.3 * Math.log2(1 + rate)));
}

/** Milliseconds from end to end: long edges take longer, slow answers look slow, nothing crawls for ever. */
function duration({ curve, latencyMs }: Flow): number {
  const length = curve.lengths.at(-1) ?? 200;
  const slow = latencyMs === null ? 1 : 1 + Math.min(3.5, Math.log10(1 + latencyMs / 8));
  return Math.max(900, length * 4.2) * slow;
}

/** A fixed pseudo-random number for a dot's lap: the same dot is a failure all the way. */
function chance(seed: number): number {
  const x = Math.sin(seed * 12.9898 + 4.1414) * 43758.5453;
  return x - Math.floor(x);
}
