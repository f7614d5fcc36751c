import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vitest/config';

// The control plane's build script says where it wants the files; by hand they land in dist/.
const out = process.env.WEFT_DASHBOARD_OUT || 'dist';

export default defineConfig({
  // Relative, so that the page also works behind a reverse proxy that adds a path.
  base: './',
  plugins: [svelte()],
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
