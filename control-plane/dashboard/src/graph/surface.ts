/**
 * The interactive surface: Cytoscape draws the edges and knows what the pointer is on, pans, zooms and drags.
 *
 * Nodes are transparent here; their cards are real DOM elements above, so that they can be read, focused and
 * styled. Invariant: the surface never decides a position; it reports drags and is told the result.
 */
import cytoscape from 'cytoscape';
import type { GraphEdge } from '../api/model';
import { CARD, relative, type Curve, type Point } from './geometry';
import type { Palette } from './palette';

export interface Viewport {
  readonly zoom: number;
  readonly pan: Point;
}

export interface SurfaceEvents {
  viewport(viewport: Viewport, byUser: boolean): void;
  hover(target: { kind: 'node' | 'edge'; id: string } | null): void;
  select(target: { kind: 'node' | 'edge'; id: string } | null): void;
  drag(id: string, point: Point): void;
  drop(id: string, point: Point): void;
}

/** `gentle`: beside a selection that stays; `faded`: beside what the pointer or the search asks for. */
export type Emphasis = 'normal' | 'strong' | 'gentle' | 'faded';

export interface EdgeLook {
  readonly edge: GraphEdge;
  readonly curve: Curve;
  readonly emphasis: Emphasis;
}

const ZOOM_MIN = 0.1;
const ZOOM_MAX = 2.5;
/** A small graph is not blown up to fill the screen. */
const FIT_ZOOM_MAX = 1.1;
const FIT_PADDING = 56;

export class Surface {
  readonly #cy: cytoscape.Core;
  #palette: Palette;
  #fitting = false;

  constructor(container: HTMLElement, palette: Palette, events: SurfaceEvents) {
    this.#palette = palette;
    this.#cy = cytoscape({
      container,
      style: this.#style(),
      layout: { name: 'preset' },
      minZoom: ZOOM_MIN,
      maxZoom: ZOOM_MAX,
      boxSelectionEnabled: false,
      autounselectify: true,
      selectionType: 'single',
    });
    this.#listen(events);
  }

  get viewport(): Viewport {
    return { zoom: this.#cy.zoom(), pan: { ...this.#cy.pan() } };
  }

  sync(positions: ReadonlyMap<string, Point>, looks: ReadonlyMap<string, EdgeLook>): void {
    const cy = this.#cy;
    cy.batch(() => {
      for (const element of cy.edges().toArray()) if (!looks.has(element.id().slice(1))) element.remove();
      for (const element of cy.nodes().toArray()) if (!positions.has(element.id().slice(1))) element.remove();
      for (const [id, point] of positions) {
        const known = cy.getElementById(`n${id}`);
        if (known.empty()) cy.add({ group: 'nodes', data: { id: `n${id}` }, position: { ...point } });
        else if (!known.grabbed()) known.position({ ...point });
      }
      for (const [id, look] of looks) this.#edge(id, look, positions);
    });
  }

  fit(animated: boolean): void {
    const cy = this.#cy;
    if (cy.nodes().empty()) return;
    const box = cy.nodes().boundingBox();
    const width = Math.max(1, cy.width() - 2 * FIT_PADDING);
    const height = Math.max(1, cy.height() - 2 * FIT_PADDING);
    const zoom = Math.max(ZOOM_MIN, Math.min(FIT_ZOOM_MAX, width / box.w, height / box.h));
    const pan = { x: cy.width() / 2 - (zoom * (box.x1 + box.x2)) / 2, y: cy.height() / 2 - (zoom * (box.y1 + box.y2)) / 2 };
    this.#go(zoom, pan, animated);
  }

  zoomBy(factor: number, animated: boolean): void {
    const cy = this.#cy;
    const zoom = Math.max(ZOOM_MIN, Math.min(ZOOM_MAX, cy.zoom() * factor));
    const centre = { x: cy.width() / 2, y: cy.height() / 2 };
    const pan = cy.pan();
    const ratio = zoom / cy.zoom();
    this.#go(zoom, { x: centre.x - (centre.x - pan.x) * ratio, y: centre.y - (centre.y - pan.y) * ratio }, animated);
  }

  /** Moves the view just enough to show cards that are outside; where not all fit, the last one matters most. */
  reveal(points: readonly Point[], animated: boolean): void {
    const cy = this.#cy;
    const zoom = cy.zoom();
    let { x, y } = cy.pan();
    const before = { x, y };
    const margin = { x: Math.min(cy.width() / 2, (CARD.width / 2) * zoom + 24), y: Math.min(cy.height() / 2, (CARD.height / 2) * zoom + 24) };
    for (const point of points) {
      const on = { x: point.x * zoom + x, y: point.y * zoom + y };
      x += clamp(on.x, margin.x, cy.width() - margin.x) - on.x;
      y += clamp(on.y, margin.y, cy.height() - margin.y) - on.y;
    }
    if (x !== before.x || y !== before.y) this.#go(zoom, { x, y }, animated);
  }

  /** Back to a view that was there before. */
  show({ zoom, pan }: Viewport, animated: boolean): void {
    this.#go(zoom, pan, animated);
  }

  shows(points: Iterable<Point>): boolean {
    const box = this.#cy.extent();
    for (const { x, y } of points) if (x < box.x1 || x > box.x2 || y < box.y1 || y > box.y2) return false;
    return true;
  }

  resize(): void {
    this.#cy.resize();
  }

  recolour(palette: Palette): void {
    this.#palette = palette;
    this.#cy.style(this.#style());
  }

  destroy(): void {
    this.#cy.destroy();
  }

  #go(zoom: number, pan: Point, animated: boolean): void {
    this.#cy.stop(true);
    if (!animated) {
      this.#fitting = true;
      this.#cy.viewport({ zoom, pan: { ...pan } });
      this.#fitting = false;
      return;
    }
    this.#fitting = true;
    this.#cy.animate({ zoom, pan: { ...pan }, duration: 320, easing: 'ease-out-cubic', complete: () => (this.#fitting = false) });
  }

  #edge(id: string, { edge, curve, emphasis }: EdgeLook, positions: ReadonlyMap<string, Point>): void {
    const cy = this.#cy;
    const source = positions.get(edge.source) as Point;
    const target = positions.get(edge.target) as Point;
    const { weights, distances } = relative(curve);
    const data = {
      weights,
      distances,
      start: `${curve.start.x - source.x}px ${curve.start.y - source.y}px`,
      end: `${curve.end.x - target.x}px ${curve.end.y - target.y}px`,
      width: thickness(edge.rate),
      health: edge.health,
      emphasis,
    };
    const known = cy.getElementById(`e${id}`);
    if (known.empty()) {
      cy.add({ group: 'edges', data: { id: `e${id}`, source: `n${edge.source}`, target: `n${edge.target}`, ...data } });
      return;
    }
    const before = known.data() as Record<string, unknown>;
    const changed = Object.entries(data).some(([key, value]) => String(before[key]) !== String(value));
    if (changed) known.data(data);
  }

  #style(): cytoscape.StylesheetStyle[] {
    const colours = this.#palette;
    const of = (key: string) => (element: cytoscape.EdgeSingular) => element.data(key) as never;
    return [
      {
        selector: 'node',
        style: { shape: 'round-rectangle', width: CARD.width, height: CARD.height, 'background-opacity': 0, 'border-width': 0, 'overlay-opacity': 0 },
      },
      {
        selector: 'edge',
        style: {
          'curve-style': 'unbundled-bezier',
          'edge-distances': 'endpoints',
          'control-point-weights': of('weights'),
          'control-point-distances': of('distances'),
          'source-endpoint': of('start'),
          'target-endpoint': of('end'),
          width: of('width'),
          'line-color': colours.edge,
          'line-cap': 'butt',
          'target-arrow-shape': 'triangle',
          'target-arrow-color': colours.edge,
          'arrow-scale': 0.85,
          'overlay-opacity': 0,
          opacity: 1,
        },
      },
      { selector: 'edge[health = "idle"]', style: { 'line-color': colours['edge-idle'], 'target-arrow-color': colours['edge-idle'], 'line-style': 'dotted' } },
      { selector: 'edge[health = "degraded"]', style: { 'line-color': colours.degraded, 'target-arrow-color': colours.degraded } },
      {
        selector: 'edge[health = "failing"]',
        style: { 'line-color': colours.failing, 'target-arrow-color': colours.failing, 'line-style': 'dashed', 'line-dash-pattern': [9, 5] },
      },
      { selector: 'edge[emphasis = "strong"][health = "healthy"]', style: { 'line-color': colours.accent, 'target-arrow-color': colours.accent } },
      { selector: 'edge[emphasis = "strong"]', style: { 'z-index': 10 } },
      { selector: 'edge[emphasis = "gentle"]', style: { opacity: 0.5 } },
      { selector: 'edge[emphasis = "faded"]', style: { opacity: 0.18 } },
    ] as cytoscape.StylesheetStyle[];
  }

  #listen(events: SurfaceEvents): void {
    const cy = this.#cy;
    cy.on('viewport', () => events.viewport(this.viewport, !this.#fitting));
    cy.on('mouseover', 'node, edge', (event) => {
      cy.container()?.classList.add('pointing');
      events.hover(target(event.target as cytoscape.SingularElementReturnValue));
    });
    cy.on('mouseout', 'node, edge', () => {
      cy.container()?.classList.remove('pointing');
      events.hover(null);
    });
    cy.on('tap', (event) => events.select(event.target === cy ? null : target(event.target as cytoscape.SingularElementReturnValue)));
    cy.on('drag', 'node', (event) => {
      const node = event.target as cytoscape.NodeSingular;
      events.drag(node.id().slice(1), { ...node.position() });
    });
    cy.on('dragfree', 'node', (event) => {
      const node = event.target as cytoscape.NodeSingular;
      events.drop(node.id().slice(1), { ...node.position() });
    });
  }
}

function target(element: cytoscape.SingularElementReturnValue): { kind: 'node' | 'edge'; id: string } {
  return { kind: element.isNode() ? 'node' : 'edge', id: element.id().slice(1) };
}

/** Each tenfold of the rate adds the same: 1 call a second and 1,000 both have to be visible. */
export function thickness(rate: number): number {
  return Math.round(Math.min(6, 1.4 + 1.15 * Math.log10(1 + rate)) * 10) / 10;
}

function clamp(value: number, low: number, high: number): number {
  return Math.max(low, Math.min(high, value));
}
