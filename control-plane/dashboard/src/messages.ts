/**
 * Says the dashboard's sentences, in English and Korean; `messages/` holds them.
 *
 * `{name}` is replaced by a value, `{name,# thing,# things}` by the form that fits it. The Korean table has the type of the English one, so a missing sentence is a
 * compile error. Words on the wire (`connect_refused`, `orders`, `mutual`) are never translated: they are what
 * logs, metrics and the CLI say, and people search for them.
 */
import { en, type Key } from './messages/en';
import { ko } from './messages/ko';

export type { Key };
export type Language = 'en' | 'ko';
export const LANGUAGES: readonly Language[] = ['en', 'ko'];
export const LANGUAGE_NAMES: Record<Language, string> = { en: 'English', ko: '한국어' };

const TABLES: Record<Language, Record<Key, string>> = { en, ko };

export type Values = Record<string, string | number>;

export function say(language: Language, key: Key, values?: Values): string {
  const text = TABLES[language][key];
  if (!values) return text;
  return text.replace(/\{(\w+)(?:,([^,{}]*),([^{}]*))?\}/g, (whole, name: string, one?: string, other?: string) => {
    const value = values[name];
    if (value === undefined) return whole;
    const form = String(value) === '1' ? one : other;
    return form === undefined ? String(value) : form.replace('#', String(value));
  });
}

/** What a reason word means, in a sentence. */
export function explain(language: Language, word: string): string {
  const key = `reason.${word}`;
  if (key in en && !['reason.status', 'reason.grpc', 'reason.other'].includes(key)) return say(language, key as Key);
  if (/^[1-5]\d\d$/.test(word)) return say(language, 'reason.status', { status: word });
  if (GRPC.has(word)) return say(language, 'reason.grpc');
  return say(language, 'reason.other');
}

/** Why a circuit opened, in a sentence; a word that this page does not know reads well enough without its underscores. */
export function explainCause(language: Language, word: string | null): string {
  if (word === null) return say(language, 'cause.none');
  const key = `cause.${word}`;
  return Object.hasOwn(en, key) ? say(language, key as Key) : word.replaceAll('_', ' ');
}

const GRPC = new Set([
  'cancelled', 'unknown', 'invalid_argument', 'deadline_exceeded', 'not_found', 'already_exists', 'permission_denied',
  'resource_exhausted', 'failed_precondition', 'aborted', 'out_of_range', 'unimplemented', 'internal', 'unavailable',
  'data_loss', 'unauthenticated',
]);
