"""Whose words no log may repeat: those of people, of searches and of secrets, as the suite's own requests have them.

Nothing is planted by hand. Every request that goes through httpx, to the server or from it, is read for who is in it,
what is searched for and what opens doors; the people of `examples/` are known from the start. Lines are compared by
runs of whole words, punctuation aside: `Müller-O'Neil` is found in `name=müller o'neil;`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import msgspec

from app.fhir.definitions import EXAMPLES

_SOURCES = Path(__file__).parents[1] / "app"
_WORD = re.compile(r"[^\W_]+")
# The most words of one value that are looked for; longer ones are known by their beginning.
_LONGEST = 6
_SHORTEST = 4

_PEOPLE = frozenset({"Patient", "RelatedPerson", "Person"})
# Elements of people that say who they are, data types' elements included.
_TELLING = frozenset({"family", "given", "birthDate", "line", "city", "postalCode"})
_VALUED = frozenset({"identifier", "telecom"})
_WORDED = frozenset({"name", "address"})

# Parameters whose values are the specification's words, or logical ids, which a log may have.
_OPEN = re.compile(r"_(?:id|type|include|revinclude|elements|sort|profile)(?::\w+)?")
_REFERENCE = re.compile(r"(?:[a-z]+://.*/)?[A-Z][A-Za-z]+/[\w.-]+(?:/_history/\w+)?", re.ASCII)
_PREFIX = re.compile(r"(?:eq|ne|gt|lt|ge|le|sa|eb|ap)(?=\d)")
_SEPARATOR = re.compile(r"(?<!\\)[,|$]")

# What is a secret or a person's number wherever it is seen.
_PATTERNS = (
    re.compile(r"eyJ[\w-]{8,}"),
    re.compile(r"\bBearer\s+\S+", re.IGNORECASE),
    re.compile(r"\b\d{3}-\d{2}-\d{4}\b"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
)


class PrivateWords:
    """What has been heard so far, each value as its words in lower case."""

    def __init__(self) -> None:
        self._runs: set[tuple[str, ...]] = set()

    def hear(self, request: httpx.Request) -> None:
        """A request that is about to be sent, by whomever."""
        self._hear_query(request.url.query.decode("ascii", "replace"))
        self._hear_query(request.headers.get("if-none-exist", ""))
        for name in ("authorization", "cookie", "x-api-key"):
            for secret in request.headers.get(name, "").split():
                self._add(secret.rpartition("=")[2] if name == "cookie" else secret, least=8)
        try:
            content = request.content
        except httpx.RequestNotRead:
            return
        if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            self._hear_query(content.decode("utf-8", "replace"))
        elif any(each.encode() in content for each in (*_PEOPLE, "request", "criteria")):
            # It may be of another format, or not well formed.
            with suppress(msgspec.DecodeError, ValueError, RecursionError):
                self.hear_json(msgspec.json.decode(content))

    def hear_examples(self) -> None:
        for path in EXAMPLES.rglob("*.json"):
            self.hear_json(msgspec.json.decode(path.read_bytes()))

    def hear_json(self, value: Any) -> None:
        """The people in it, and the searches of a Bundle's entries and of criteria."""
        if isinstance(value, list):
            for each in value:
                self.hear_json(each)
        elif isinstance(value, dict):
            if str(value.get("resourceType")) in _PEOPLE:
                for text in _of_person(value):
                    self._add(text)
            for name in ("url", "ifNoneExist", "criteria"):
                if isinstance(query := value.get(name), str) and ":" not in query.partition("?")[0]:
                    self._hear_query(query if name == "ifNoneExist" else query.partition("?")[2])
            for each in value.values():
                self.hear_json(each)

    def _hear_query(self, query: str) -> None:
        for name, value in parse_qsl(query, errors="replace"):
            if _OPEN.fullmatch(name) or _REFERENCE.fullmatch(value):
                continue
            for part in (value, *_SEPARATOR.split(value)):
                self._add(_PREFIX.sub("", part))

    def _add(self, text: str, least: int = _SHORTEST) -> None:
        run = _words(text)[:_LONGEST]
        if sum(map(len, run)) >= least:
            self._runs.add(run)

    def found_in(self, line: str) -> list[str]:
        """What of it a line of a log has; words of the server's own sources are nobody's."""
        found = [match[0] for pattern in _PATTERNS if (match := pattern.search(line))]
        words = _words(line)
        for start in range(len(words)):
            for end in range(start + 1, min(start + _LONGEST, len(words)) + 1):
                run = words[start:end]
                if run in self._runs and not _is_ordinary(run):
                    found.append(" ".join(run))
        return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


def _of_person(value: Any, inside: str = "") -> Iterator[str]:
    """The texts of a Patient, RelatedPerson or Person that tell who it is."""
    children: Iterable[tuple[str, Any]]
    if isinstance(value, list):
        children = [(inside, each) for each in value]
    elif isinstance(value, dict):
        children = [
            (name, each)
            for name, each in value.items()
            if not (name == "value" and inside not in _VALUED)
            and not (name == "text" and inside not in _WORDED)
        ]
    else:
        if isinstance(value, str) and inside in _TELLING | {"value", "text"}:
            yield value
        return
    for name, child in children:
        yield from _of_person(child, name)


@cache
def _is_ordinary(run: tuple[str, ...]) -> bool:
    return f" {' '.join(run)} " in _said_by_the_server()


@cache
def _said_by_the_server() -> str:
    """All words of the server's sources, in order: what a log may have without anybody's data."""
    sources = (path.read_text("utf-8") for path in sorted(_SOURCES.rglob("*.py")))
    return f" {' '.join(word for source in sources for word in _words(source))} "
