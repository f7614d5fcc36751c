/** Colours for the canvases, read from the style sheet, so that both themes are defined in one place. */

const NAMES = ['edge', 'edge-idle', 'accent', 'ok', 'degraded', 'failing', 'idle', 'flow', 'ground'] as const;
export type Colour = (typeof NAMES)[number];
export type Palette = Record<Colour, string>;

/** A custom property keeps `light-dark(…)` unresolved; the `color` of an element resolves it. */
export function palette(probe: HTMLElement): Palette {
  const before = probe.style.color;
  const colours = {} as Palette;
  for (const name of NAMES) {
    probe.style.color = `var(--c-${name})`;
    colours[name] = getComputedStyle(probe).color;
  }
  probe.style.color = before;
  return colours;
}
