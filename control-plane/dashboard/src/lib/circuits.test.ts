import { describe, expect, it } from 'vitest';
import { circuits as decode, type Circuit } from '../api/circuits';
import { Malformed } from '../api/json';
import { edge, node } from '../testing';
import { choices, concerns, countdown, counts, health, matches, namespace, ofEdge, ofNode, ordered, progress, radius, title } from './circuits';
import { WALL } from './url';
import { line, SAMPLES_MAX, Volumes } from './volumes';

const T0 = '2026-01-01T00:00:00.000Z';
const at = (seconds: number): number => Date.parse(T0) + seconds * 1000;

/** As the API writes it. */
const OPEN = {
  id: 'endpoint|orders.shop:8080|10.0.0.7:8080', kind: 'endpoint', service: 'orders.shop:8080',
  endpoint: { address: '10.0.0.7:8080', workload: 'orders', namespace: 'shop', version: 'v2', pod: 'orders-7d9' },
  state: 'open', cause: 'consecutive_5xx', cause_text: '5 server errors in a row', since: T0, next_probe_at: '2026-01-01T00:00:30.000Z',
  calls: 120, errors: 60, slow: 0, error_ratio: 0.5, open_on: 1, observers_total: 2,
  observers: [
    { instance: 'a', workload: 'web', namespace: 'shop', pod: 'web-1', state: 'open', cause: 'consecutive_5xx', since: T0, next_probe_at: '2026-01-01T00:00:30.000Z', calls: 30, errors: 15, slow: 0 },
    { instance: 'b', workload: 'cron', namespace: 'shop', pod: null, state: 'closed', cause: null, since: null, next_probe_at: null, calls: 90, errors: 45, slow: 0 },
  ],
};
const EVENT = { id: 'e1', at: T0, circuit: OPEN.id, service: OPEN.service, endpoint: OPEN.endpoint, observer: { instance: 'a', workload: 'web', namespace: 'shop', pod: 'web-1' }, from: 'closed', to: 'open', cause: 'consecutive_5xx', cause_text: '5 server errors in a row', next_probe_at: null, calls: 30, errors: 15 };
const wall = (list: object[], events: object[] = []) => decode({ version: 1, at: T0, circuits: list, events });

function circuit(change: object): Circuit {
  const [one] = wall([{ ...OPEN, ...change }]).circuits;
  if (!one) throw new Error('a circuit');
  return one;
}

describe('the document', () => {
  it('is read once, with unknown states shown as closed', () => {
    const { circuits: [one], events: [event] } = wall([OPEN], [EVENT]);
    expect(one).toMatchObject({ state: 'open', since: at(0), nextProbe: at(30), openOn: 1, observersTotal: 2, errorRatio: 0.5 });
    expect(one?.observers.map((seen) => [seen.workload, seen.state])).toEqual([['web', 'open'], ['cron', 'closed']]);
    expect(event).toMatchObject({ from: 'closed', to: 'open', observer: 'web-1' });
    expect(circuit({ state: 'ajar' }).state).toBe('closed');
    expect(() => decode(null)).toThrow(Malformed);
  });

  it('does not claim a share of nothing', () => {
    const idle = circuit({ state: 'closed', calls: 0, errors: 0, error_ratio: 0 });
    expect(idle.errorRatio).toBeNull();
    expect(health(idle)).toBe('idle');
  });
});

describe('the order of the wall', () => {
  const list = [
    circuit({ id: 'calm', state: 'closed', calls: 900, errors: 0, error_ratio: 0, endpoint: { address: 'z' } }),
    circuit({ id: 'ill', state: 'closed', calls: 10, errors: 3, error_ratio: 0.3 }),
    circuit({ id: 'probing', state: 'half_open' }),
    circuit({ id: 'old', since: T0 }),
    circuit({ id: 'new', since: '2026-01-01T00:00:10.000Z' }),
    circuit({ id: 'whole', kind: 'service', endpoint: null, since: T0 }),
  ];
  const ids = (all: Circuit[]): string[] => all.map((one) => one.id);

  it('is worst first: open before half-open before closed, whole services and news first', () => {
    expect(ids(ordered(list, 'worst'))).toEqual(['whole', 'new', 'old', 'probing', 'ill', 'calm']);
    expect(ordered(list, 'busiest')[0]?.id).toBe('calm');
  });

  it('does not move a tile while only its numbers move', () => {
    const moved = list.map((one) => ({ ...one, calls: one.calls + 7 }));
    expect(ids(ordered(moved, 'worst'))).toEqual(ids(ordered(list, 'worst')));
  });

  it('counts by state, without limits that nobody reaches', () => {
    const limit = { kind: 'limit', endpoint: null };
    const all = [...list, circuit({ ...limit, id: 'calm limit', state: 'closed' }), circuit({ ...limit, id: 'reached' })];
    expect(counts(all)).toEqual({ open: 4, half_open: 1, closed: 2 });
  });
});

describe('the countdown', () => {
  it('ticks in whole seconds and ends at zero', () => {
    const one = circuit({});
    expect(countdown(one, at(0.2))).toBe(30);
    expect(countdown(one, at(29.5))).toBe(1);
    expect(countdown(one, at(31))).toBe(0);
    expect(countdown(circuit({ state: 'half_open' }), at(1))).toBeNull();
    expect(countdown(circuit({ next_probe_at: null }), at(1))).toBeNull();
  });

  it('has a bar that fills between opening and probe', () => {
    expect(progress(circuit({}), at(15))).toBe(0.5);
    expect(progress(circuit({}), at(-5))).toBe(0);
    expect(progress(circuit({}), at(99))).toBe(1);
    expect(progress(circuit({ state: 'closed' }), at(15))).toBeNull();
  });
});

describe('the filters', () => {
  it('look at names, places, causes and observers', () => {
    const one = circuit({});
    for (const find of ['', 'orders', 'v2 7d9', '10.0.0.7', 'server errors', 'consecutive', 'web-1']) expect(matches({ ...WALL, find }, one), find).toBe(true);
    for (const filter of [{ find: 'v3' }, { find: 'orders payments' }, { state: 'closed' as const }, { service: 'web.shop:80' }, { namespace: 'prod' }]) {
      expect(matches({ ...WALL, ...filter }, one)).toBe(false);
    }
    expect(matches({ ...WALL, state: 'open', namespace: 'shop', service: 'orders.shop:8080' }, one)).toBe(true);
  });

  it('keep a transition that enters or leaves the state', () => {
    const [event] = wall([], [EVENT]).events;
    if (!event) throw new Error('an event');
    expect(['open', 'closed', 'half_open'].map((state) => concerns({ ...WALL, state: state as 'open' }, event))).toEqual([true, true, false]);
  });

  it('offer what there is', () => {
    expect(choices(wall([OPEN, { ...OPEN, id: 'x', service: 'api.bank.example:80' }]))).toEqual({ services: ['api.bank.example:80', 'orders.shop:8080'], namespaces: ['bank', 'shop'] });
    expect(namespace('db:5432')).toBeNull();
    expect(title(circuit({ endpoint: { address: '10.0.0.7:8080' } }))).toBe('10.0.0.7:8080');
  });
});

describe('the circuits of a part of the graph', () => {
  const orders = node('workload:shop/orders');
  const web = node('workload:shop/web');
  const call = edge(web.id, orders.id, { services: ['orders.shop:8080'] });
  const endpoint = circuit({});
  const whole = circuit({ id: 'whole', kind: 'service', endpoint: null });
  const other = circuit({ id: 'other', endpoint: { address: '1:1', workload: 'payments', namespace: 'shop' } });

  it('are those of its endpoints and of the services it is called by', () => {
    expect(ofNode([endpoint, whole, other], orders, [call]).map((one) => one.id)).toEqual(['whole', endpoint.id]);
    expect(ofNode([whole], orders, [])).toEqual([]);
  });

  it('are, for an edge, those that its caller reports', () => {
    expect(ofEdge([endpoint, whole, other], call, web, orders).map((one) => one.id)).toEqual(['whole', endpoint.id]);
    expect(ofEdge([endpoint], call, node('workload:shop/admin'), orders)).toEqual([]);
    expect(ofEdge([{ ...endpoint, observersTotal: 40 }], call, node('workload:shop/admin'), orders)).toHaveLength(1);
  });
});

describe('volumes', () => {
  it('grow the circle by area, and are remembered for two minutes', () => {
    expect(radius(0, 100)).toBe(4);
    expect(radius(100, 100)).toBe(22);
    expect(radius(25, 100)).toBe(13);
    const volumes = new Volumes();
    for (let calls = 0; calls < SAMPLES_MAX + 5; calls += 1) volumes.record([circuit({ calls })]);
    expect(volumes.of(OPEN.id).length).toBe(SAMPLES_MAX);
    expect(volumes.of(OPEN.id).at(-1)).toBe(SAMPLES_MAX + 4);
    expect(line([0, 10], 119, 11)).toBe('M118 11L119 1');
    expect(line([3], 119, 11)).toBe('');
  });
});
