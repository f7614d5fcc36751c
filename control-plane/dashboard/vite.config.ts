import { readdirSync, readFileSync } from 'node:fs';
import { svelte } from '@sveltejs/vite-plugin-svelte';
import type { Plugin } from 'vite';
import { defineConfig } from 'vitest/config';

// The control plane's build script says where it wants the files; by hand they land in dist/.
const out = process.env.WEFT_DASHBOARD_OUT || 'dist';

/** What is bundled comes with its licence: `licenses.txt` beside the page. */
function licences(): Plugin {
  return {
    name: 'weft-licences',
    apply: 'build',
    generateBundle() {
      const names = ['cytoscape', 'elkjs', 'svelte', 'uplot'];
      const texts = names.map((name) => {
        const folder = `node_modules/${name}`;
        const file = readdirSync(folder).find((one) => /^licen[sc]e/i.test(one));
        if (!file) throw new Error(`${name} has no licence file`);
        const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, 'utf8')) as Record<string, string>;
        const source = `https://www.npmjs.com/package/${name}/v/${version}`;
        return `${name} ${version} (${license})\nSource: ${source}\n\n${readFileSync(`${folder}/${file}`, 'utf8').trim()}\n`;
      });
      this.emitFile({ type: 'asset', fileName: 'licenses.txt', source: texts.join(`\n${'-'.repeat(78)}\n\n`) });
    },
  };
}

export default defineConfig({
  // Relative, so that the page also works behind a reverse proxy that adds a path.
  base: './',
  plugins: [svelte(), licences()],
  build: {
    outDir: out,
    emptyOutDir: true,
    target: 'es2022',
    // No data: URIs and no inline code: the page must run under `default-src 'self'`.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 1200,
  },
  server: { proxy: { '/api': process.env.WEFT_URL || 'http://127.0.0.1:8099' } },
  test: { include: ['src/**/*.test.ts'], environment: 'node' },
});
