/** The terminal's way to the same answer. One place, so that it changes when the CLI does. Pure. */

export function graph(window: string): string {
  return `weft graph${option(window)}`;
}

export function stat(window: string): string {
  return `weft stat${option(window)}`;
}

export function edge(window: string, source: string, target: string, routes: boolean): string {
  return `weft stat ${source} ${target}${routes ? ' --routes' : ''}${option(window)}`;
}

export function callers(window: string, target: string): string {
  return `weft stat - ${target}${option(window)}`;
}

export function calls(window: string, source: string): string {
  return `weft stat ${source}${option(window)}`;
}

/** What the CLI takes for a node: its name where that is enough, else its id. */
export function name(node: { readonly id: string; readonly name: string }, all: Iterable<{ readonly id: string; readonly name: string }>): string {
  for (const other of all) if (other.name === node.name && other.id !== node.id) return node.id;
  return node.name;
}

function option(window: string): string {
  return window === '1m' ? '' : ` --window ${window}`;
}
