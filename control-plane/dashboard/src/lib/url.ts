/**
 * The part of the screen's state that belongs in the address: what a colleague needs to see the same picture.
 * Theme and language are personal and stay in local storage. Pure.
 */

import { ORDERS, STATES, type WallFilter, type WallOrder } from './circuits';

export const WINDOWS = ['10s', '1m', '5m', '1h'] as const;
export type Window = (typeof WINDOWS)[number];
export const TABS = ['edges', 'nodes', 'proxies', 'problems'] as const;
export type Tab = (typeof TABS)[number];

/** What fills the screen. */
export const SCREENS = ['topology', 'circuits', 'routes', 'access', 'certificates'] as const;
export type Screen = (typeof SCREENS)[number];

/** What is shown of the wall of circuits, and the circuit that somebody pointed at. */
export interface WallView extends WallFilter {
  readonly order: WallOrder;
  readonly circuit: string | null;
}

export type Selection = { readonly kind: 'node' | 'edge'; readonly id: string };

export interface View {
  readonly screen: Screen;
  readonly window: Window;
  readonly selection: Selection | null;
  readonly search: string;
  readonly tab: Tab;
  readonly wall: WallView;
}

export const WALL: WallView = { state: null, namespace: null, service: null, find: '', order: 'worst', circuit: null };
const DEFAULT: View = { screen: 'topology', window: '1m', selection: null, search: '', tab: 'edges', wall: WALL };
/** Longer than any name or sensible search; an address may come from anywhere. */
const TEXT_MAX = 200;

export function read(query: string): View {
  const values = new URLSearchParams(query);
  const node = values.get('node');
  const edge = values.get('edge');
  const words = (key: string): string | null => values.get(key)?.slice(0, TEXT_MAX) || null;
  return {
    screen: SCREENS.find((known) => known === values.get('view')) ?? DEFAULT.screen,
    window: WINDOWS.find((known) => known === values.get('window')) ?? DEFAULT.window,
    selection: edge ? { kind: 'edge', id: edge } : node ? { kind: 'node', id: node } : null,
    search: words('q') ?? '',
    tab: TABS.find((known) => known === values.get('tab')) ?? DEFAULT.tab,
    wall: {
      state: STATES.find((known) => known === values.get('state')) ?? null,
      namespace: words('ns'),
      service: words('service'),
      find: words('find') ?? '',
      order: ORDERS.find((known) => known === values.get('sort')) ?? WALL.order,
      circuit: words('circuit'),
    },
  };
}

/** Defaults stay out, so an untouched screen has a clean address. */
export function write(view: View): string {
  const values = new URLSearchParams();
  if (view.screen !== DEFAULT.screen) values.set('view', view.screen);
  if (view.window !== DEFAULT.window) values.set('window', view.window);
  if (view.selection) values.set(view.selection.kind, view.selection.id);
  if (view.search !== '') values.set('q', view.search);
  if (view.tab !== DEFAULT.tab) values.set('tab', view.tab);
  if (view.screen === 'circuits') wall(values, view.wall);
  const text = values.toString();
  return text === '' ? '' : `?${text}`;
}

/** The address of the wall with one circuit pointed at, or as filtered. */
export function wallHref(change: Partial<WallView>): string {
  return write({ ...DEFAULT, screen: 'circuits', wall: { ...WALL, ...change } });
}

function wall(values: URLSearchParams, view: WallView): void {
  if (view.state !== null) values.set('state', view.state);
  if (view.namespace !== null) values.set('ns', view.namespace);
  if (view.service !== null) values.set('service', view.service);
  if (view.find !== '') values.set('find', view.find);
  if (view.order !== WALL.order) values.set('sort', view.order);
  if (view.circuit !== null) values.set('circuit', view.circuit);
}

export function windowSeconds(window: Window): number {
  return { '10s': 10, '1m': 60, '5m': 300, '1h': 3600 }[window];
}
