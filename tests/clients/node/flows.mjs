/** What the flows of all clients share: where the servers are, what is sent to them, and how a token is asked for. */

import { createPrivateKey, randomUUID, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';

function given(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: make clients does so`);
  return value;
}

export const base = given('CARERELAY_BASE');
export const smartBase = given('CARERELAY_SMART_BASE');
export const SYSTEM = 'http://carerelay.example/sid/test';
export const FAMILIES = ['Family0', 'Family1', 'Family2', 'Family3', 'Family4'];

export const newBatch = () => randomUUID();

export function patient(batch, family, more = {}) {
  return {
    resourceType: 'Patient',
    identifier: [{ system: SYSTEM, value: batch }],
    name: [{ family, given: ['Test'] }],
    ...more,
  };
}

/** Planned: nobody is told of it, and the server writes nothing about it. */
export function stayOf(reference) {
  return {
    resourceType: 'Encounter',
    status: 'planned',
    class: { system: 'http://terminology.hl7.org/CodeSystem/v3-ActCode', code: 'IMP' },
    subject: { reference },
  };
}

/** A new Patient, unless this test has made one before, and a stay of theirs. */
export function admission(batch) {
  const urn = `urn:uuid:${randomUUID()}`;
  return {
    resourceType: 'Bundle',
    type: 'transaction',
    entry: [
      {
        fullUrl: urn,
        resource: patient(batch, 'Oakenshade'),
        request: { method: 'POST', url: 'Patient', ifNoneExist: `identifier=${SYSTEM}|${batch}` },
      },
      { resource: stayOf(urn), request: { method: 'POST', url: 'Encounter' } },
    ],
  };
}

export const familiesOf = (resources) => resources.map((resource) => resource.name[0].family);
export const resourcesOf = (bundle) => (bundle.entry ?? []).map((entry) => entry.resource);
export const typesOf = (bundle) => resourcesOf(bundle).map((resource) => resource.resourceType).sort();

/** A signed JWT, https://hl7.org/fhir/smart-app-launch/client-confidential-asymmetric.html. */
export function assertionFor(tokenUrl) {
  const key = JSON.parse(readFileSync(given('CARERELAY_KEY'), 'utf8'));
  const client = given('CARERELAY_CLIENT');
  const part = (content) => Buffer.from(JSON.stringify(content)).toString('base64url');
  const claims = {
    iss: client,
    sub: client,
    aud: String(tokenUrl),
    exp: Math.floor(Date.now() / 1000) + 240,
    jti: randomUUID(),
  };
  const content = `${part({ alg: 'ES384', typ: 'JWT', kid: key.kid })}.${part(claims)}`;
  const signature = sign('sha384', Buffer.from(content), {
    key: createPrivateKey({ key, format: 'jwk' }),
    dsaEncoding: 'ieee-p1363',
  });
  return `${content}.${signature.toString('base64url')}`;
}

/** The answer of the token endpoint to such an assertion. */
export async function askForToken(tokenUrl) {
  const answer = await fetch(tokenUrl, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'client_credentials',
      scope: 'system/*.cruds',
      client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
      client_assertion: assertionFor(tokenUrl),
    }),
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}
