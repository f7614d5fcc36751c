/**
 * Where the nodes stood. What a user dragged is theirs and stays (local storage); the rest of a picture survives
 * a reload of this tab (session storage). Storage may be missing or full: the page then forgets, nothing else.
 */
import type { Point } from './geometry';

const DRAGGED = 'weft.positions.dragged';
const PICTURE = 'weft.positions.picture';
/** Enough for the largest graph that is still readable; the oldest entries go first. About 60 bytes each. */
const ENTRIES_MAX = 2000;

export interface Memory {
  load(): { dragged: Map<string, Point>; picture: Map<string, Point> };
  saveDragged(positions: ReadonlyMap<string, Point>): void;
  savePicture(positions: ReadonlyMap<string, Point>): void;
}

export function memory(local: Storage | null, session: Storage | null): Memory {
  return {
    load: () => ({ dragged: read(local, DRAGGED), picture: read(session, PICTURE) }),
    saveDragged: (positions) => write(local, DRAGGED, positions),
    savePicture: (positions) => write(session, PICTURE, positions),
  };
}

function read(storage: Storage | null, key: string): Map<string, Point> {
  const positions = new Map<string, Point>();
  try {
    const parsed: unknown = JSON.parse(storage?.getItem(key) ?? '{}');
    if (typeof parsed !== 'object' || parsed === null) return positions;
    for (const [id, value] of Object.entries(parsed).slice(0, ENTRIES_MAX)) {
      if (Array.isArray(value) && Number.isFinite(value[0]) && Number.isFinite(value[1])) {
        positions.set(id, { x: value[0] as number, y: value[1] as number });
      }
    }
  } catch {
    // Unreadable: start afresh.
  }
  return positions;
}

function write(storage: Storage | null, key: string, positions: ReadonlyMap<string, Point>): void {
  const kept = [...positions].slice(-ENTRIES_MAX);
  try {
    storage?.setItem(key, JSON.stringify(Object.fromEntries(kept.map(([id, { x, y }]) => [id, [Math.round(x), Math.round(y)]]))));
  } catch {
    // Full or forbidden: positions then last only as long as the page.
  }
}
