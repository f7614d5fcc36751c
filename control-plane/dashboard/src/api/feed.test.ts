import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { Feed, POLL_MS } from './feed';
import type { LinkState } from './live';

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
  say(data: string): void {
    this.dispatchEvent(new MessageEvent('circuits', { data }));
  }
  break(): void {
    this.dispatchEvent(new Event('error'));
  }
  static get last(): FakeStream {
    return FakeStream.all.at(-1) as FakeStream;
  }
}

describe('a feed of whole documents', () => {
  let seen: number[];
  let links: LinkState[];
  let feed: Feed<number>;
  let ask: () => Promise<number>;

  beforeEach(() => {
    vi.useFakeTimers();
    FakeStream.all = [];
    vi.stubGlobal('EventSource', FakeStream);
    [seen, links] = [[], []];
    ask = async () => 99;
    feed = new Feed<number>(
      { path: 'api/circuits/events', event: 'circuits', decode: (value) => (value as { n: number }).n, ask: () => ask() },
      { document: (one) => seen.push(one), link: (state) => links.push(state) },
    );
    feed.start();
  });
  afterEach(() => {
    feed.stop();
    vi.useRealTimers();
    vi.unstubAllGlobals();
  });

  it('shows every message, and survives one that cannot be read', () => {
    FakeStream.last.say('{"n":1}');
    FakeStream.last.say('<html>');
    FakeStream.last.say('{"n":2}');
    expect(seen).toEqual([1, 2]);
    expect(links.at(-1)).toBe('live');
  });

  it('opens a new stream after a loss, and keeps what it has while the server is gone', async () => {
    FakeStream.last.say('{"n":1}');
    ask = () => Promise.reject(new Error('gone'));
    FakeStream.last.break();
    await vi.advanceTimersByTimeAsync(0);
    expect(links.at(-1)).toBe('reconnecting');
    expect(seen).toEqual([1]);
    ask = async () => 7;
    await vi.advanceTimersByTimeAsync(12_000);
    expect(seen).toEqual([1, 7]);
    expect(FakeStream.all.length).toBe(2);
    FakeStream.last.say('{"n":8}');
    expect(links.at(-1)).toBe('live');
  });

  it('polls where streams do not pass, and tries the stream again now and then', async () => {
    FakeStream.last.break();
    await vi.advanceTimersByTimeAsync(600);
    FakeStream.last.break();
    await vi.advanceTimersByTimeAsync(0);
    expect(links.at(-1)).toBe('polling');
    const before = seen.length;
    await vi.advanceTimersByTimeAsync(POLL_MS * 3);
    expect(seen.length).toBeGreaterThanOrEqual(before + 3);
    await vi.advanceTimersByTimeAsync(POLL_MS * 12);
    expect(FakeStream.all.length).toBe(3);
  });

  it('asks after a silence whether the stream still lives', async () => {
    FakeStream.last.say('{"n":1}');
    await vi.advanceTimersByTimeAsync(16_000);
    expect(seen).toEqual([1, 99]);
    expect(FakeStream.last.closed).toBe(false);
    ask = () => Promise.reject(new Error('gone'));
    await vi.advanceTimersByTimeAsync(16_000);
    expect(FakeStream.last.closed).toBe(true);
    expect(links.at(-1)).toBe('reconnecting');
  });

  it('is silent once it is stopped', async () => {
    const stream = FakeStream.last;
    feed.stop();
    expect(stream.closed).toBe(true);
    stream.say('{"n":1}');
    stream.break();
    await vi.advanceTimersByTimeAsync(60_000);
    expect(seen).toEqual([]);
    expect(FakeStream.all.length).toBe(1);
  });
});
