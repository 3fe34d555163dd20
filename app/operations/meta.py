"""$meta, $meta-add and $meta-delete: the profiles, tags and security labels of a resource.

https://hl7.org/fhir/R4/resource-operation-meta.html

Adding and deleting make a new version like any write, so that history shows who changed a label and when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from app.context import Context
from app.fhir import json as fhir_json, meta as labels
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.runtime import pace
from app.search.terms import unescape


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """The meta of one resource, or all profiles, tags and labels in use on a type or the server."""
    if invocation.resource_type is None or invocation.resource_id is None:
        types = SUPPORTED_TYPES if invocation.resource_type is None else [invocation.resource_type]
        return _answer(await _in_use(context, types))
    stored = await interactions.current(context, *invocation.instance)
    return _answer(stored.meta())


async def run_add(context: Context, invocation: Invocation) -> InteractionResult:
    """Add labels; one that the resource has already is not repeated."""
    return await _change(context, invocation, labels.add)


async def run_delete(context: Context, invocation: Invocation) -> InteractionResult:
    """Delete labels; one that the resource does not have is no error."""
    return await _change(context, invocation, labels.remove)


async def _change(
    context: Context,
    invocation: Invocation,
    change: Callable[[labels.Meta, labels.Meta], labels.Meta],
) -> InteractionResult:
    given = invocation.one("meta")

    async def apply(text: str) -> Resource:
        resource = await pace.aside(len(text), fhir_json.decode_in_parts, text)
        return {**resource, "meta": change(resource["meta"], given)}

    await interactions.patch(context, *invocation.instance, apply)
    stored = await interactions.current(context, *invocation.instance)
    headers = {
        "ETag": f'W/"{stored.version}"',
        "Content-Location": stored.address(context.base_url),
    }
    return replace(_answer(stored.meta()), headers=headers)


async def _in_use(context: Context, types: Iterable[str]) -> labels.Meta:
    """Every profile and label among the search terms of these types."""
    meta: labels.Meta = {}
    for name, code in (("profile", "_profile"), ("security", "_security"), ("tag", "_tag")):
        found: set[str] = set()
        for resource_type in types:
            found |= set(await context.store.terms(resource_type, f"{code}="))
        values = sorted(term.partition("=")[2] for term in found)
        if name == "profile":
            items: list[Any] = [unescape(value) for value in values if value]
        else:
            # Every coding is stored as `system|code` and as its bare code; the pair says it all.
            pairs = [value.split("|", 1) for value in values if "|" in value]
            items = [
                {key: unescape(part) for key, part in (("system", s), ("code", c)) if part}
                for s, c in pairs
            ]
        if items:
            meta[name] = items
    return meta


def _answer(meta: labels.Meta) -> InteractionResult:
    parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "return", "valueMeta": meta}],
    }
    return InteractionResult(200, text=fhir_json.encode(parameters))
