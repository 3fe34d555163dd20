/** The SMART client in its server-side form; its launch flows need a person who logs in. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import smart from 'fhirclient';

import {
  FAMILIES, SYSTEM, admission, askForToken, base, familiesOf, newBatch, patient, resourcesOf, smartBase, stayOf, typesOf,
} from './flows.mjs';

const api = (storage = new Map()) => smart({ headers: {} }, {}, {
  get: async (key) => storage.get(key),
  set: async (key, value) => storage.set(key, value).get(key),
  unset: async (key) => storage.delete(key),
});
const client = api().client({ serverUrl: base });
const create = (batch, family) => client.create(patient(batch, family));
const queryOf = (batch) => `Patient?identifier=${encodeURIComponent(`${SYSTEM}|${batch}`)}`;
const send = (url, method, body, headers = {}) => client.request({
  url, method, body: JSON.stringify(body), headers: { 'content-type': 'application/fhir+json', ...headers },
});

/** Its HttpError has the status and quotes the OperationOutcome. */
const refused = (status, words) => (error) => {
  assert.equal(error.status, status);
  assert.match(error.message, words);
  return true;
};

test('knows which release it speaks to', async () => {
  assert.equal(await client.getFhirVersion(), '4.0.1');
  assert.equal(await client.getFhirRelease(), 4);
});

test('creates, reads and updates a version that it knows', async () => {
  const created = await create(newBatch(), 'Oakenshade');
  const read = await client.request(`Patient/${created.id}`);
  read.gender = 'female';
  const headers = { 'if-match': 'W/"1"' };
  assert.equal((await client.update(read, { headers })).meta.versionId, '2');
  await assert.rejects(client.update(read, { headers }), refused(412, /version/i));
});

test('creates under a condition', async () => {
  const batch = newBatch();
  const headers = { 'if-none-exist': `identifier=${SYSTEM}|${batch}` };
  const first = await client.create(patient(batch, 'Oakenshade'), { headers });
  assert.equal((await client.create(patient(batch, 'Oakenshade'), { headers })).id, first.id);
});

test('searches and pages', async () => {
  const batch = newBatch();
  for (const family of FAMILIES) await create(batch, family);
  const url = `${queryOf(batch)}&_sort=family&_count=2`;
  assert.deepEqual(familiesOf(await client.request(url, { pageLimit: 0, flat: true })), FAMILIES);
  const pages = [];
  for await (const page of client.pages(url)) pages.push(familiesOf(resourcesOf(page)));
  assert.deepEqual(pages.map((page) => page.length), [2, 2, 1]);
  const walked = [];
  for await (const each of client.resources(url)) walked.push(each);
  assert.deepEqual(familiesOf(walked), FAMILIES);
  const posted = await client.request({
    url: 'Patient/_search', method: 'POST', body: `identifier=${SYSTEM}|${batch}&_count=2`,
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
  }, { pageLimit: 0, flat: true });
  assert.equal(posted.length, 5);
});

test('includes and resolves', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  await client.create(stayOf(`Patient/${id}`));
  const url = `Encounter?subject=Patient/${id}`;
  assert.deepEqual(typesOf(await client.request(`${url}&_include=Encounter:subject`)), ['Encounter', 'Patient']);
  const [stay] = await client.request(url, { flat: true, resolveReferences: ['subject'] });
  assert.equal(stay.subject.id, id);
});

/** It sends "Prefer: return=presentation", which nobody knows. */
test('patches', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  const patched = await client.patch(`Patient/${id}`, [{ op: 'add', path: '/active', value: true }]);
  assert.deepEqual([patched.active, patched.meta.versionId], [true, '2']);
});

test('deletes and reads histories', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  await client.delete(`Patient/${id}`);
  await assert.rejects(client.request(`Patient/${id}`), refused(410, /deleted/i));
  const { entry } = await client.request(`Patient/${id}/_history`);
  assert.deepEqual(entry.map((each) => each.request.method), ['DELETE', 'POST']);
});

test('sends transactions and calls operations', async () => {
  const answer = await send('', 'POST', admission(newBatch()));
  assert.deepEqual(answer.entry.map((each) => each.response.status), ['201', '201']);
  const { id } = answer.entry[0].resource;
  assert.deepEqual(typesOf(await client.request(`Patient/${id}/$everything`)), ['Encounter', 'Patient']);
  const judged = await send('Patient/$validate', 'POST', patient(newBatch(), 'Oakenshade', { gender: 'banana' }));
  assert.deepEqual(judged.issue[0].expression, ['Patient.gender']);
});

test('passes on why it was refused', async () => {
  const invalid = patient(newBatch(), 'Oakenshade', { gender: 'banana' });
  await assert.rejects(client.create(invalid), (error) => error.status >= 400 && /gender/.test(error.message));
  await assert.rejects(client.request('Patient/none-such'), refused(404, /not|no /i));
});

test('shows a token that the caller brings', async () => {
  await assert.rejects(api().client({ serverUrl: smartBase }).request('Patient'), refused(401, /.+/));
  const { token_endpoint: tokenUrl } = await (await fetch(`${smartBase}/.well-known/smart-configuration`)).json();
  const tokenResponse = await askForToken(tokenUrl);
  const allowed = api().client({ serverUrl: smartBase, tokenResponse });
  assert.equal((await allowed.request('Patient?_count=1')).type, 'searchset');
});
