/**
 * Signing in to the dashboard in a real browser, against a control plane that asks for a token.
 *
 *   WEFT_URL           the dashboard
 *   WEFT_TOKEN         a viewer's token, of somebody called alice
 *   WEFT_OPERATOR      an operator's token, of somebody called bob
 *   WEFT_CHROMIUM      default /usr/bin/chromium
 *   WEFT_SCREENSHOT    where to put a PNG of the sign-in screen
 *
 * It asserts that nobody sees the mesh without a token, that a token brings the picture and its event stream, that a viewer is
 * offered nothing that only operators may, that nothing is left after signing out, and that the browser has nothing to
 * complain about but the one refusal.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { open } from './browser.mjs';

const url = process.env.WEFT_URL;
let browser;
let page;
let complaints;
const asked = [];

before(async () => {
  browser = await open();
  ({ page, complaints } = browser);
  browser.context.setDefaultTimeout(30_000);
  page.on('request', (request) => asked.push(new URL(request.url()).pathname));
});

after(async () => {
  await browser?.close();
});

async function signIn(token) {
  await page.locator('#token').fill(token);
  await page.locator('[data-action="sign-in"]').click();
}

test('whoever is not signed in sees how to, and nothing of the mesh', async () => {
  await page.goto(url);
  await page.locator('[data-signin]').waitFor();
  assert.equal(await page.locator('[data-node], [data-link], [data-who]').count(), 0);
  if (process.env.WEFT_SCREENSHOT) await page.screenshot({ path: process.env.WEFT_SCREENSHOT });
  const api = asked.filter((path) => path.startsWith('/api/'));
  assert.deepEqual([...new Set(api)], ['/api/session'], 'nothing else is asked for');
});

test('a token that nobody knows is refused in words', async () => {
  await signIn('weft_api_wrong');
  await page.getByRole('alert').waitFor();
  assert.match(await page.getByRole('alert').innerText(), /not known here/);
  // The browser itself remarks upon a 401.
  const refusals = complaints.splice(0);
  assert.equal(refusals.length, 1, refusals.join('\n'));
  assert.match(refusals[0], /401/);
});

test('a token brings the picture, live, and a viewer no operator action', async () => {
  await signIn(process.env.WEFT_TOKEN);
  await page.locator('[data-link="live"]').waitFor();
  await page.locator('[data-edge]').first().waitFor();
  await page.locator('[data-who="alice"][data-role="viewer"]').waitFor();
  assert.equal(await page.locator('[data-action="audit"]').count(), 0);
  const kept = await page.evaluate(() => [document.cookie, ...Object.values({ ...localStorage }), ...Object.values({ ...sessionStorage })].join(' '));
  assert.doesNotMatch(kept, /weft_api_|weft=/, 'no script can read what stands for the token');
  const cookie = (await browser.context.cookies()).find(({ name }) => name === 'weft' || name === '__Host-weft');
  assert.equal(cookie?.httpOnly, true);
  assert.equal(cookie?.sameSite, 'Strict');
});

test('the session outlives a reload', async () => {
  await page.reload();
  await page.locator('[data-who="alice"]').waitFor();
  await page.locator('[data-edge]').first().waitFor();
});

test('after signing out nothing is left, and the cookie is worth nothing', async () => {
  const [before] = (await browser.context.cookies()).filter(({ name }) => name === 'weft' || name === '__Host-weft');
  await page.locator('[data-action="sign-out"]').click();
  await page.locator('[data-signin]').waitFor();
  assert.equal(await page.locator('[data-node]').count(), 0);
  assert.equal((await browser.context.cookies()).some(({ name }) => name === before.name), false);
  const again = await fetch(`${url}/api/graph`, { headers: { cookie: `${before.name}=${before.value}` } });
  assert.equal(again.status, 401);
});

test('an operator is offered the audit log', async () => {
  await signIn(process.env.WEFT_OPERATOR);
  await page.locator('[data-who="bob"][data-role="operator"]').waitFor();
  await page.locator('[data-action="audit"]').waitFor();
  const answer = await page.evaluate(async () => (await fetch('api/audit')).json());
  assert.deepEqual(answer.entries.slice(0, 3).map(({ who, action }) => `${who} ${action}`), ['bob POST /api/session', 'alice DELETE /api/session', 'alice POST /api/session']);
});

test('the browser had nothing to complain about', () => {
  assert.deepEqual(complaints, []);
});
