/**
 * Keeps one document current whose every message is whole: the event stream when there is one, a GET otherwise.
 *
 * In: how to open the stream, and how to ask. Out: documents and a link state. Invariants: the last document is
 * never thrown away; there is always exactly one timer or one stream that will bring the next change.
 * Unlike `Live` it applies no diffs, so a gap needs no repair: the next message heals it.
 */
import * as client from './client';
import type { LinkState } from './live';

export interface Source<T> {
  readonly path: string;
  readonly event: string;
  decode(value: unknown): T;
  ask(): Promise<T>;
}

export interface FeedListener<T> {
  document(document: T): void;
  link(state: LinkState, problem: client.Problem | null): void;
}

export const POLL_MS = 2_000;
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 10_000;
/** A quiet stream may be dead without knowing: after this long one GET finds out. */
const SILENCE_MS = 15_000;
/** While polling, the stream is tried again after this many rounds. */
const ROUNDS_MAX = 10;

export class Feed<T> {
  readonly #source: Source<T>;
  readonly #listener: FeedListener<T>;
  #stream: EventSource | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #failures = 0;
  /** Streams lost in a row without a message: a proxy in between may hold them back. */
  #lost = 0;
  #rounds = 0;
  #generation = 0;

  constructor(source: Source<T>, listener: FeedListener<T>) {
    this.#source = source;
    this.#listener = listener;
  }

  start(): void {
    this.stop();
    this.#failures = 0;
    this.#lost = 0;
    this.#listener.link('connecting', null);
    this.#open();
  }

  stop(): void {
    this.#generation += 1;
    clearTimeout(this.#timer);
    this.#stream?.close();
    this.#stream = null;
  }

  #open(): void {
    const generation = this.#generation;
    const stream = new EventSource(this.#source.path);
    this.#stream = stream;
    stream.addEventListener(this.#source.event, (event) => this.#receive((event as MessageEvent<string>).data, generation));
    stream.addEventListener('error', () => {
      if (generation !== this.#generation) return;
      stream.close();
      this.#stream = null;
      this.#lost += 1;
      this.#rounds = 0;
      void this.#ask(generation);
    });
    this.#listen();
  }

  #listen(): void {
    this.#later(SILENCE_MS, () => void this.#knock(this.#generation));
  }

  /** An answer that says nothing new is as good as a message. */
  async #knock(generation: number): Promise<void> {
    try {
      const document = await this.#source.ask();
      if (generation !== this.#generation) return;
      this.#listener.document(document);
      this.#listen();
    } catch (cause) {
      if (generation !== this.#generation) return;
      this.#stream?.close();
      this.#stream = null;
      this.#fail(cause);
    }
  }

  #receive(data: string, generation: number): void {
    if (generation !== this.#generation) return;
    try {
      this.#listener.document(this.#source.decode(JSON.parse(data)));
    } catch {
      return; // A message that cannot be read: the next one is as whole as this one was meant to be.
    }
    this.#failures = 0;
    this.#lost = 0;
    this.#listener.link('live', null);
    this.#listen();
  }

  /** After a lost stream one GET tells whether the stream or the server is broken. */
  async #ask(generation: number): Promise<void> {
    try {
      const document = await this.#source.ask();
      if (generation !== this.#generation) return;
      this.#failures = 0;
      this.#listener.document(document);
      if (this.#lost < 2 || this.#rounds >= ROUNDS_MAX) {
        this.#later(RETRY_MIN_MS, () => this.#open());
        return;
      }
      this.#rounds += 1;
      this.#listener.link('polling', null);
      this.#later(POLL_MS, () => void this.#ask(this.#generation));
    } catch (cause) {
      if (generation === this.#generation) this.#fail(cause);
    }
  }

  #fail(cause: unknown): void {
    this.#failures += 1;
    this.#listener.link('reconnecting', cause instanceof client.Problem ? cause : null);
    const delay = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** Math.min(this.#failures, 10));
    // Jitter: a hundred walls must not all come back in the same instant.
    this.#later(delay * (0.5 + Math.random() / 2), () => void this.#ask(this.#generation));
  }

  #later(ms: number, action: () => void): void {
    clearTimeout(this.#timer);
    const generation = this.#generation;
    this.#timer = setTimeout(() => {
      if (generation === this.#generation) action();
    }, ms);
  }
}
