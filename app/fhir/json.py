"""FHIR's JSON, in and out: strict, fast, and without losing a digit.

https://hl7.org/fhir/R4/json.html
Decimals are `decimal.Decimal` and integers `int`. `100` stays an integer and `1.50` keeps its zero; only the
spelling of an exponent may change (`1.00e2` comes back as `100`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from app.errors import BadRequest

Resource = dict[str, Any]

# Objects and arrays inside one another. Real resources stay under 40; the code that walks a resource
# recurses, so this is also what keeps it far from Python's own limit.
MAX_DEPTH = 128

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NULL_CHARACTER = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
_POSITION = re.compile(r"^(?:JSON is malformed: )?(?P<reason>[^(]+?)\s*\(byte (?P<byte>\d+)\)$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_decoder = msgspec.json.Decoder(float_hook=Decimal)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_OPEN_OBJECT = ord("{")
_PART_BYTES = 32 * 1024
_encoder = msgspec.json.Encoder(decimal_format="number")


def decode(body: bytes) -> Resource:
    """The JSON object in a request body.

    Raises BadRequest(code="structure") where it is malformed, no object, not UTF-8, nested deeper than
    `MAX_DEPTH`, or has a key twice, a lone surrogate or a null character. What was sent is never echoed.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        resource = _decoder.decode(body)
        encoded = _encoder.encode(resource)
    except (ValueError, InvalidOperation, RecursionError) as error:
        raise _malformed(error, body) from None
    if not isinstance(resource, dict):
        raise BadRequest("The body must be a JSON object", code="structure")
    # Cheap first: nothing nests deeper than there are objects and arrays.
    if encoded.count(b"{") + encoded.count(b"[") > MAX_DEPTH and _depth(resource) > MAX_DEPTH:
        raise _too_deep()
    if b"\\u0000" in encoded and _NULL_CHARACTER.search(encoded):
        raise BadRequest("A string has a null character (U+0000)", code="structure")
    if _may_repeat_a_key(body, encoded):
        _refuse_repeated_keys(body)
    return resource


def decode_stored(text: str | bytes) -> Resource:
    """Decode what `encode` wrote: no checks, a fresh value each time."""
    resource: Resource = _decoder.decode(text)
    return resource


def decode_in_parts(text: str | bytes) -> Any:
    """What `decode_stored` returns, made of small parts: for a thread, in which one call for it all would hold the
    interpreter for a third of a second.
    """
    return _in_parts(memoryview(text.encode() if isinstance(text, str) else text))


def _in_parts(raw: memoryview) -> Any:
    if len(raw) <= _PART_BYTES or raw[0] not in b"{[":
        return _decoder.decode(raw)
    if raw[0] == _OPEN_OBJECT:
        return {name: _in_parts(memoryview(part)) for name, part in _members.decode(raw).items()}
    return [_in_parts(memoryview(part)) for part in _items.decode(raw)]


def encode(resource: Resource) -> bytes:
    """Compact JSON text; decimals are written as numbers with the digits they came with."""
    return _encoder.encode(resource)


def _malformed(error: Exception, body: bytes) -> BadRequest:
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, UnicodeDecodeError):
        # The decoder counts from the start of the string it was in; people want the place in the body.
        try:
            body.decode()
        except UnicodeDecodeError as whole:
            return BadRequest(f"Not UTF-8 at byte {whole.start}", code="structure")
    if isinstance(error, (InvalidOperation, msgspec.ValidationError)):
        return BadRequest("A number is out of range", code="structure")
    found = _POSITION.match(str(error))
    if found:
        reason, position = found["reason"], found["byte"]
        return BadRequest(f"Malformed JSON at byte {position}: {reason}", code="structure")
    return BadRequest(f"Malformed JSON: it ends too early, at byte {len(body)}", code="structure")


def _too_deep() -> BadRequest:
    return BadRequest(f"Nested deeper than {MAX_DEPTH} levels", code="structure")


def _depth(value: Any) -> int:
    """How deeply objects and arrays nest, counted level by level rather than by recursion."""
    depth = 0
    level = [value]
    while level:
        depth += 1
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
    return depth


def _may_repeat_a_key(body: bytes, encoded: bytes) -> bool:
    """Whether a key might occur twice in one object; False is certain.

    Of two equal keys the decoder keeps one, so the text encoded again has fewer colons than the body: one per
    member, and those inside strings, which are the same in both unless the body escapes one.
    """
    if b"\\u003" in body and b"\\u003a" in body.lower():
        return True
    return body.count(b":") != encoded.count(b":")


def _refuse_repeated_keys(body: bytes) -> None:
    repeated: list[tuple[Any, str]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                repeated.append((found, key))
            found[key] = value
        return found

    # Numbers stay text: only the keys matter here.
    root = json.loads(body, object_pairs_hook=collect, parse_int=str, parse_float=str)
    if not repeated:
        return
    # An object that a repeated key replaced is no longer in the tree; the outermost one always is.
    for path, container in _objects(root, _root_name(root)):
        for owner, key in repeated:
            if owner is container:
                path = f"{path}.{key}" if _NAME.fullmatch(key) else path
                raise BadRequest(
                    f"A key occurs twice in one object: {path}", code="structure", expression=path
                )


def _root_name(root: Any) -> str:
    name = root.get("resourceType")
    return name if isinstance(name, str) and _NAME.fullmatch(name) else "Resource"


def _objects(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every object of a decoded value with its FHIRPath location, parents first."""
    if isinstance(value, dict):
        yield path, value
        for key, child in value.items():
            yield from _objects(child, f"{path}.{key}" if _NAME.fullmatch(key) else path)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _objects(child, f"{path}[{index}]")
