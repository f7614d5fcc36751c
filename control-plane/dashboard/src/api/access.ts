/**
 * Policies on access with what their rules said, and the reading of the API's JSON (`GET /api/access`).
 */
import { list, number, object, text, texts } from './json';

export interface Said {
  /** `AccessPolicy/shop/orders/0`; null where no rule let the calls in. */
  readonly rule: string | null;
  /** `orders.shop:8080`. */
  readonly service: string;
  readonly allowed: number;
  readonly denied: number;
  readonly wouldAllow: number;
  readonly wouldDeny: number;
}

export interface AccessPolicy {
  /** `shop/orders`. */
  readonly name: string;
  /** Null: it speaks of mutual TLS only. */
  readonly action: 'Allow' | 'Deny' | null;
  readonly audit: boolean;
  readonly targets: readonly string[];
  readonly said: readonly Said[];
}

export interface Access {
  readonly policies: readonly AccessPolicy[];
  /** Calls that no rule let in, by service. */
  readonly unmatched: readonly Said[];
}

export function access(value: unknown): Access {
  const json = object(value, 'list of policies');
  return { policies: list(json.policies).map(policy), unmatched: list(json.unmatched).map(said) };
}

function policy(value: unknown): AccessPolicy {
  const json = object(value, 'policy');
  const action = text(json.action);
  return {
    name: text(json.name) ?? '',
    action: action === 'Allow' || action === 'Deny' ? action : null,
    audit: json.audit === true,
    targets: texts(json.targets),
    said: list(json.said).map(said),
  };
}

function said(value: unknown): Said {
  const json = object(value, 'rate');
  return {
    rule: text(json.rule),
    service: text(json.service) ?? '',
    allowed: number(json.allowed_per_second) ?? 0,
    denied: number(json.denied_per_second) ?? 0,
    wouldAllow: number(json.would_allow_per_second) ?? 0,
    wouldDeny: number(json.would_deny_per_second) ?? 0,
  };
}
