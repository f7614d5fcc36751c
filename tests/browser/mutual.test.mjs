/**
 * The dashboard in a real browser, over a mesh with mutual TLS: the lock on an edge, and the certificates of everybody.
 *
 *   WEFT_URL           the dashboard of a mesh in which `shop/web` calls `shop/orders`, both with an identity
 *   WEFT_CHROMIUM      default /usr/bin/chromium
 *   WEFT_SCREENSHOT    where to put a PNG of the edge; others go beside it: `…-certificates.png`, `…-rotation.png`
 *
 * It asserts that the lock is closed and names whom certificates named, that the page of certificates knows every sidecar and
 * the authority and warns of nothing, that an operator can begin a rotation there and see it go on, and that the browser has
 * nothing to complain about.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { open, picture } from './browser.mjs';

const identity = (name) => `spiffe://cluster.local/ns/shop/sa/${name}`;
let browser;
let page;
let complaints;

before(async () => {
  browser = await open();
  ({ page, complaints } = browser);
  browser.context.setDefaultTimeout(30_000);
});

after(async () => {
  await browser?.close();
});

test('an edge whose calls were all mutual TLS has a closed lock, and says who was verified', async () => {
  await page.goto(process.env.WEFT_URL);
  const edge = page.locator('[data-edge][data-source="workload:shop/web"][data-target="workload:shop/orders"]');
  await edge.locator('[data-lock="mutual"]').waitFor();
  await page.locator('#tab-panel [data-row]').filter({ hasText: 'mutual TLS' }).first().click();
  const protection = page.locator('[data-panel="edge"] [data-protection="mutual"]');
  await protection.waitFor();
  // Who is there comes with the list of sidecars, a moment later.
  await protection.getByText(identity('orders')).waitFor();
  const words = await protection.innerText();
  assert.match(words, /Mutual TLS 1\.3/);
  assert.match(words, new RegExp(`Verified caller\\s+${identity('web')}`));
  assert.match(words, new RegExp(`Verified callee\\s+${identity('orders')}`));
  assert.equal(await protection.locator('[data-advice]').count(), 0, 'there is nothing to do');
  await picture(page);
});

test('the page of certificates knows every sidecar and the authority, and warns of nothing', async () => {
  await page.locator('[data-protection] a').click();
  assert.match(page.url(), /view=certificates/, 'the address names the page');
  const body = page.locator('[data-screen-body="certificates"]');
  for (const name of ['web', 'orders']) {
    const row = body.locator('[data-row]').filter({ has: page.locator(`[data-identity="${identity(name)}"]`) });
    await row.waitFor();
    await row.locator('[data-expires="valid"]').waitFor();
    // A report that waited on a busy machine looks like a clock that is behind.
    assert.match(await row.innerText(), /in 2[34] hours[^]*20\d\d[^]*current roots[^]*(right|behind)/, `${name}: until when, whom it trusts, its clock`);
  }
  assert.equal(await body.locator('[data-link-of]').count(), 3, 'a root, an intermediate, the control plane');
  assert.match(await body.innerText(), /weft-system\/sa\/weft-control-plane/);
  assert.equal(await body.locator('[data-warning]').count(), 0);
  assert.equal(await body.locator('[data-identified]').getAttribute('data-identified'), '2');
  await picture(page, 'certificates');
});

test('an operator begins a rotation, and sees two roots and how far it is', async () => {
  await page.locator('[data-action="rotate"]').click();
  await page.locator('[data-action="rotate-yes"]').click();
  const progress = page.locator('[data-rotation="distributing"], [data-rotation="replacing"]');
  await progress.waitFor();
  assert.match(await progress.innerText(), /Phase [12] of 3: \d of 2 sidecars/);
  await page.locator('[data-link-of]').nth(3).waitFor();
  await progress.getByText(/2 of 2 sidecars/).waitFor();
  await picture(page, 'rotation');
});

test('the browser had nothing to complain about', () => {
  assert.deepEqual(complaints, []);
});
