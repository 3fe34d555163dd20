"""The files of a load, plain or compressed, and the documents in them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".json", ".ndjson")
OPENERS: dict[str, Callable[[Path], bytes]] = {
    ".gz": lambda path: gzip.decompress(path.read_bytes()),
    ".bz2": lambda path: bz2.decompress(path.read_bytes()),
}


class LoadError(Exception):
    """Nothing can be loaded: a path that does not exist, a server that does not answer."""


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON text: a file, or a line of NDJSON with its `number`; `repeats` counts the equal ones before it."""

    file: Path
    number: int
    text: bytes
    is_line: bool = False
    repeats: int = 0

    @property
    def label(self) -> str:
        return f"line {self.number}" if self.is_line else "the file"

    @property
    def digest(self) -> str:
        """The same for the same content, wherever and whenever it is loaded."""
        digest = hashlib.sha256(self.text).hexdigest()
        return f"{digest}.{self.repeats}" if self.repeats else digest


class FilesUnderWay:
    """Tells when all of a file has its answer."""

    def __init__(self, on_done: Callable[[Path], None]) -> None:
        self._on_done = on_done
        self._open: Counter[Path] = Counter()

    def begin(self, file: Path) -> None:
        """A part of the file is under way, or waits: its reading, or a Bundle."""
        self._open[file] += 1

    def end(self, file: Path) -> None:
        self._open[file] -= 1
        if not self._open[file]:
            del self._open[file]
            self._on_done(file)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files to load, in the order of `paths` and by name within directories.

    A directory gives its .json and .ndjson files, compressed or not; a named file is always taken.
    Raises LoadError where a path does not exist or nothing is found.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if _kind(file) in SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise LoadError(f"{path} does not exist")
    if not files:
        raise LoadError("There is no .json or .ndjson file to load")
    return files


def _kind(file: Path) -> str:
    """The suffix below that of a compression."""
    return Path(file.stem).suffix if file.suffix in OPENERS else file.suffix


def content_of(file: Path) -> bytes:
    """The file, unpacked. Raises OSError, EOFError or ValueError."""
    return OPENERS.get(file.suffix, Path.read_bytes)(file)


def documents(file: Path, content: bytes) -> Iterator[Document]:
    """The documents in a file: one, or one a line in NDJSON."""
    if _kind(file) != ".ndjson":
        yield Document(file, 1, content)
        return
    seen: Counter[int] = Counter()
    number = 0
    for line in content.splitlines():
        if line.strip():
            number += 1
            key = hash(line)
            yield Document(file, number, line, True, seen[key])
            seen[key] += 1
