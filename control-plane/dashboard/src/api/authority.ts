/**
 * The certificate authority, and the reading of the API's JSON (`GET /api/ca`). Moments are Unix milliseconds.
 */
import { list, number, object, text, texts } from './json';

/** A certificate of the authority's own. */
export interface Link {
  readonly subject: string;
  /** The beginning of the key's hash: how roots are told apart. */
  readonly fingerprint: string;
  readonly notBefore: number;
  readonly notAfter: number;
}

export interface Rotation {
  readonly phase: 'distributing' | 'replacing';
  readonly old: string;
  readonly new: string;
  /** When the old root is dropped; null before it is replaced. */
  readonly until: number | null;
  /** Instances that it waits for, some of them. */
  readonly waiting: readonly string[];
}

export interface Authority {
  readonly trustDomain: string;
  /** Whether a restart keeps it. */
  readonly kept: boolean;
  /** Whether the issuer is the operator's own. */
  readonly brought: boolean;
  /** Whom everybody trusts, the issuing root first. */
  readonly roots: readonly Link[];
  readonly issuer: Link;
  readonly own: Link;
  readonly leafMs: number;
  /** Of the sidecars with an identity. */
  readonly connected: number;
  readonly trusting: number;
  readonly renewed: number;
  readonly rotation: Rotation | null;
}

export function authority(value: unknown): Authority {
  const json = object(value, 'certificate authority');
  const sidecars = object(json.sidecars, 'count of sidecars');
  return {
    trustDomain: text(json.trust_domain) ?? '',
    kept: json.kept === true,
    brought: json.brought === true,
    roots: list(json.roots).map(link),
    issuer: link(json.issuer),
    own: link(json.own),
    leafMs: seconds(json.leaf_seconds),
    connected: number(sidecars.connected) ?? 0,
    trusting: number(sidecars.trusting) ?? 0,
    renewed: number(sidecars.renewed) ?? 0,
    rotation: rotation(json.rotation),
  };
}

function rotation(value: unknown): Rotation | null {
  if (typeof value !== 'object' || value === null) return null;
  const json = object(value, 'rotation');
  return {
    phase: json.phase === 'distributing' ? 'distributing' : 'replacing',
    old: text(json.old) ?? '',
    new: text(json.new) ?? '',
    until: number(json.until) === null ? null : seconds(json.until),
    waiting: texts(json.waiting),
  };
}

function link(value: unknown): Link {
  const json = object(value, 'certificate');
  return { subject: text(json.subject) ?? '', fingerprint: text(json.fingerprint) ?? '', notBefore: seconds(json.not_before), notAfter: seconds(json.not_after) };
}

const seconds = (value: unknown): number => (number(value) ?? 0) * 1000;
