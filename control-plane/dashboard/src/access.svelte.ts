/**
 * The policies on access, asked for while somebody looks at them.
 *
 * Invariant: there is one question at a time, and none when nobody looks.
 */
import type { Access } from './api/access';
import * as client from './api/client';

const POLL_MS = 2_000;

export class AccessWatch {
  access = $state.raw<Access | null>(null);
  problem = $state.raw<client.Problem | null>(null);
  held = false;

  #looking = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Asks until the returned function is called. */
  follow(window: string): () => void {
    this.#looking += 1;
    const mine = this.#looking;
    let over = false;
    const ask = async (): Promise<void> => {
      try {
        const access = await client.access(window);
        if (over) return;
        if (!this.held) this.access = access;
        this.problem = null;
      } catch (cause) {
        if (over) return;
        this.problem = cause instanceof client.Problem ? cause : new client.Problem(0, String(cause));
      }
      if (mine === this.#looking) this.#timer = setTimeout(() => void ask(), POLL_MS);
    };
    clearTimeout(this.#timer);
    void ask();
    return () => {
      over = true;
      clearTimeout(this.#timer);
    };
  }
}
