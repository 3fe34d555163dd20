"""Patches: a function from a resource to a new resource, read from the request's body.

https://hl7.org/fhir/R4/http.html#patch
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import jsonpatch
import jsonpointer
import msgspec

from app.errors import BadRequest, Unprocessable
from app.fhir import json as fhir_json
from app.fhir.json import Resource

Patch = Callable[[Resource], Resource]

JSON_PATCH = "application/json-patch+json"
# What all copies of one patch may add, as JSON: sixty of them could otherwise double a resource sixty times.
MAX_COPIED_BYTES = 1024 * 1024


def json_patch(body: bytes) -> Patch:
    """RFC 6902. Raises BadRequest for what is no patch; applying raises Unprocessable naming the path."""
    try:
        operations = msgspec.json.Decoder(float_hook=Decimal).decode(body)
    except (ValueError, InvalidOperation, RecursionError):
        raise BadRequest("The patch is not JSON", code="structure") from None
    if not isinstance(operations, list):
        raise BadRequest("A JSON Patch is an array of operations", code="structure")
    steps = [_read(index, operation) for index, operation in enumerate(operations)]

    def apply(resource: Resource) -> Resource:
        result: Any = resource
        copied = 0
        for operation, (where, step) in zip(operations, steps, strict=True):
            if operation["op"] == "copy":
                copied += _size(result, operation.get("from"))
                if copied > MAX_COPIED_BYTES:
                    raise Unprocessable(f"Copies too much: {where}", code="too-costly")
            result = _apply(where, step, result)
        if not isinstance(result, dict):
            raise Unprocessable("The patch leaves no resource")
        return fhir_json.decode(fhir_json.encode(result))  # its limits hold for results too

    return apply


def _read(index: int, operation: Any) -> tuple[str, jsonpatch.JsonPatch]:
    try:
        step = jsonpatch.JsonPatch([operation])
    except (
        jsonpatch.InvalidJsonPatch,
        jsonpointer.JsonPointerException,
        TypeError,
        AttributeError,
    ):
        raise BadRequest(
            f"Operation {index} is no JSON Patch operation", code="structure"
        ) from None
    return f"operation {index} ({operation['op']} at {operation['path']})", step


def _size(resource: Any, pointer: Any) -> int:
    """The bytes of JSON at a place; nothing where there is none, which the operation itself will tell."""
    try:
        return len(fhir_json.encode(jsonpointer.resolve_pointer(resource, pointer)))
    except (jsonpointer.JsonPointerException, TypeError, RecursionError):
        return 0


def _apply(where: str, step: jsonpatch.JsonPatch, resource: Any) -> Any:
    # The library's own messages quote the resource; they stay here.
    try:
        return step.apply(resource, in_place=True)
    except jsonpatch.JsonPatchTestFailed:
        raise Unprocessable(f"The test failed: {where}") from None
    except (
        jsonpatch.JsonPatchException,
        jsonpointer.JsonPointerException,
        TypeError,
        KeyError,
        RecursionError,
    ):
        raise Unprocessable(f"The resource has no such place: {where}") from None
