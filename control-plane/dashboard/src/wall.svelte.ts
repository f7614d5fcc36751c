/**
 * The state of the wall of circuits: the newest document, what is filtered, how the line is.
 *
 * Surprise: the stream is open only while somebody looks at the wall. Browsers allow six connections to one
 * server over all tabs, and the graph holds one of them already; elsewhere the store's slow round asks instead.
 */
import { circuits as decode, type Circuits } from './api/circuits';
import * as client from './api/client';
import { Feed } from './api/feed';
import type { LinkState } from './api/live';
import { counts } from './lib/circuits';
import type { WallView } from './lib/url';
import { Volumes } from './lib/volumes';

/** Samples for the sparklines are taken this far apart, however often documents come. */
const SAMPLE_MS = 950;

export class Wall {
  circuits = $state.raw<Circuits | null>(null);
  view = $state.raw<WallView>({ state: null, namespace: null, service: null, find: '', order: 'worst', circuit: null });
  link = $state<LinkState>('connecting');
  problem = $state.raw<client.Problem | null>(null);
  /** The server's clock minus this machine's: countdowns are about the server's time. */
  skew = $state(0);
  /** Grows with every recorded document, so that sparklines know when to redraw. */
  recorded = $state(0);

  readonly volumes = new Volumes();
  readonly counts = $derived(counts(this.circuits?.circuits ?? []));

  #latest: Circuits | null = null;
  #sampled = 0;
  readonly #feed = new Feed<Circuits>(
    { path: 'api/circuits/events', event: 'circuits', decode, ask: client.circuits },
    {
      document: (document) => this.receive(document),
      link: (state, problem) => {
        this.link = state;
        this.problem = problem;
      },
    },
  );
  #watching = false;
  held = false;

  watch(on: boolean): void {
    if (on === this.#watching) return;
    this.#watching = on;
    if (on) this.#feed.start();
    else this.#feed.stop();
  }

  retry(): void {
    if (this.#watching) this.#feed.start();
  }

  /** For those who do not watch. */
  async ask(): Promise<void> {
    if (this.#watching) return;
    this.receive(await client.circuits());
  }

  /** While held, newer documents wait. */
  hold(on: boolean): void {
    this.held = on;
    if (!on && this.#latest) this.circuits = this.#latest;
  }

  receive(document: Circuits): void {
    this.#latest = document;
    if (document.at !== null) this.skew = document.at - Date.now();
    if (Date.now() - this.#sampled >= SAMPLE_MS) {
      this.#sampled = Date.now();
      this.volumes.record(document.circuits);
      this.recorded += 1;
    }
    if (!this.held) this.circuits = document;
  }
}
