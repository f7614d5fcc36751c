/**
 * Who looks at the page, and whether they may.
 *
 * Invariant: `inside` is true only for whom the control plane lets in, or when it cannot be asked: then the rest of the
 * page says why nothing comes. The token is sent once and kept nowhere; a cookie that no script can read stands for it.
 */
import * as client from './api/client';
import type { Session } from './api/session';

export class Account {
  session = $state.raw<Session | null>(null);
  /** The control plane could not be asked. */
  unknown = $state(false);
  problem = $state.raw<client.Problem | null>(null);
  busy = $state(false);

  readonly who = $derived(this.session?.who ?? null);
  readonly inside = $derived(this.unknown || (this.session !== null && (!this.session.required || this.session.who !== null)));
  readonly outside = $derived(this.session !== null && !this.inside);

  async check(): Promise<void> {
    try {
      this.session = await client.session();
      this.unknown = false;
    } catch {
      this.unknown = this.session === null;
    }
  }

  async signIn(token: string): Promise<void> {
    if (this.busy) return;
    this.busy = true;
    this.problem = null;
    try {
      this.session = await client.signIn(token);
    } catch (cause) {
      this.problem = cause instanceof client.Problem ? cause : new client.Problem(0, String(cause));
    } finally {
      this.busy = false;
    }
  }

  /** The page begins anew, so that nothing of what was seen is left in it. */
  async signOut(): Promise<void> {
    try {
      await client.signOut();
    } finally {
      location.reload();
    }
  }
}
