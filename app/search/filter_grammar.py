"""The grammar of `_filter` as a tree. https://hl7.org/fhir/R4/search_filter.html

`and` binds closer than `or`; `not` stands before parentheses only. A value is a JSON string, or all up to white space
or a closing bracket. Paths may have criteria (`related[type eq x].target`) and name types (`subject:Patient.name`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from app.errors import BadRequest
from app.search.cost import NEGATION, PARAMETER, Budget

OPERATORS = frozenset(
    [
        "eq",
        "ne",
        "co",
        "sw",
        "ew",
        "gt",
        "lt",
        "ge",
        "le",
        "ap",
        "sa",
        "eb",
        "pr",
        "po",
        "ss",
        "sb",
        "in",
        "ni",
        "re",
    ]
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?::[A-Za-z0-9_-]+)*")
_WORD = re.compile(r"[a-z]+")
_TOKEN = re.compile(r"[^\s\])]+")
_SPACE = re.compile(r"\s*")
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Step:
    """One name of a path, and what must hold of what it leads to."""

    name: str
    criterion: Node | None = None


@dataclass(frozen=True, slots=True)
class Assertion:
    """`path operator value`; a value that was `quoted` is taken as it stands."""

    path: tuple[Step, ...]
    operator: str
    value: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Negation:
    node: Node


@dataclass(frozen=True, slots=True)
class Connection:
    """`and` or `or` of two or more."""

    word: str
    nodes: tuple[Node, ...]


Node = Assertion | Negation | Connection


def parse(text: str, budget: Budget) -> Node:
    """The tree of a filter. Raises BadRequest saying where it stops making sense, Unprocessable for too much of it."""
    reader = _Reader(text, budget)
    node = reader.filter(0)
    if reader.rest():
        raise reader.expected("'and', 'or' or the end")
    return node


class _Reader:
    def __init__(self, text: str, budget: Budget) -> None:
        self._text = text
        self._budget = budget
        self._at = 0

    def expected(self, what: str) -> BadRequest:
        return BadRequest(
            f"The filter is malformed at character {self._at + 1}; expected {what}",
            code="value",
            expression="http._filter",
        )

    def rest(self) -> str:
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
        return self._text[self._at : self._at + 1]

    def filter(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise BadRequest(
                "The filter is nested too deeply", code="too-costly", expression="http._filter"
            )
        return self._connected("or", depth)

    def _connected(self, word: str, depth: int) -> Node:
        def read() -> Node:
            return self._connected("and", depth) if word == "or" else self._single(depth)

        nodes = [read()]
        while self._take_word(word):
            nodes.append(read())
        return nodes[0] if len(nodes) == 1 else Connection(word, tuple(nodes))

    def _single(self, depth: int) -> Node:
        if self.rest() == "(":
            return self._bracketed("(", ")", depth)
        before = self._at
        if self._take_word("not"):
            if self.rest() == "(":
                self._budget.spend(NEGATION, "_filter")
                return Negation(self._bracketed("(", ")", depth))
            self._at = before
        return self._test(depth)

    def _bracketed(self, opening: str, closing: str, depth: int) -> Node:
        self._at += len(opening)
        node = self.filter(depth + 1)
        if self.rest() != closing:
            raise self.expected(f"'{closing}'")
        self._at += 1
        return node

    def _test(self, depth: int) -> Assertion:
        self._budget.spend(PARAMETER, "_filter")
        path = self._path(depth)
        self.rest()
        operator = self._match(_WORD)
        if operator not in OPERATORS:
            raise self.expected("an operator such as eq, co or ge")
        self._at += len(operator)
        if self.rest() == '"':
            value = self._string()
            return Assertion(path, operator, value, quoted=True)
        value = self._match(_TOKEN)
        if not value:
            raise self.expected("a value")
        self._at += len(value)
        return Assertion(path, operator, value, quoted=False)

    def _path(self, depth: int) -> tuple[Step, ...]:
        steps: list[Step] = []
        while True:
            self.rest()
            name = self._match(_NAME)
            if not name:
                raise self.expected("the name of a search parameter")
            self._at += len(name)
            following = self._text[self._at : self._at + 1]
            criterion = self._bracketed("[", "]", depth) if following == "[" else None
            steps.append(Step(name, criterion))
            if self._text[self._at : self._at + 1] != ".":
                break
            self._at += 1
        if steps[-1].criterion is not None:
            raise self.expected("'.' and what is meant of it")
        return tuple(steps)

    def _string(self) -> str:
        try:
            value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
        except ValueError:
            raise self.expected("the end of the string") from None
        return str(value)

    def _take_word(self, word: str) -> bool:
        self.rest()
        if self._match(_WORD) != word:
            return False
        following = self._text[self._at + len(word) : self._at + len(word) + 1]
        if following and not (following.isspace() or following == "("):
            return False
        self._at += len(word)
        return True

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        return found.group() if found else ""
