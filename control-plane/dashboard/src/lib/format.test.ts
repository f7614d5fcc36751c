import { describe, expect, it } from 'vitest';
import { age, bytes, compact, milliseconds, percent, rate, span } from './format';

describe('numbers', () => {
  it('never round a share up to 100%', () => {
    expect(percent(0.99996)).toBe('99.99%');
    expect(percent(0.9999999)).toBe('99.99%');
    expect(percent(1)).toBe('100%');
    expect(percent(0.9816)).toBe('98.1%');
    expect(percent(0)).toBe('0%');
    expect(percent(null)).toBe('–');
  });

  it('keep rates short but never hide a trickle', () => {
    expect(rate(0)).toBe('0/s');
    expect(rate(0.004)).toBe('<0.01/s');
    expect(rate(12.345)).toBe('12.3/s');
    expect(rate(2150)).toBe('2.2k/s');
    expect(compact(3_400_000)).toBe('3.4M');
  });

  it('choose units that a person would choose', () => {
    expect(milliseconds(0.4)).toBe('0.4 ms');
    expect(milliseconds(42.4)).toBe('42 ms');
    expect(milliseconds(4250)).toBe('4.25 s');
    expect(milliseconds(90_000)).toBe('1.5 min');
    expect(bytes(96_400)).toBe('96 kB/s');
    expect(bytes(0)).toBe('0 B/s');
    expect(age(4_000)).toBe('4 s');
    expect(age(200_000)).toBe('3 min');
    expect([span(1_999), span(90 * 60_000), span(86_399_000), span(3 * 86_400_000), span(3650 * 86_400_000)]).toEqual(['1 second', '90 minutes', '23 hours', '3 days', '10 years']);
    expect(span(3 * 86_400_000, 'ko')).toBe('3일');
  });
});
