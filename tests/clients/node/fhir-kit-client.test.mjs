import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Client } from 'fhir-kit-client';

import {
  FAMILIES, SYSTEM, admission, askForToken, base, familiesOf, newBatch, patient, resourcesOf, smartBase, stayOf, typesOf,
} from './flows.mjs';

const client = new Client({ baseUrl: base });
const resourceType = 'Patient';
const statusOf = (answer) => Client.httpFor(answer).response.status;
const headerOf = (answer, name) => Client.httpFor(answer).response.headers.get(name);
const create = (batch, family) => client.create({ resourceType, body: patient(batch, family) });

/** The client throws an Error that brings the OperationOutcome. */
function refused(status, code) {
  return ({ response }) => {
    assert.equal(response.status, status);
    assert.equal(response.data.resourceType, 'OperationOutcome');
    assert.equal(response.data.issue[0].code, code);
    assert.ok(response.data.issue[0].diagnostics);
    return true;
  };
}

test('reads the capabilities', async () => {
  assert.equal((await client.capabilityStatement()).fhirVersion, '4.0.1');
});

test('creates, reads and updates a version that it knows', async () => {
  const created = await create(newBatch(), 'Oakenshade');
  const { id } = created;
  assert.equal(statusOf(created), 201);
  assert.equal(headerOf(created, 'location'), `${base}/Patient/${id}/_history/1`);
  const read = await client.read({ resourceType, id });
  read.gender = 'female';
  const options = { headers: { 'If-Match': headerOf(read, 'etag') } };
  const updated = await client.update({ resourceType, id, body: read, options });
  assert.equal(updated.meta.versionId, '2');
  await assert.rejects(client.update({ resourceType, id, body: read, options }), refused(412, 'conflict'));
  assert.equal((await client.vread({ resourceType, id, version: '1' })).gender, undefined);
});

test('creates and updates under a condition', async () => {
  const batch = newBatch();
  const options = { headers: { 'If-None-Exist': `identifier=${SYSTEM}|${batch}` } };
  const body = patient(batch, 'Oakenshade');
  const first = await client.create({ resourceType, body, options });
  const again = await client.create({ resourceType, body, options });
  assert.deepEqual([statusOf(first), statusOf(again)], [201, 200]);
  assert.equal(first.id, again.id);
  const updated = await client.update({
    resourceType, searchParams: { identifier: `${SYSTEM}|${batch}` }, body: patient(batch, 'Thistlewick'),
  });
  assert.deepEqual([updated.id, updated.name[0].family], [first.id, 'Thistlewick']);
});

for (const postSearch of [false, true]) {
  test(`searches and pages, ${postSearch ? 'by POST' : 'by GET'}`, async () => {
    const batch = newBatch();
    for (const family of FAMILIES) await create(batch, family);
    let page = await client.search({
      resourceType,
      searchParams: { identifier: `${SYSTEM}|${batch}`, _sort: 'family', _count: 2, _total: 'accurate' },
      options: { postSearch },
    });
    assert.equal(page.total, 5);
    const pages = [];
    for (; page; page = await client.nextPage({ bundle: page })) pages.push(familiesOf(resourcesOf(page)));
    assert.deepEqual(pages, [['Family0', 'Family1'], ['Family2', 'Family3'], ['Family4']]);
  });
}

test('includes, searches compartments and the whole system, resolves', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  const reference = `Patient/${id}`;
  const stay = await client.create({ resourceType: 'Encounter', body: stayOf(reference) });
  const searchParams = { subject: reference, _include: 'Encounter:subject' };
  const found = await client.search({ resourceType: 'Encounter', searchParams });
  assert.deepEqual(found.entry.map((entry) => entry.search.mode), ['match', 'include']);
  assert.equal((await client.resolve({ reference: stay.subject.reference, context: found })).id, id);
  assert.equal((await client.resolve({ reference: stay.subject.reference })).id, id);
  const compartment = { resourceType, id };
  const theirs = await client.search({ resourceType: 'Encounter', compartment });
  assert.deepEqual(resourcesOf(theirs).map((each) => each.id), [stay.id]);
  const all = await client.search({ searchParams: { _id: stay.id, _type: 'Encounter' } });
  assert.deepEqual(typesOf(all), ['Encounter']);
});

test('patches', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  const jsonPatch = [{ op: 'replace', path: '/name/0/family', value: 'Thistlewick' }];
  assert.deepEqual(familiesOf([await client.patch({ resourceType, id, jsonPatch })]), ['Thistlewick']);
  const wrong = [{ op: 'test', path: '/gender', value: 'male' }];
  await assert.rejects(client.patch({ resourceType, id, jsonPatch: wrong }), ({ response }) => {
    assert.equal(response.data.resourceType, 'OperationOutcome');
    return response.status === 422;
  });
});

test('deletes and reads histories', async () => {
  const { id } = await create(newBatch(), 'Oakenshade');
  assert.equal(statusOf(await client.delete({ resourceType, id })), 204);
  await assert.rejects(client.read({ resourceType, id }), refused(410, 'deleted'));
  const { entry } = await client.history({ resourceType, id });
  assert.deepEqual(entry.map((each) => each.request.method), ['DELETE', 'POST']);
  assert.ok((await client.history({ resourceType })).entry.length >= 2);
  assert.ok((await client.history()).entry.length >= 2);
});

test('sends transactions and batches, calls operations', async () => {
  const batch = newBatch();
  const answer = await client.transaction({ body: admission(batch) });
  assert.deepEqual(answer.entry.map((each) => each.response.status), ['201', '201']);
  const again = await client.transaction({ body: admission(batch) });
  assert.deepEqual(again.entry.map((each) => each.response.status), ['200', '201']);
  const { id } = answer.entry[0].resource;
  for (const method of ['GET', 'POST']) {
    const everything = await client.operation({ name: 'everything', resourceType, id, method });
    assert.deepEqual(typesOf(everything), ['Encounter', 'Encounter', 'Patient']);
  }
  const body = patient(batch, 'Oakenshade', { gender: 'banana' });
  const judged = await client.operation({ name: '$validate', resourceType, input: body });
  assert.deepEqual(judged.issue[0].expression, ['Patient.gender']);
  const read = { resourceType: 'Bundle', type: 'batch', entry: [{ request: { method: 'GET', url: `Patient/${id}` } }] };
  assert.equal((await client.batch({ body: read })).entry[0].resource.id, id);
});

test('passes on why it was refused', async () => {
  const body = patient(newBatch(), 'Oakenshade', { gender: 'banana' });
  await assert.rejects(client.create({ resourceType, body }), ({ response }) => {
    assert.deepEqual(response.data.issue[0].expression, ['Patient.gender']);
    return response.status >= 400;
  });
  await assert.rejects(client.read({ resourceType, id: 'none-such' }), refused(404, 'not-found'));
});

test('finds where to ask for a token, and shows it', async () => {
  const smart = new Client({ baseUrl: smartBase });
  await assert.rejects(smart.search({ resourceType }), refused(401, 'login'));
  const { tokenUrl } = await smart.smartAuthMetadata();
  smart.bearerToken = (await askForToken(tokenUrl)).access_token;
  assert.equal((await smart.search({ resourceType, searchParams: { _count: 1 } })).type, 'searchset');
});
