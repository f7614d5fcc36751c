/** The terminal's way to the same answer. One place, so that it changes when the CLI does. Pure. */

export function graph(window: string): string {
  return `weft graph${option(window)}`;
}

export function stat(window: string, about?: string): string {
  return `weft stat${about === undefined ? '' : ` ${about}`}${option(window)}`;
}

function option(window: string): string {
  return window === '1m' ? '' : ` --window ${window}`;
}
