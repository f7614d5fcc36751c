import { describe, expect, it } from 'vitest';
import { routes } from './routes';

describe('services, routes and backends', () => {
  it('keep what is configured apart from what is observed', () => {
    const { services } = routes({
      at: '2026-01-01T00:00:00Z', window: '1m',
      services: [{
        service: 'orders.shop:8080', protocol: 'http', circuit: null, policies: ['TrafficPolicy shop/orders'],
        routes: [{
          name: 'HTTPRoute/shop/orders/0', matches: ['GET /orders/**'], timeout_ms: 2000, backend_timeout_ms: null, retry: { attempts: 2, on: ['5xx'] },
          requests_per_second: 1.5, success_rate: 1, latency_ms: null,
          backends: [
            { cluster: 'orders-v2.shop:8080', weight: 10, share: 0.1, observed_share: 0.09, requests_per_second: 0.1, success_rate: 1, latency_ms: { p50: 3, p99: 9 }, circuit: 'half_open' },
            { cluster: 'orders-v1.shop:8080', weight: 90, share: 0.9, observed_share: null, circuit: null },
          ],
        }],
      }],
    });
    const [route] = services[0]?.routes ?? [];
    expect(route).toMatchObject({ timeoutMs: 2000, backendTimeoutMs: null, retry: { attempts: 2, on: ['5xx'] } });
    expect(route?.backends[0]).toMatchObject({ share: 0.1, observed: 0.09, circuit: 'half_open', latency: { p50: 3, p99: 9 } });
    expect(route?.backends[1]).toMatchObject({ share: 0.9, observed: null, rps: 0, success: null, circuit: null });
    expect(services[0]?.circuit).toBeNull();
  });
});
