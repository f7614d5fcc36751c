import { describe, expect, it } from 'vitest';
import { explain, LANGUAGES, say } from './messages';

describe('messages', () => {
  it('put values in, and leave unknown braces alone', () => {
    expect(say('en', 'overview.services.sub', { proxies: 3 })).toBe('3 sidecars connected');
    expect(say('en', 'overview.services.sub', { proxies: 1 })).toBe('1 sidecar connected');
    expect(say('ko', 'overview.services.sub', {})).toContain('{proxies}');
  });

  it('explain every kind of reason in every language', () => {
    for (const language of LANGUAGES) {
      const other = explain(language, 'nobody_knows');
      for (const word of ['connect_refused', 'upstream_reset', '503', 'unavailable']) {
        expect(explain(language, word)).not.toBe(other);
      }
      expect(explain(language, '503')).toContain('503');
      expect(explain(language, 'status')).toBe(other);
    }
  });
});
