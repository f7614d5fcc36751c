/**
 * The services with their routes, asked for while somebody looks at them.
 *
 * Invariant: however many components follow, there is one question at a time, and none when nobody follows.
 */
import * as client from './api/client';
import type { Routes, Service } from './api/routes';

const POLL_MS = 2_000;

export class RoutesWatch {
  routes = $state.raw<Routes | null>(null);
  problem = $state.raw<client.Problem | null>(null);
  held = false;

  #window = '1m';
  #followers = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Follows until the returned function is called. */
  follow(window: string): () => void {
    this.#followers += 1;
    if (this.#followers === 1 || window !== this.#window) {
      this.#window = window;
      void this.#ask();
    }
    return () => {
      this.#followers -= 1;
      if (this.#followers === 0) clearTimeout(this.#timer);
    };
  }

  service(name: string): Service | null {
    return this.routes?.services.find((one) => one.service === name) ?? null;
  }

  async #ask(): Promise<void> {
    clearTimeout(this.#timer);
    const window = this.#window;
    try {
      const routes = await client.routes(window);
      if (window !== this.#window || this.#followers === 0) return;
      if (!this.held) this.routes = routes;
      this.problem = null;
    } catch (cause) {
      if (window !== this.#window || this.#followers === 0) return;
      this.problem = cause instanceof client.Problem ? cause : new client.Problem(0, String(cause));
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => void this.#ask(), POLL_MS);
  }
}
