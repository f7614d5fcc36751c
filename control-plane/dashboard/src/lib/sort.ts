/** Sorting of table rows by a column. Pure and stable; what is unknown comes last in both directions. */

export interface Order {
  readonly column: string;
  readonly descending: boolean;
}

export type Value = string | number | null;

export function sorted<T>(rows: readonly T[], value: (row: T) => Value, descending: boolean): T[] {
  const sign = descending ? -1 : 1;
  return [...rows].sort((left, right) => {
    const a = value(left);
    const b = value(right);
    if (a === null || b === null) return a === b ? 0 : a === null ? 1 : -1;
    if (typeof a === 'number' && typeof b === 'number') return sign * (a - b);
    return sign * String(a).localeCompare(String(b));
  });
}

/** A click on the same column turns the order round; a new column starts in its natural direction. */
export function clicked(order: Order, column: string, numeric: boolean): Order {
  if (order.column === column) return { column, descending: !order.descending };
  return { column, descending: numeric };
}

/** A column of a table of `T`. */
export interface Column<T> {
  readonly id: string;
  readonly title: string;
  readonly numeric?: boolean;
  /** Not a number to look at, but sorted like one: large first. */
  readonly worstFirst?: boolean;
  readonly value: (row: T) => Value;
}
