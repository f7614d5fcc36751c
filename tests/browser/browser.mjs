/**
 * The browser that the tests here share: one page on a profile of its own, and everything that it complains about.
 *
 *   WEFT_CHROMIUM      default /usr/bin/chromium
 *   WEFT_SCREENSHOT    where pictures go; without it there are none
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const FLAGS = [
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync',
];

/** Starts it. `complaints` grows: errors, warnings, exceptions, violations of the content security policy. */
export async function open() {
  const profile = await mkdtemp(join(tmpdir(), 'weft-browser-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.WEFT_CHROMIUM || '/usr/bin/chromium',
    args: FLAGS,
    viewport: { width: 1440, height: 900 },
    colorScheme: 'light',
    locale: 'en-US',
  });
  const page = await context.newPage();
  const complaints = [];
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') complaints.push(`${message.type()}: ${message.text()}`);
  });
  page.on('pageerror', (error) => complaints.push(`exception: ${error.message}`));
  await page.addInitScript(() => {
    addEventListener('securitypolicyviolation', (event) => console.error(`content security policy: ${event.violatedDirective} ${event.blockedURI}`));
  });
  const close = async () => {
    await context.close();
    await rm(profile, { recursive: true, force: true });
  };
  return { page, context, complaints, close };
}

/** The page after a step, whatever came of it: pictures are for people who were not there. */
export async function picture(page, name) {
  const path = process.env.WEFT_SCREENSHOT;
  if (path) await page.screenshot({ path: name ? path.replace(/(\.png)?$/, `-${name}.png`) : path });
}
