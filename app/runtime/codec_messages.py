"""What the server and the process that works on large bodies say to each other.

process    READY, once
server     a line of JSON, the Task, and the bytes of its blobs
process    frames: a letter, four bytes of length and so many bytes. Those of the pieces come first; the last one
           is DONE, REFUSED with a Refusal, or FAILED with the places in the code
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from app import errors
from app.errors import FhirError, Issue

HEAD = struct.Struct("<cI")
READY = b"!"
DONE, REFUSED, FAILED = b"D", b"R", b"F"


class Task(msgspec.Struct, frozen=True):
    """A function of app/fhir/codec.py, its parameters and the sizes of its blobs."""

    name: str
    parameters: dict[str, Any]
    sizes: list[int]


class Refusal(msgspec.Struct, frozen=True):
    """A FhirError on its way from one process to the other."""

    kind: str
    issues: list[Issue]
    headers: dict[str, str]

    @classmethod
    def of(cls, error: FhirError) -> Refusal:
        return cls(type(error).__name__, list(error.issues), error.headers)

    def error(self) -> FhirError:
        kind: type[FhirError] = getattr(errors, self.kind)
        return kind(issues=self.issues, headers=self.headers)


def frame(kind: bytes, text: bytes) -> bytes:
    return HEAD.pack(kind, len(text)) + text
