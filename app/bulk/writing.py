"""The lines of an export on their way into its files: gathered, compressed, and written with the place reached.

Pieces are runs of deflate blocks that do not know of each other (RFC 1951); between a head and a tail, which the row
tells, they are one gzip stream (RFC 1952), so they can be sent as they are.
"""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import AsyncIterator, Sequence, Set

from app.bulk.export_jobs import Jobs, Piece
from app.consent.judgement import patient_of
from app.consent.redisclosure import explanation, take_noted
from app.runtime.leases import Claim
from app.runtime.mongo import Document

PIECE_BYTES = 8 * 1024 * 1024
# Lines are written when there are so many bytes of them, or when so many seconds have passed.
_BYTES, _SECONDS = 2 * 1024 * 1024, 5.0
MOST_LINES = 100_000
# Consents of a file that its fetchers are told of: a header has no room for more.
_MOST_EXPLAINED = 10
_OUT = 256 * 1024
_LEVEL = 3
_GZIP_HEAD = bytes.fromhex("1f8b08000000000000ff")
_LAST_BLOCK = b"\x03\x00"

Place = list[object]


class Writer:
    """Writes for one export, whose row it keeps up to date."""

    def __init__(self, jobs: Jobs, claim: Claim[Document]) -> None:
        self._jobs = jobs
        self._claim = claim
        self._row = claim.row
        self._lines: list[bytes] = []
        self._patients: set[str] = set()
        self._errors: list[bytes] = []
        self._size = 0
        self._written = time.monotonic()

    def add(self, lines: Sequence[bytes], patients: Set[str]) -> None:
        """Lines, and the ids of the patients whose data they hold."""
        self._lines += lines
        self._patients |= patients
        self._size += sum(map(len, lines))

    def add_errors(self, outcomes: Sequence[bytes]) -> None:
        """Lines for the file of what could not be exported, as OperationOutcomes."""
        self._errors += outcomes

    @property
    def is_due(self) -> bool:
        return self._size >= _BYTES or time.monotonic() - self._written >= _SECONDS

    async def write(self, kind: str, resource_type: str, place: Place) -> None:
        """Put the lines into a file of this kind and type, with the place to go on from. Raises LostError."""
        files = [dict(each) for each in self._row["files"]]
        pieces: list[Piece] = []
        if self._lines:
            number = self._file(files, kind, resource_type)
            noted = take_noted()
            permits = [
                (patient_of(each).partition("/")[2], f"Consent/{each['id']}") for each in noted
            ]
            of_whom = sorted(self._patients)
            pieces += await _pieces(number, files[number], self._lines, of_whom, permits)
            if explained := [*files[number].get("consents", ()), *map(explanation, noted)]:
                files[number]["consents"] = explained[:_MOST_EXPLAINED]
        if self._errors:
            number = self._file(files, "error", "OperationOutcome")
            pieces += await _pieces(number, files[number], self._errors, [])
        progress = {
            "files": files,
            "lines": self._row["lines"] + len(self._lines),
            "place": place,
        }
        await self._jobs.append(self._claim, pieces, progress)
        self._row.update(progress)
        self._lines, self._patients, self._errors = [], set(), []
        self._size, self._written = 0, time.monotonic()

    @staticmethod
    def _file(files: list[Document], kind: str, resource_type: str) -> int:
        """The number of the file to go on with, a new one where the last is of something else or full."""
        last = files[-1] if files else None
        is_same = last is not None and (last["kind"], last["type"]) == (kind, resource_type)
        if last is None or not is_same or last["lines"] >= MOST_LINES:
            new = {"lines": 0, "pieces": 0, "crc": 0, "size": 0}
            files.append({"kind": kind, "type": resource_type, **new})
        return len(files) - 1


async def _pieces(
    number: int,
    file: Document,
    lines: Sequence[bytes],
    patients: Sequence[str],
    permits: Sequence[tuple[str, str]] = (),
) -> list[Piece]:
    """The pieces that a file gets with these lines; `file` is its entry in the row, which is brought up to date."""
    data, file["crc"], file["size"] = await asyncio.to_thread(
        _compressed, lines, file["crc"], file["size"]
    )
    pieces: list[Piece] = []
    for start in range(0, len(data), PIECE_BYTES):
        some = data[start : start + PIECE_BYTES]
        told = ((), ()) if pieces else (patients, permits)
        pieces.append(Piece(number, file["pieces"], some, *told))
        file["pieces"] += 1
    file["lines"] += len(lines)
    return pieces


def _compressed(lines: Sequence[bytes], crc: int, size: int) -> tuple[bytes, int, int]:
    """The lines compressed, with the checksum and the size of the file with them."""
    text = b"\n".join([*lines, b""])  # in one piece: zlib lets other threads run meanwhile
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    data = compressor.compress(text) + compressor.flush(zlib.Z_FULL_FLUSH)
    return data, zlib.crc32(text, crc), size + len(text)


async def gzipped(pieces: AsyncIterator[bytes], file: Document) -> AsyncIterator[bytes]:
    """A file as gzip; `file` is its entry in the row."""
    yield _GZIP_HEAD
    async for piece in pieces:
        yield piece
    yield _LAST_BLOCK + struct.pack("<II", file["crc"], file["size"] % 2**32)


async def unpacked(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The text of a file, a little at a time."""
    reader = zlib.decompressobj(-zlib.MAX_WBITS)
    async for piece in pieces:
        data = piece
        while data:
            text = reader.decompress(data, _OUT)
            data = reader.unconsumed_tail
            if text:
                yield text
    if rest := reader.flush():
        yield rest
