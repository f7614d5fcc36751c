/**
 * The layered layout (callers left, callees right), computed by ELK in a web worker so that a big graph never
 * freezes the page. In: ids and links. Out: a position per node and bends for long edges.
 *
 * The same graph gives the same picture: input is sorted, ELK is told to respect that order, and nothing is random.
 */
import ELK, { type ElkExtendedEdge, type ElkNode } from 'elkjs/lib/elk-api.js';
import workerUrl from 'elkjs/lib/elk-worker.min.js?url';
import { CARD, type Link, type Point } from './geometry';
import { grid } from './place';

export interface LayoutInput {
  readonly nodes: readonly { readonly id: string; readonly group: string | null }[];
  readonly links: readonly Link[];
}

export interface Layout {
  readonly positions: Map<string, Point>;
  readonly bends: Map<string, readonly Point[]>;
}

const OPTIONS = {
  'elk.algorithm': 'layered',
  'elk.direction': 'RIGHT',
  'elk.edgeRouting': 'POLYLINE',
  'elk.hierarchyHandling': 'INCLUDE_CHILDREN',
  'elk.json.shapeCoords': 'ROOT',
  'elk.json.edgeCoords': 'ROOT',
  'elk.layered.considerModelOrder.strategy': 'PREFER_EDGES',
  'elk.layered.nodePlacement.strategy': 'NETWORK_SIMPLEX',
  'elk.layered.cycleBreaking.strategy': 'DEPTH_FIRST',
  'elk.layered.spacing.nodeNodeBetweenLayers': '180',
  'elk.layered.spacing.edgeNodeBetweenLayers': '40',
  'elk.spacing.nodeNode': '38',
  'elk.spacing.edgeNode': '26',
  'elk.spacing.edgeEdge': '18',
  'elk.spacing.componentComponent': '70',
  'elk.aspectRatio': '1.9',
  'elk.padding': '[top=20,left=20,bottom=20,right=20]',
};
/** Spacing is not inherited by a group. */
const GROUP_OPTIONS = { ...OPTIONS, 'elk.padding': '[top=48,left=28,bottom=28,right=28]' };

/** From this size on columns are limited. */
const TOWER_FROM = 50;

let elk: InstanceType<typeof ELK> | null = null;

export async function layered(input: LayoutInput): Promise<Layout> {
  elk ??= new ELK({ workerFactory: () => new Worker(workerUrl) });
  const grouped = input.nodes.some((node) => node.group !== null);
  const linked = new Set(input.links.flatMap((link) => (link.source === link.target ? [] : [link.source, link.target])));
  // A node without edges has no layer. Inside a namespace box ELK finds room for it; else it goes to the grid below.
  const nodes = input.nodes.filter((node) => grouped || linked.has(node.id)).sort((a, b) => a.id.localeCompare(b.id));
  const lone = grouped ? [] : input.nodes.map((node) => node.id).filter((id) => !linked.has(id));
  const leaf = (id: string): ElkNode => ({ id: `n${id}`, width: CARD.width, height: CARD.height });
  const groups = new Map<string, ElkNode>();
  const children: ElkNode[] = [];
  for (const { id, group } of nodes) {
    if (group === null) {
      children.push(leaf(id));
      continue;
    }
    let box = groups.get(group);
    if (!box) {
      box = { id: `g${group}`, children: [], layoutOptions: GROUP_OPTIONS };
      groups.set(group, box);
      children.push(box);
    }
    box.children?.push(leaf(id));
  }
  const known = new Set(nodes.map((node) => node.id));
  const edges: ElkExtendedEdge[] = [...input.links]
    .filter((link) => link.source !== link.target && known.has(link.source) && known.has(link.target))
    .sort((a, b) => a.id.localeCompare(b.id))
    .map((link) => ({ id: `e${link.id}`, sources: [`n${link.source}`], targets: [`n${link.target}`] }));
  const drawn = await elk.layout({ id: 'root', children, edges, layoutOptions: { ...OPTIONS, ...wide(nodes.length) } });
  const layout = read(drawn);
  for (const [id, point] of grid(lone, layout.positions)) layout.positions.set(id, point);
  return layout;
}

/** A big graph's fullest column would be a tower: columns are then limited so that the picture fits a screen. */
function wide(nodes: number): Record<string, string> {
  if (nodes <= TOWER_FROM) return {};
  return {
    'elk.layered.layering.strategy': 'COFFMAN_GRAHAM',
    'elk.layered.layering.coffmanGraham.layerBound': String(Math.ceil(1.2 * Math.sqrt(nodes))),
  };
}

function read(root: ElkNode): Layout {
  const positions = new Map<string, Point>();
  const bends = new Map<string, readonly Point[]>();
  const visit = (node: ElkNode): void => {
    if (node.id.startsWith('n')) {
      positions.set(node.id.slice(1), { x: (node.x ?? 0) + CARD.width / 2, y: (node.y ?? 0) + CARD.height / 2 });
    }
    for (const edge of node.edges ?? []) {
      const points = (edge.sections ?? []).flatMap((section) => section.bendPoints ?? []);
      if (points.length > 0) bends.set(edge.id.slice(1), points);
    }
    node.children?.forEach(visit);
  };
  visit(root);
  return { positions, bends };
}
