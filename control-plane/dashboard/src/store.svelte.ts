/**
 * The state of the screen, in one place: the picture, what is selected, what is searched, who is connected.
 *
 * Components read from here and call its verbs; they never talk to the network or to the address bar themselves.
 * Invariant: `graph` is the picture on the screen. While paused, newer pictures wait in `#latest`.
 */
import { AccessWatch } from './access.svelte';
import { Account } from './account.svelte';
import { AuthorityWatch } from './authority.svelte';
import * as client from './api/client';
import { Live, type LinkState } from './api/live';
import type { ConfigError, Graph, Overview, Proxy } from './api/model';
import { History } from './lib/history';
import { arriving, type Arriving } from './lib/health';
import { parse } from './lib/search';
import * as url from './lib/url';
import { RoutesWatch } from './routes.svelte';
import { Wall } from './wall.svelte';
import { explain, explainCause, say, type Key, type Language, type Values } from './messages';

export type Theme = 'auto' | 'light' | 'dark';

/** Overview, sidecars and config problems change slowly: one round of questions this often. */
const SLOW_POLL_MS = 4_000;

export class Store {
  screen = $state<url.Screen>('topology');
  language = $state<Language>('en');
  theme = $state<Theme>('auto');
  window = $state<url.Window>('1m');
  selection = $state.raw<url.Selection | null>(null);
  hover = $state.raw<url.Selection | null>(null);
  search = $state('');
  tab = $state<url.Tab>('edges');

  graph = $state.raw<Graph | null>(null);
  link = $state<LinkState>('connecting');
  problem = $state.raw<client.Problem | null>(null);
  pausedAt = $state<number | null>(null);
  /** When the last message of any kind arrived, on this machine's clock. */
  heardAt = $state(0);
  now = $state(Date.now());

  overview = $state.raw<Overview | null>(null);
  proxies = $state.raw<readonly Proxy[] | null>(null);
  configErrors = $state.raw<readonly ConfigError[] | null>(null);

  readonly account = new Account();
  readonly wall = new Wall();
  readonly routes = new RoutesWatch();
  readonly access = new AccessWatch();
  readonly authority = new AuthorityWatch();
  readonly history = new History();
  /** Grows with every recorded picture, so that charts know when to redraw. */
  recorded = $state(0);

  readonly query = $derived(parse(this.search));
  readonly arriving = $derived<ReadonlyMap<string, Arriving>>(this.graph ? arriving(this.graph) : new Map());
  /** What the search found; null when nothing is searched. */
  readonly found = $derived.by<{ nodes: ReadonlySet<string>; edges: ReadonlySet<string> } | null>(() => {
    const graph = this.graph;
    if (!graph || this.query.empty) return null;
    const nodes = new Set<string>();
    const edges = new Set<string>();
    for (const node of graph.nodes.values()) if (this.query.node(node)) nodes.add(node.id);
    for (const edge of graph.edges.values()) {
      if (!this.query.edge(edge, graph.nodes.get(edge.source), graph.nodes.get(edge.target))) continue;
      edges.add(edge.id);
      nodes.add(edge.source);
      nodes.add(edge.target);
    }
    return { nodes, edges };
  });
  /** What stands out now: the neighbourhood of pointer and selection, else what was searched. */
  readonly focus = $derived.by<{ nodes: ReadonlySet<string>; edges: ReadonlySet<string> } | null>(() => {
    const about = [this.hover, this.found && !this.hover ? null : this.selection].filter((one) => one !== null);
    if (about.length === 0 || !this.graph) return this.found;
    const nodes = new Set<string>();
    const edges = new Set<string>();
    for (const edge of this.graph.edges.values()) {
      const touched = about.some(({ kind, id }) => (kind === 'edge' ? edge.id === id : edge.source === id || edge.target === id));
      if (!touched) continue;
      edges.add(edge.id);
      nodes.add(edge.source);
      nodes.add(edge.target);
    }
    for (const { kind, id } of about) if (kind === 'node' && this.graph.nodes.has(id)) nodes.add(id);
    return nodes.size > 0 ? { nodes, edges } : this.found;
  });
  /** The server's time, by the last document of circuits. */
  readonly serverNow = $derived(this.now + this.wall.skew);
  readonly stale = $derived(this.link === 'reconnecting' && this.graph !== null);

  #latest: Graph | null = null;
  #live: Live | null = null;

  /** What the page knows before it asks anybody. */
  prepare(): void {
    this.#apply(url.read(location.search));
    this.language = preference('weft.language', ['en', 'ko'] as const) ?? (navigator.language.startsWith('ko') ? 'ko' : 'en');
    this.theme = preference('weft.theme', ['auto', 'light', 'dark'] as const) ?? 'auto';
  }

  start(): () => void {
    const back = (): void => {
      const before = this.window;
      this.#apply(url.read(location.search));
      if (this.window !== before) this.#live?.switch(this.window);
      this.wall.watch(this.screen === 'circuits');
    };
    addEventListener('popstate', back);
    this.#live = new Live(this.window, {
      graph: (graph) => this.#receive(graph),
      link: (state, problem) => {
        this.link = state;
        this.problem = problem;
        if (state !== 'reconnecting') this.heardAt = Date.now();
        // The session is over, or its token was taken back.
        if (problem?.status === 401) void this.account.check();
      },
    });
    this.#live.start();
    this.wall.watch(this.screen === 'circuits');
    const tick = setInterval(() => (this.now = Date.now()), 1000);
    void this.#askSlowly();
    const slow = setInterval(() => void this.#askSlowly(), SLOW_POLL_MS);
    return () => {
      removeEventListener('popstate', back);
      clearInterval(tick);
      clearInterval(slow);
      this.#live?.stop();
      this.wall.watch(false);
    };
  }

  t = (key: Key, values?: Values): string => say(this.language, key, values);
  meaning = (word: string): string => explain(this.language, word);
  /** Why a circuit opened: with the server's numbers where the server's language is spoken. */
  why = ({ cause, causeText }: { cause: string | null; causeText: string | null }): string =>
    this.language === 'en' && causeText ? causeText : explainCause(this.language, cause);

  setWindow(window: url.Window): void {
    if (window === this.window) return;
    this.window = window;
    this.#pause(null);
    this.history.clear();
    this.#live?.switch(window);
    this.#write('replace');
    void this.#askSlowly();
  }

  select(selection: url.Selection | null): void {
    if (selection?.id === this.selection?.id) return;
    this.selection = selection;
    this.#write('push');
  }

  setSearch(search: string): void {
    this.search = search;
    this.#write('replace');
  }

  setTab(tab: url.Tab): void {
    this.tab = tab;
    this.#write('replace');
  }

  show(screen: url.Screen): void {
    if (screen === this.screen) return;
    this.screen = screen;
    this.wall.watch(screen === 'circuits');
    this.#write('push');
  }

  /** The wall, filtered or pointing at a circuit; from elsewhere without the filters of last time. */
  showWall(change: Partial<url.WallView>): void {
    const before = this.screen === 'circuits' ? this.wall.view : url.WALL;
    this.wall.view = { ...before, ...change };
    if (this.screen === 'circuits') this.#write('replace');
    else this.show('circuits');
  }

  setTheme(theme: Theme): void {
    this.theme = theme;
    remember('weft.theme', theme);
  }

  setLanguage(language: Language): void {
    this.language = language;
    remember('weft.language', language);
  }

  togglePause(): void {
    if (this.pausedAt === null) {
      this.#pause(Date.now());
      return;
    }
    this.#pause(null);
    if (this.#latest) this.graph = this.#latest;
  }

  retry(): void {
    this.#live?.retry();
    this.wall.retry();
  }

  #pause(at: number | null): void {
    this.pausedAt = at;
    this.wall.hold(at !== null);
    this.routes.held = at !== null;
    this.access.held = at !== null;
    this.authority.held = at !== null;
  }

  #receive(graph: Graph): void {
    this.heardAt = Date.now();
    this.#latest = graph;
    this.history.record(graph.at, graph.edges.values());
    if (this.pausedAt !== null && this.graph !== null) return;
    this.graph = graph;
    this.recorded += 1;
  }

  async #askSlowly(): Promise<void> {
    if (document.hidden || this.link === 'reconnecting') return;
    const [overview, proxies, errors] = await Promise.allSettled([client.overview(), client.proxies(), client.configErrors(), this.wall.ask()]);
    if (this.pausedAt !== null) return;
    if (overview.status === 'fulfilled') this.overview = overview.value;
    if (proxies.status === 'fulfilled') this.proxies = proxies.value;
    if (errors.status === 'fulfilled') this.configErrors = errors.value;
  }

  #apply(view: url.View): void {
    this.screen = view.screen;
    this.wall.view = view.wall;
    this.window = view.window;
    this.selection = view.selection;
    this.search = view.search;
    this.tab = view.tab;
  }

  #write(how: 'push' | 'replace'): void {
    const query = url.write({ screen: this.screen, wall: this.wall.view, window: this.window, selection: this.selection, search: this.search, tab: this.tab });
    const address = `${location.pathname}${query}`;
    if (how === 'push') history.pushState(null, '', address);
    else history.replaceState(null, '', address);
  }
}

function preference<T extends string>(key: string, allowed: readonly T[]): T | null {
  try {
    const value = localStorage.getItem(key);
    return allowed.find((known) => known === value) ?? null;
  } catch {
    return null;
  }
}

function remember(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // Storage forbidden: the choice lasts as long as the page.
  }
}

export const store = new Store();
