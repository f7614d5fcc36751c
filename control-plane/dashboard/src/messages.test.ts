import { describe, expect, it } from 'vitest';
import { explain, explainCause, LANGUAGES, say } from './messages';

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

  it('explain every cause of an open circuit, and do not invent one', () => {
    for (const language of LANGUAGES) {
      const none = explainCause(language, null);
      for (const cause of ['consecutive_5xx', 'consecutive_gateway_failure', 'consecutive_local_origin_failure', 'failure_percentage', 'failure_percentage_local_origin', 'success_rate', 'success_rate_local_origin', 'error_ratio', 'slow_calls', 'probe_failed', 'health_check', 'max_connections', 'max_pending_requests', 'max_requests', 'max_retries']) {
        expect(explainCause(language, cause)).not.toBe(none);
        expect(explainCause(language, cause)).not.toBe(cause.replaceAll('_', ' '));
      }
      expect(explainCause(language, 'too_much_noise')).toBe('too much noise');
    }
  });
});
