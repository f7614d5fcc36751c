import { describe, expect, it } from 'vitest';
import { edge } from '../testing';
import { EDGES_MAX, History, SAMPLES_MAX } from './history';

describe('history', () => {
  it('is bounded per edge and in edges, dropping the longest unseen', () => {
    const history = new History();
    for (let at = 0; at < SAMPLES_MAX + 50; at += 1) history.record(at, [edge('a', 'b')]);
    expect(history.of('a>b')).toHaveLength(SAMPLES_MAX);
    for (let index = 0; index < EDGES_MAX; index += 1) history.record(10_000, [edge('x', String(index))]);
    expect(history.of('a>b')).toHaveLength(0);
    expect(history.of(`x>${EDGES_MAX - 1}`)).toHaveLength(1);
  });

  it('does not record the same moment twice', () => {
    const history = new History();
    history.record(5, [edge('a', 'b')]);
    history.record(5, [edge('a', 'b')]);
    expect(history.of('a>b')).toHaveLength(1);
  });
});
