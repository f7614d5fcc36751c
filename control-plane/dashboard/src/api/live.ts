/**
 * Keeps one picture of the graph current: the event stream when there is one, a GET every few seconds otherwise.
 *
 * In: a window. Out: pictures and a link state. Invariants: a diff is applied only to the version it was made
 * from (a gap means a whole fetch); the last picture is never thrown away; there is always exactly one timer or
 * one stream that will bring the next change.
 */
import { applyDiff } from '../graph/apply';
import * as client from './client';
import * as decode from './decode';
import type { Graph } from './model';

export type LinkState = 'connecting' | 'live' | 'polling' | 'reconnecting';

export interface Listener {
  graph(graph: Graph): void;
  link(state: LinkState, problem: client.Problem | null): void;
}

export const POLL_MS = 2_000;
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 10_000;
/** A quiet stream is asked once in a while whether it still lives. */
const SILENCE_MS = 15_000;
/** While polling, the stream is tried again this often. */
const STREAM_RETRY_MS = 20_000;

export class Live {
  #window: string;
  readonly #listener: Listener;
  #graph: Graph | null = null;
  #stream: EventSource | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #failures = 0;
  #generation = 0;
  #streamAfter = 0;

  constructor(window: string, listener: Listener) {
    this.#window = window;
    this.#listener = listener;
  }

  start(): void {
    this.#listener.link('connecting', null);
    this.#open();
  }

  stop(): void {
    this.#generation += 1;
    this.#close();
  }

  /** Another window is another picture with its own versions. */
  switch(window: string): void {
    this.stop();
    this.#window = window;
    this.#graph = null;
    this.#failures = 0;
    this.#streamAfter = 0;
    this.#open();
  }

  retry(): void {
    this.stop();
    this.#failures = 0;
    this.#open();
  }

  #open(): void {
    this.#close();
    const generation = this.#generation;
    if (Date.now() < this.#streamAfter) {
      void this.#poll(generation);
      return;
    }
    const stream = new EventSource(`api/graph/events?window=${this.#window}`);
    this.#stream = stream;
    stream.addEventListener('snapshot', (event) => this.#receive(event.data, generation));
    stream.addEventListener('diff', (event) => this.#receive(event.data, generation));
    stream.addEventListener('message', (event) => this.#receive(event.data, generation));
    stream.addEventListener('error', () => {
      if (generation !== this.#generation) return;
      this.#close();
      // The stream may be what is broken (a buffering proxy), not the server: one GET tells them apart.
      void this.#probe(generation);
    });
    this.#watch(generation);
  }

  #receive(data: string, generation: number): void {
    if (generation !== this.#generation) return;
    try {
      const message: unknown = JSON.parse(data);
      if (typeof message === 'object' && message !== null && 'base_version' in message) {
        const next = this.#graph && applyDiff(this.#graph, decode.diff(message));
        if (!next) {
          void this.#fetch(generation);
          return;
        }
        this.#show(next);
      } else {
        this.#show(decode.graph(message));
      }
      this.#failures = 0;
      this.#listener.link('live', null);
      this.#watch(generation);
    } catch {
      void this.#fetch(generation);
    }
  }

  #show(graph: Graph): void {
    if (graph === this.#graph) return;
    this.#graph = graph;
    this.#listener.graph(graph);
  }

  /** After a gap: the whole picture; the stream goes on from a later version. */
  async #fetch(generation: number): Promise<void> {
    try {
      const graph = await client.graph(this.#window);
      if (generation === this.#generation) this.#show(graph);
    } catch (cause) {
      if (generation === this.#generation) this.#fail(cause);
    }
  }

  async #probe(generation: number): Promise<void> {
    try {
      const graph = await client.graph(this.#window);
      if (generation !== this.#generation) return;
      this.#show(graph);
      if (this.#failures === 0) {
        // First loss and the server answers: most likely it restarted. Try the stream again at once.
        this.#failures = 1;
        this.#later(RETRY_MIN_MS, () => this.#open());
        return;
      }
      this.#streamAfter = Date.now() + STREAM_RETRY_MS;
      void this.#poll(generation, graph);
    } catch (cause) {
      if (generation === this.#generation) this.#fail(cause);
    }
  }

  async #poll(generation: number, have?: Graph): Promise<void> {
    try {
      const graph = have ?? (await client.graph(this.#window));
      if (generation !== this.#generation) return;
      this.#show(graph);
      this.#listener.link('polling', null);
      this.#later(POLL_MS, () => this.#open());
    } catch (cause) {
      if (generation === this.#generation) this.#fail(cause);
    }
  }

  #fail(cause: unknown): void {
    this.#close();
    this.#failures += 1;
    this.#listener.link('reconnecting', cause instanceof client.Problem ? cause : null);
    const delay = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** Math.min(this.#failures, 10));
    // Jitter: a hundred open screens must not all come back in the same instant.
    this.#later(delay * (0.5 + Math.random() / 2), () => this.#open());
  }

  #watch(generation: number): void {
    this.#later(SILENCE_MS, () => {
      if (generation !== this.#generation) return;
      void this.#fetch(generation).then(() => {
        if (generation === this.#generation && this.#stream) this.#watch(generation);
      });
    });
  }

  #later(ms: number, action: () => void): void {
    clearTimeout(this.#timer);
    const generation = this.#generation;
    this.#timer = setTimeout(() => {
      if (generation === this.#generation) action();
    }, ms);
  }

  #close(): void {
    clearTimeout(this.#timer);
    this.#stream?.close();
    this.#stream = null;
  }
}
