/** Medplum's client in the form for servers of others. */

import assert from 'node:assert/strict';
import { test } from 'node:test';

import { MedplumClient, OperationOutcomeError } from '@medplum/core';

import {
  FAMILIES, SYSTEM, admission, askForToken, base, familiesOf, newBatch, patient, resourcesOf, smartBase, stayOf, typesOf,
} from './flows.mjs';

function connect(fhirBase, more = {}) {
  const { origin, pathname } = new URL(fhirBase);
  const fhirUrlPath = pathname.slice(1);
  // Nothing is kept: each read asks the server.
  return new MedplumClient({ baseUrl: origin, fhirUrlPath, fetch, medplumServer: false, cacheTime: 0, ...more });
}

const client = connect(base);
const create = (batch, family) => client.createResource(patient(batch, family));

function refused(code) {
  return (error) => {
    assert.ok(error instanceof OperationOutcomeError, String(error));
    assert.equal(error.outcome.issue[0].code, code);
    assert.ok(error.outcome.issue[0].diagnostics);
    return true;
  };
}

test('creates, reads and updates a version that it knows', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  const read = await client.readResource('Patient', id);
  const options = { headers: { 'If-Match': 'W/"1"' } };
  const changed = { ...read, gender: 'female' };
  assert.equal((await client.updateResource(changed, options)).meta.versionId, '2');
  await assert.rejects(client.updateResource({ ...read, gender: 'male' }, options), refused('conflict'));
  assert.equal((await client.readVersion('Patient', id, '1')).gender, undefined);
  assert.equal((await client.readReference({ reference: `Patient/${id}` })).gender, 'female');
});

test('creates and updates under a condition', async () => {
  const batch = newBatch();
  const query = `identifier=${SYSTEM}|${batch}`;
  const first = await client.createResourceIfNoneExist(patient(batch, 'Oakenshade'), query);
  const again = await client.createResourceIfNoneExist(patient(batch, 'Oakenshade'), query);
  assert.equal(again.id, first.id);
  const updated = await client.upsertResource(patient(batch, 'Thistlewick'), query);
  assert.deepEqual([updated.id, updated.name[0].family], [first.id, 'Thistlewick']);
});

test('searches and pages', async () => {
  const batch = newBatch();
  for (const family of FAMILIES) await create(batch, family);
  const query = { identifier: `${SYSTEM}|${batch}`, _sort: 'family', _count: '2' };
  const pages = [];
  for await (const page of client.searchResourcePages('Patient', query)) pages.push(familiesOf(page));
  assert.deepEqual(pages, [['Family0', 'Family1'], ['Family2', 'Family3'], ['Family4']]);
  assert.equal((await client.searchOne('Patient', query)).name[0].family, 'Family0');
  const all = await client.searchResources('Patient', { identifier: query.identifier });
  assert.equal(all.length, 5);
});

test('counts and cuts down', async () => {
  const batch = newBatch();
  await create(batch, 'Oakenshade');
  const identifier = `${SYSTEM}|${batch}`;
  const counted = await client.search('Patient', { identifier, _summary: 'count', _total: 'accurate' });
  assert.equal(counted.total, 1);
  const [slim] = await client.searchResources('Patient', { identifier, _elements: 'name' });
  assert.deepEqual([slim.name[0].family, slim.identifier], ['Oakenshade', undefined]);
});

test('includes', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  await client.createResource(stayOf(`Patient/${id}`));
  const found = await client.search('Encounter', { subject: `Patient/${id}`, _include: 'Encounter:subject' });
  assert.deepEqual(typesOf(found), ['Encounter', 'Patient']);
});

test('patches, with a test of the version before', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  const patched = await client.patchResource('Patient', id, [
    { op: 'test', path: '/meta/versionId', value: '1' },
    { op: 'add', path: '/active', value: true },
  ]);
  assert.deepEqual([patched.active, patched.meta.versionId], [true, '2']);
});

test('deletes and reads histories', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  await client.deleteResource('Patient', id);
  await assert.rejects(client.readResource('Patient', id), refused('deleted'));
  const { entry } = await client.readHistory('Patient', id);
  assert.deepEqual(entry.map((each) => each.request.method), ['DELETE', 'POST']);
});

test('sends transactions and calls operations', async () => {
  const batch = newBatch();
  const answer = await client.executeBatch(admission(batch));
  assert.deepEqual(answer.entry.map((each) => each.response.status), ['201', '201']);
  const { id } = answer.entry[0].resource;
  const everything = await client.readPatientEverything(id);
  assert.deepEqual(typesOf(everything), ['Encounter', 'Patient']);
  const judged = await client.validateResource(patient(batch, 'Oakenshade', { gender: 'banana' }));
  assert.deepEqual(judged.issue[0].expression, ['Patient.gender']);
});

test('writes and reads what a Binary holds', async () => {
  const contentType = 'application/pdf';
  const made = await client.createBinary({ data: '%PDF-1.7', contentType });
  assert.deepEqual([made.resourceType, made.contentType], ['Binary', contentType]);
  const file = await client.download(`${base}/Binary/${made.id}`, { headers: { Accept: contentType } });
  assert.equal(await file.text(), '%PDF-1.7');
});

test('passes on why it was refused', async () => {
  const invalid = patient(newBatch(), 'Oakenshade', { gender: 'banana' });
  await assert.rejects(client.createResource(invalid), (error) => {
    assert.deepEqual(error.outcome.issue[0].expression, ['Patient.gender']);
    return true;
  });
  await assert.rejects(client.search('Patient', { bogus: '1' }), (error) => /bogus/.test(error.message));
});

test('shows a token that the caller brings', async () => {
  const smart = connect(smartBase);
  await assert.rejects(smart.search('Patient'));
  const { token_endpoint: tokenUrl } = await (await fetch(`${smartBase}/.well-known/smart-configuration`)).json();
  smart.setAccessToken((await askForToken(tokenUrl)).access_token);
  assert.deepEqual(resourcesOf(await smart.search('Patient', { _count: '0' })), []);
});
