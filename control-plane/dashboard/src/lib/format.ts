/**
 * Numbers as people read them. Pure; the locale is an argument.
 *
 * Surprise: a share is rounded *down*. 99.996 % must never read 100 %, because somebody is looking for
 * exactly that one failed request.
 */

const DASH = '–';

export function rate(value: number | null, locale = 'en'): string {
  if (value === null) return DASH;
  if (value === 0) return '0/s';
  if (value < 0.01) return '<0.01/s';
  return `${compact(value, locale)}/s`;
}

export function compact(value: number, locale = 'en'): string {
  const digits = value < 1 ? 2 : value < 100 ? 1 : 0;
  if (value < 1000) return number(value, digits, locale);
  if (value < 1e6) return `${number(value / 1e3, value < 1e4 ? 1 : 0, locale)}k`;
  return `${number(value / 1e6, 1, locale)}M`;
}

export function percent(share: number | null, locale = 'en'): string {
  if (share === null) return DASH;
  if (share >= 1) return '100%';
  const digits = share >= 0.999 ? 2 : share >= 0.1 ? 1 : 2;
  const scale = 10 ** digits;
  return `${number(Math.floor(share * 100 * scale + 1e-9) / scale, digits, locale)}%`;
}

export function milliseconds(ms: number | null, locale = 'en'): string {
  if (ms === null) return DASH;
  if (ms < 1) return `${number(ms, 2, locale)} ms`;
  if (ms < 10) return `${number(ms, 1, locale)} ms`;
  if (ms < 1000) return `${number(ms, 0, locale)} ms`;
  if (ms < 60_000) return `${number(ms / 1000, ms < 10_000 ? 2 : 1, locale)} s`;
  return `${number(ms / 60_000, 1, locale)} min`;
}

export function bytes(perSecond: number | null, locale = 'en'): string {
  if (perSecond === null) return DASH;
  const units = ['B/s', 'kB/s', 'MB/s', 'GB/s'];
  let value = perSecond;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${number(value, value < 10 && unit > 0 ? 1 : 0, locale)} ${units[unit]}`;
}

export function count(value: number | null, locale = 'en'): string {
  return value === null ? DASH : number(Math.round(value), 0, locale);
}

/** How many times: "1.24". */
export function factor(value: number, locale = 'en'): string {
  return number(value, 2, locale);
}

/** A distance in time: "4 s", "3 min", "2 h". */
export function age(ms: number, locale = 'en'): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${number(seconds, 0, locale)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return `${number(minutes, 0, locale)} min`;
  return `${number(Math.round(minutes / 60), 0, locale)} h`;
}

/** A distance in time, in words of the language: "12 hours", "3 days", "10 years". */
export function span(ms: number, locale = 'en'): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const [value, unit] =
    seconds < 120 ? [seconds, 'second'] : seconds < 7_200 ? [seconds / 60, 'minute'] : seconds < 172_800 ? [seconds / 3_600, 'hour'] : seconds < 63_072_000 ? [seconds / 86_400, 'day'] : [seconds / 31_536_000, 'year'];
  return new Intl.NumberFormat(locale, { style: 'unit', unit, unitDisplay: 'long', maximumFractionDigits: 0 }).format(Math.floor(value));
}

/** A day and a time of day, to the minute: "Nov 29, 2026, 18:45". */
export function moment(at: number, locale = 'en'): string {
  return new Intl.DateTimeFormat(locale, { dateStyle: 'medium', timeStyle: 'short', hour12: false }).format(at);
}

export function clock(at: number, locale = 'en'): string {
  return new Intl.DateTimeFormat(locale, { hour: '2-digit', minute: '2-digit', second: '2-digit', hour12: false }).format(at);
}

const formatters = new Map<string, Intl.NumberFormat>();

function number(value: number, digits: number, locale: string): string {
  const key = `${locale}/${digits}`;
  let formatter = formatters.get(key);
  if (!formatter) {
    formatter = new Intl.NumberFormat(locale, { maximumFractionDigits: digits });
    formatters.set(key, formatter);
  }
  return formatter.format(value);
}
