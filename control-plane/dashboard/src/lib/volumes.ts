/**
 * How many calls each circuit had lately, for the sparklines of the wall.
 *
 * Bounded twice: SAMPLES_MAX per circuit (2 minutes at one document a second, as Hystrix' wall showed) and
 * CIRCUITS_MAX circuits, the longest unseen dropped first: 120 × 2,000 numbers are about 2 MB.
 */
import type { Circuit } from '../api/circuits';

export const SAMPLES_MAX = 120;
export const CIRCUITS_MAX = 2_000;

export class Volumes {
  readonly #circuits = new Map<string, number[]>();

  record(circuits: Iterable<Circuit>): void {
    for (const { id, calls } of circuits) {
      const samples = this.#circuits.get(id) ?? [];
      samples.push(calls);
      if (samples.length > SAMPLES_MAX) samples.splice(0, samples.length - SAMPLES_MAX);
      this.#circuits.delete(id); // re-inserted last: the map's order is the order of last sight
      this.#circuits.set(id, samples);
    }
    for (const id of this.#circuits.keys()) {
      if (this.#circuits.size <= CIRCUITS_MAX) break;
      this.#circuits.delete(id);
    }
  }

  of(id: string): readonly number[] {
    return this.#circuits.get(id) ?? [];
  }
}

/** A line through the samples, newest at the right, as the `d` of an SVG path; empty for fewer than two. */
export function line(values: readonly number[], width: number, height: number): string {
  if (values.length < 2) return '';
  const top = Math.max(1, ...values);
  const step = width / (SAMPLES_MAX - 1);
  const start = width - (values.length - 1) * step;
  const point = (value: number, index: number): string => `${round(start + index * step)} ${round(height - (value / top) * (height - 1))}`;
  return `M${values.map(point).join('L')}`;
}

const round = (value: number): number => Math.round(value * 10) / 10;
