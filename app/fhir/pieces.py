"""A decoded value in pieces, each short enough to be decoded without keeping anybody waiting.

One process cuts, another one joins: to decode 8 MiB in one go holds Python's interpreter for a third of a second, in
whatever thread it is done, and objects that are handed over take as long to unpickle
(docs/decisions/0027-large-bodies-in-a-process-of-their-own.md). A piece is an instruction and the JSON it is about:

    value      the whole value
    object     begins an object, `list` begins a list; `end` ends what was begun last
    members    several small members of the object that is open, as an object
    member     the name of the member that the next pieces are
    items      several small items of the list that is open, as a list

What is joined is what was cut, to the digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import msgspec

from app.fhir import json as fhir_json

Piece = tuple[bytes, bytes]

VALUE, OBJECT, LIST, END = b"v", b"o", b"l", b"e"
MEMBERS, MEMBER, ITEMS = b"m", b"n", b"i"
# Decoding so much takes less than a millisecond.
PIECE_BYTES = 32 * 1024


def cut(value: Any) -> Iterator[Piece]:
    """The pieces of a decoded value, in order."""
    yield from _cut(exact(value))


def _cut(value: Any) -> Iterator[Piece]:
    text = fhir_json.encode(value)
    if len(text) <= PIECE_BYTES or not isinstance(value, dict | list):
        yield VALUE, text
    elif isinstance(value, dict):
        yield OBJECT, b""
        yield from _cut_object(value)
        yield END, b""
    else:
        yield LIST, b""
        yield from _cut_list(value)
        yield END, b""


def _cut_object(value: dict[str, Any]) -> Iterator[Piece]:
    small: dict[str, Any] = {}
    size = 0
    for name, child in value.items():
        length = len(name) + len(fhir_json.encode(child))
        if small and size + length > PIECE_BYTES:
            yield MEMBERS, fhir_json.encode(small)
            small, size = {}, 0
        if length > PIECE_BYTES:
            yield MEMBER, name.encode()
            yield from _cut(child)
        else:
            small[name] = child
            size += length
    if small:
        yield MEMBERS, fhir_json.encode(small)


def _cut_list(value: list[Any]) -> Iterator[Piece]:
    small: list[bytes] = []
    size = 0
    for child in value:
        text = fhir_json.encode(child)
        if small and size + len(text) > PIECE_BYTES:
            yield ITEMS, b"[" + b",".join(small) + b"]"
            small, size = [], 0
        if len(text) > PIECE_BYTES:
            yield from _cut(child)
        else:
            small.append(text)
            size += len(text)
    if small:
        yield ITEMS, b"[" + b",".join(small) + b"]"


def exact(value: Any) -> Any:
    """The value so that encoding does not change its kind: a decimal written as `1.00e2` would become the integer 100.

    That is what it is stored as, but it is judged as the decimal that was sent.
    """
    return _marked(value) if _has_whole_decimal(value) else value


def _has_whole_decimal(value: Any) -> bool:
    stack = [value]
    while stack:
        each = stack.pop()
        if type(each) is dict:
            stack.extend(each.values())
        elif type(each) is list:
            stack.extend(each)
        elif type(each) is Decimal and each.as_tuple().exponent == 0:
            return True
    return False


def _marked(value: Any) -> Any:
    if type(value) is dict:
        return {name: _marked(child) for name, child in value.items()}
    if type(value) is list:
        return [_marked(child) for child in value]
    if type(value) is Decimal and value.as_tuple().exponent == 0:
        return msgspec.Raw(f"{value}e0".encode())
    return value


class Joining:
    """Makes one value of pieces as they come."""

    def __init__(self) -> None:
        self._open: list[Any] = []
        self._names: list[str] = []
        self.value: Any = None

    def add(self, piece: Piece) -> None:
        kind, text = piece
        if kind == MEMBERS:
            self._open[-1].update(fhir_json.decode_stored(text))
        elif kind == ITEMS:
            self._open[-1].extend(fhir_json.decode_stored(text))
        elif kind == MEMBER:
            self._names.append(text.decode())
        elif kind == END:
            self._open.pop()
        elif kind == VALUE:
            self._put(fhir_json.decode_stored(text))
        else:
            container: Any = {} if kind == OBJECT else []
            self._put(container)
            self._open.append(container)

    def _put(self, value: Any) -> None:
        if not self._open:
            self.value = value
        elif isinstance(self._open[-1], dict):
            self._open[-1][self._names.pop()] = value
        else:
            self._open[-1].append(value)
