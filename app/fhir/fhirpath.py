"""The part of FHIRPath that R4's SearchParameters and invariants use, as a tree.

http://hl7.org/fhirpath/N1 - paths, unions, indexers, operators and function calls. What an expression means for JSON is
decided by who compiles it: app/search/expression.py, app/fhir/validation/invariant_compiler.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


class NotCompilableError(Exception):
    """The expression uses what this server cannot compile; the text says what."""


@dataclass(frozen=True, slots=True)
class Name:
    """A member: of `base`, or of the focus where there is none."""

    base: Node | None
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    base: Node | None
    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Index:
    base: Node
    index: int


@dataclass(frozen=True, slots=True)
class FhirPathOperation:
    """One of `_LEVELS`, such as `|`, `=`, `and` or `is`."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Literal:
    value: str | bool | int


@dataclass(frozen=True, slots=True)
class This:
    """`$this`."""


@dataclass(frozen=True, slots=True)
class Variable:
    """`%resource`, `%context` and the like, by the name alone."""

    name: str


Node = Name | Call | Index | FhirPathOperation | Literal | This | Variable

_WORD = re.compile(
    r"\s*(?:(?P<string>'(?:[^'\\]|\\.)*')|(?P<number>\d+)|(?P<name>[A-Za-z_$][A-Za-z0-9_]*|`[^`]+`)"
    r"|(?P<variable>%[A-Za-z]+)|(?P<symbol>!=|<=|>=|[().,|=\[\]<>+&]))"
)
# Loosest first; every level is left-associative.
_LEVELS = (
    ("implies",),
    ("or", "xor"),
    ("and",),
    ("in", "contains"),
    ("=", "!="),
    ("<", "<=", ">", ">="),
    ("|",),
    ("is", "as"),
    ("+", "&"),
)


def parse(expression: str) -> Node:
    """The tree of an expression. Raises NotCompilableError on what the subset lacks."""
    parser = _Parser(_words(expression))
    node = parser.operation(0)
    if parser.word is not None:
        raise NotCompilableError(f"unexpected {parser.word!r}")
    return node


def _words(expression: str) -> list[str]:
    words: list[str] = []
    position, text = 0, expression.rstrip()
    while position < len(text):
        found = _WORD.match(text, position)
        if found is None:
            raise NotCompilableError(f"unexpected character {text[position]!r}")
        words.append(found.group().strip())
        position = found.end()
    return words


class _Parser:
    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._position = 0

    @property
    def word(self) -> str | None:
        return self._words[self._position] if self._position < len(self._words) else None

    def _next(self) -> str:
        word = self.word
        if word is None:
            raise NotCompilableError("the expression ends too early")
        self._position += 1
        return word

    def _expect(self, symbol: str) -> None:
        if (word := self._next()) != symbol:
            raise NotCompilableError(f"expected {symbol!r}, not {word!r}")

    def operation(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._path()
        node = self.operation(level + 1)
        while (word := self.word) is not None and word in _LEVELS[level]:
            node = FhirPathOperation(self._next(), node, self.operation(level + 1))
        return node

    def _path(self) -> Node:
        node = self._first()
        while self.word in (".", "["):
            if self._next() == ".":
                node = self._member(node, self._next())
            else:
                node = Index(node, int(self._next()))
                self._expect("]")
        return node

    def _first(self) -> Node:
        word = self._next()
        if word == "(":
            node = self.operation(0)
            self._expect(")")
            return node
        if word.startswith("'"):
            return Literal(re.sub(r"\\(.)", r"\1", word[1:-1]))
        if word.isdigit():
            return Literal(int(word))
        if word in ("true", "false"):
            return Literal(word == "true")
        if word == "$this":
            return This()
        if word.startswith("%"):
            return Variable(word[1:])
        return self._member(None, word)

    def _member(self, base: Node | None, name: str) -> Node:
        if not re.match(r"[A-Za-z_`]", name):
            raise NotCompilableError(f"unexpected {name!r}")
        if self.word != "(":
            return Name(base, name.strip("`"))
        self._next()
        arguments: list[Node] = []
        while self.word != ")":
            arguments.append(self.operation(0))
            if self.word == ",":
                self._next()
        self._next()
        return Call(base, name, tuple(arguments))
