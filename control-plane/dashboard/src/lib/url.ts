/**
 * The part of the screen's state that belongs in the address: what a colleague needs to see the same picture.
 * Theme and language are personal and stay in local storage. Pure.
 */

export const WINDOWS = ['10s', '1m', '5m', '1h'] as const;
export type Window = (typeof WINDOWS)[number];
export const TABS = ['edges', 'nodes', 'proxies', 'problems'] as const;
export type Tab = (typeof TABS)[number];

export type Selection = { readonly kind: 'node' | 'edge'; readonly id: string };

export interface View {
  readonly window: Window;
  readonly selection: Selection | null;
  readonly search: string;
  readonly tab: Tab;
}

const DEFAULT: View = { window: '1m', selection: null, search: '', tab: 'edges' };

export function read(query: string): View {
  const values = new URLSearchParams(query);
  const node = values.get('node');
  const edge = values.get('edge');
  return {
    window: WINDOWS.find((known) => known === values.get('window')) ?? DEFAULT.window,
    selection: edge ? { kind: 'edge', id: edge } : node ? { kind: 'node', id: node } : null,
    search: (values.get('q') ?? '').slice(0, 200),
    tab: TABS.find((known) => known === values.get('tab')) ?? DEFAULT.tab,
  };
}

/** Defaults stay out, so an untouched screen has a clean address. */
export function write(view: View): string {
  const values = new URLSearchParams();
  if (view.window !== DEFAULT.window) values.set('window', view.window);
  if (view.selection) values.set(view.selection.kind, view.selection.id);
  if (view.search !== '') values.set('q', view.search);
  if (view.tab !== DEFAULT.tab) values.set('tab', view.tab);
  const text = values.toString();
  return text === '' ? '' : `?${text}`;
}

export function windowSeconds(window: Window): number {
  return { '10s': 10, '1m': 60, '5m': 300, '1h': 3600 }[window];
}
