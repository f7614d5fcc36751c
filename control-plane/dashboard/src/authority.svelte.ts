/**
 * The certificate authority, asked for while somebody looks at it, and the one thing that can be done with it.
 *
 * Invariant: there is one question at a time, and none when nobody looks.
 */
import type { Authority } from './api/authority';
import * as client from './api/client';

const POLL_MS = 2_000;

export class AuthorityWatch {
  authority = $state.raw<Authority | null>(null);
  problem = $state.raw<client.Problem | null>(null);
  /** Why the last rotation did not begin. */
  refused = $state.raw<client.Problem | null>(null);
  busy = $state(false);
  held = false;

  #looking = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Asks until the returned function is called. */
  follow(): () => void {
    this.#looking += 1;
    const mine = this.#looking;
    let over = false;
    const ask = async (): Promise<void> => {
      try {
        const authority = await client.authority();
        if (over) return;
        if (!this.held) this.authority = authority;
        this.problem = null;
      } catch (cause) {
        if (over) return;
        this.problem = problem(cause);
        // It is gone, unlike one that does not answer for a moment.
        if (this.problem.status === 404) this.authority = null;
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

  /** Begins to replace the root. */
  async rotate(): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    this.refused = null;
    try {
      this.authority = await client.rotate();
    } catch (cause) {
      this.refused = problem(cause);
    } finally {
      this.busy = false;
    }
  }
}

function problem(cause: unknown): client.Problem {
  return cause instanceof client.Problem ? cause : new client.Problem(0, String(cause));
}
