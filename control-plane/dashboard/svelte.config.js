import { vitePreprocess } from '@sveltejs/vite-plugin-svelte';

export default {
  preprocess: vitePreprocess(),
  // Styles go to a file, never into a <style> element, so a strict content security policy holds.
  compilerOptions: { css: 'external', runes: true },
};
