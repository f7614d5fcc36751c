import { describe, expect, it } from 'vitest';
import { session } from './session';

describe('session', () => {
  it('reads who is there and how to sign in', () => {
    const read = session({ required: true, who: { name: 'alice', role: 'operator', how: 'token', session: true }, ways: { token: true, oidc: { name: 'login.example.com', href: 'api/session/oidc' } } });
    expect(read).toEqual({ required: true, who: { name: 'alice', role: 'operator', session: true }, token: true, oidc: { name: 'login.example.com', href: 'api/session/oidc' } });
  });

  it('takes a role that it does not know for the least', () => {
    expect(session({ required: true, who: { name: 'eve', role: 'root' }, ways: {} }).who?.role).toBe('viewer');
  });

  it('finds nobody where nobody is', () => {
    expect(session({ required: true, who: null, ways: { token: true, oidc: null } })).toEqual({ required: true, who: null, token: true, oidc: null });
    expect(() => session('no')).toThrow();
  });
});
