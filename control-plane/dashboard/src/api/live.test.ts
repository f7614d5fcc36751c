import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Live, POLL_MS, type LinkState } from './live';
import type { Graph } from './model';

class FakeStream extends EventTarget {
  static all: FakeStream[] = [];
  closed = false;
  constructor(readonly url: string) {
    super();
    FakeStream.all.push(this);
  }
  close(): void {
    this.closed = true;
  }
  say(type: string, data: unknown): void {
    this.dispatchEvent(new MessageEvent(type, { data: JSON.stringify(data) }));
  }
  static get last(): FakeStream {
    return FakeStream.all.at(-1) as FakeStream;
  }
}

const picture = (version: number, nodes: string[] = []): object => ({
  version, at: '2026-01-01T00:00:00Z', window_seconds: 60, nodes: nodes.map((id) => ({ id, kind: 'workload', name: id })), edges: [],
});
const change = (base: number, version: number, id: string): object => ({
  version, base_version: base, at: '2026-01-01T00:00:01Z', nodes: { upsert: [{ id, kind: 'workload', name: id }], remove: [] }, edges: { upsert: [], remove: [] },
});

describe('the live picture', () => {
  let pictures: Graph[];
  let links: LinkState[];
  let live: Live;
  let answer: () => Response;

  beforeEach(() => {
    vi.useFakeTimers();
    FakeStream.all = [];
    vi.stubGlobal('EventSource', FakeStream);
    answer = () => new Response(JSON.stringify(picture(50, ['fetched'])));
    vi.stubGlobal('fetch', vi.fn(async () => answer()));
    pictures = [];
    links = [];
    live = new Live('1m', { graph: (graph) => pictures.push(graph), link: (state) => links.push(state) });
    live.start();
  });
  afterEach(() => {
    live.stop();
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  const names = (): string[] => [...(pictures.at(-1)?.nodes.keys() ?? [])];

  it('applies diffs to the snapshot', () => {
    FakeStream.last.say('snapshot', picture(1, ['a']));
    FakeStream.last.say('diff', change(1, 2, 'b'));
    expect(names()).toEqual(['a', 'b']);
    expect(links.at(-1)).toBe('live');
    expect(fetch).not.toHaveBeenCalled();
  });

  it('fetches the whole picture after a gap, and after nonsense', async () => {
    FakeStream.last.say('snapshot', picture(1, ['a']));
    FakeStream.last.say('diff', change(4, 5, 'b'));
    await vi.advanceTimersByTimeAsync(0);
    expect(names()).toEqual(['fetched']);
    FakeStream.last.say('diff', 'nonsense');
    await vi.advanceTimersByTimeAsync(0);
    expect(fetch).toHaveBeenCalledTimes(2);
  });

  it('keeps the last picture while the server is gone, and comes back', async () => {
    FakeStream.last.say('snapshot', picture(1, ['a']));
    answer = () => new Response('{"title":"Unavailable"}', { status: 503 });
    FakeStream.last.dispatchEvent(new Event('error'));
    await vi.advanceTimersByTimeAsync(0);
    expect(links.at(-1)).toBe('reconnecting');
    expect(names()).toEqual(['a']);
    const before = FakeStream.all.length;
    await vi.advanceTimersByTimeAsync(12_000);
    expect(FakeStream.all.length).toBeGreaterThan(before);
    FakeStream.last.say('snapshot', picture(9, ['back']));
    expect(links.at(-1)).toBe('live');
    expect(names()).toEqual(['back']);
  });

  it('polls where streams do not pass', async () => {
    FakeStream.last.dispatchEvent(new Event('error'));
    await vi.advanceTimersByTimeAsync(600);
    FakeStream.last.dispatchEvent(new Event('error'));
    await vi.advanceTimersByTimeAsync(0);
    expect(links.at(-1)).toBe('polling');
    const asked = vi.mocked(fetch).mock.calls.length;
    await vi.advanceTimersByTimeAsync(POLL_MS * 3);
    expect(vi.mocked(fetch).mock.calls.length).toBeGreaterThanOrEqual(asked + 2);
  });

  it('forgets the old window and its late messages on a switch', () => {
    const old = FakeStream.last;
    old.say('snapshot', picture(1, ['a']));
    live.switch('5m');
    expect(old.closed).toBe(true);
    old.say('diff', change(1, 2, 'late'));
    expect(names()).toEqual(['a']);
    expect(FakeStream.last.url).toContain('window=5m');
  });

  it('asks after a silence whether the stream still lives', async () => {
    FakeStream.last.say('snapshot', picture(1, ['a']));
    await vi.advanceTimersByTimeAsync(16_000);
    expect(fetch).toHaveBeenCalledTimes(1);
  });
});
