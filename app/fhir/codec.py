"""The work on a body that takes long and goes without a database: decoding, patching, validating, rendering.

Each is a task with a name, parameters and bytes, and what comes of it are pieces (app/fhir/pieces.py) or bytes, so that
a process of its own can do it as well as the one that was asked (app/runtime/codec_process.py). Both come to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from app.errors import Issue
from app.fhir import formats, json as fhir_json, pieces, shape as shapes
from app.fhir.element_budget import check_cost
from app.fhir.json import Resource
from app.fhir.patch.patch_formats import patch_of
from app.fhir.pieces import Piece
from app.fhir.validation import check, models

# What bytes come in, where they are no pieces.
BYTES = b"b"
_BYTES_AT_ONCE = 256 * 1024


def decode(body: bytes, *, content_type: str, most: int) -> Iterator[Piece]:
    """A resource in the format that its Content-Type names. Raises as `formats.decode`, and Unprocessable."""
    media_type = formats.check(content_type)
    check_cost(body, media_type, most)
    return pieces.cut(formats.decode(content_type, body))


def read_patch(body: bytes, *, media_type: str, most: int) -> Iterator[Piece]:
    """Nothing; raises where the body is no patch of this media type."""
    check_cost(body, media_type, most)
    patch_of(media_type, body)
    return iter(())


def apply_patch(body: bytes, text: bytes, *, media_type: str) -> Iterator[Piece]:
    """The patched resource. Raises what the patch raises."""
    return pieces.cut(patch_of(media_type, body)(fhir_json.decode_stored(text)))


def validate(text: bytes, *, with_models: bool) -> Iterator[Piece]:
    """The issues that the judges have with a resource, a list of objects."""
    found = judge(fhir_json.decode_stored(text), with_models=with_models)
    return pieces.cut([issue.to_json() for issue in found])


def judge(resource: Resource, *, with_models: bool) -> list[Issue]:
    """What R4's definitions say of a resource and, where that is no error, what the R4B models say."""
    issues = check(resource)
    if with_models and not any(issue.severity in ("fatal", "error") for issue in issues):
        issues += models.model_issues(resource)
    return issues


def render(text: bytes, *, shape: Mapping[str, Any], is_result: bool) -> Iterator[Piece]:
    """An answer's JSON in the shape that was asked for."""
    rendered = shapes.AnswerShape(**shape).render(text, is_result=is_result)
    for start in range(0, len(rendered), _BYTES_AT_ONCE):
        yield BYTES, rendered[start : start + _BYTES_AT_ONCE]


TASKS: Mapping[str, Callable[..., Iterator[Piece]]] = {
    each.__name__: each for each in (decode, read_patch, apply_patch, validate, render)
}


def run(name: str, parameters: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Piece]:
    """What comes of a task, piece by piece. Raises FhirError for what a client did wrong."""
    return TASKS[name](*blobs, **parameters)
