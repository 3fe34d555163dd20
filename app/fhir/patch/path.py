"""The part of FHIRPath that points at elements of one resource; it finds places in it rather than values.

http://hl7.org/fhirpath/N1/ and https://hl7.org/fhir/R4/fhirpatch.html: names, indexers, `where`, `first`, `last`,
`ofType`, `as`, `extension`, `resolve` of contained resources, and in criteria `and`, `or`, `=`, `!=`, `is`, `exists`,
`empty`, `not`, `count`, `startsWith`, `endsWith`, `contains`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from app.fhir.patch import path_steps as steps_of
from app.fhir.patch.elements import Node
from app.fhir.patch.path_steps import Child, Step

MAX_LENGTH = 1000
MAX_DEPTH = 20

_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|`(?P<quoted>[^`\\]+)`|(?P<number>[0-9]{1,9}(?:\.[0-9]{1,9})?)"
    r"|'(?P<string>(?:[^'\\]|\\['\"`\\/nrtf])*)'|@(?P<date>[0-9T:.+\-Z]+)|(?P<symbol>!=|[.\[\]()=,]|\$this))"
)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f"}


class PathError(ValueError):
    """The text is not a path, or uses a part of FHIRPath that does not point at elements."""


@dataclass(frozen=True, slots=True)
class PatchPath:
    """A path that has been read; `text` is how it was written."""

    text: str
    steps: tuple[Step, ...]

    def locate(self, resource: Node) -> list[Node]:
        """The elements it points at. Raises MismatchError."""
        return [item for item in steps_of.follow(self.steps, [resource]) if isinstance(item, Node)]

    def collection(self, resource: Node) -> tuple[list[Node], str] | None:
        """The elements around a list and its name, or None where the path does not end in a name."""
        if not self.steps or not isinstance(self.steps[-1], Child):
            return None
        name = self.steps[-1].name
        parents = [
            item for item in steps_of.follow(self.steps[:-1], [resource]) if isinstance(item, Node)
        ]
        if parents:
            self.steps[-1](parents)  # names the element where the type has none of that name
        return parents, name


def parse(text: str) -> PatchPath:
    """Raises PathError."""
    if len(text) > MAX_LENGTH:
        raise PathError(f"is longer than {MAX_LENGTH} characters")
    parser = _Parser(text)
    steps = parser.path()
    parser.expect_end()
    return PatchPath(text, steps)


class _Parser:
    """Recursive descent: or, and, equality, is/as, path."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._position = 0
        self._kind = self._token = ""
        self._next()

    def _next(self) -> None:
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            if self._text[self._position :].strip():
                raise PathError(f"cannot be read from character {self._position + 1}")
            self._kind, self._token = "end", ""
            return
        self._kind, self._token = str(match.lastgroup), match[str(match.lastgroup)]
        self._position = match.end()

    def _take(self, *wanted: str) -> str | None:
        """The token, if it is one of these words or symbols."""
        if self._kind in ("name", "symbol") and self._token in wanted:
            token = self._token
            self._next()
            return token
        return None

    def _expect(self, symbol: str) -> None:
        if self._take(symbol) is None:
            raise PathError(f"needs {symbol} before character {self._position + 1}")

    def expect_end(self) -> None:
        if self._kind != "end":
            raise PathError(f"ends before character {self._position}")

    def expression(self) -> Step:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PathError(f"nests deeper than {MAX_DEPTH} levels")
        left = self._conjunction()
        while self._take("or"):
            left = steps_of.any_of(left, self._conjunction())
        self._depth -= 1
        return left

    def _conjunction(self) -> Step:
        left = self._equality()
        while self._take("and"):
            left = steps_of.all_of(left, self._equality())
        return left

    def _equality(self) -> Step:
        left = self._typed()
        operator = self._take("=", "!=")
        return left if operator is None else steps_of.equal(left, self._typed(), operator == "=")

    def _typed(self) -> Step:
        steps = self.path()
        if self._take("is"):
            of_type = steps_of.of_type(self._type_name())
            return lambda focus: [bool(of_type(steps_of.follow(steps, focus)))]
        return lambda focus: steps_of.follow(steps, focus)

    def path(self) -> tuple[Step, ...]:
        steps = [self._first()]
        while True:
            if self._take("."):
                steps.append(self._invocation())
            elif self._take("["):
                steps.append(self._indexer())
            elif self._take("as"):
                steps.append(steps_of.of_type(self._type_name()))
            else:
                return tuple(steps)

    def _first(self) -> Step:
        kind, text = self._kind, self._token
        if self._take("("):
            inside = self.expression()
            self._expect(")")
            return inside
        if self._take("$this"):
            return steps_of.itself
        if kind == "name" and text in ("true", "false"):
            self._next()
            return steps_of.literal(text == "true")
        if kind in ("number", "string", "date"):
            self._next()
            return steps_of.literal(Decimal(text) if kind == "number" else _unescaped(text))
        if kind == "name" and text[0].isupper():
            self._next()
            return steps_of.start(text)
        return self._invocation()

    def _invocation(self) -> Step:
        kind, name = self._kind, self._token
        if kind not in ("name", "quoted"):
            raise PathError(f"needs a name before character {self._position + 1}")
        self._next()
        if kind == "quoted" or not self._take("("):
            return Child(name)
        step = self._function(name)
        self._expect(")")
        return step

    def _function(self, name: str) -> Step:
        if name == "resolve" and self._depth:
            # Following references for every element of a list could take very long.
            raise PathError("cannot use resolve() inside another expression")
        if name in steps_of.PLAIN and (self._kind, self._token) == ("symbol", ")"):
            return steps_of.PLAIN[name]
        if name in ("where", "exists"):
            filtered = steps_of.where(self.expression())
            return filtered if name == "where" else lambda focus: [bool(filtered(focus))]
        if name in steps_of.TYPED:
            return steps_of.TYPED[name](self._type_name())
        if name in steps_of.TEXT and self._kind == "string":
            text = _unescaped(self._token)
            self._next()
            return steps_of.TEXT[name](text)
        raise PathError(f"has a function that cannot be used here: {name[:64]}")

    def _indexer(self) -> Step:
        if self._kind != "number" or "." in self._token:
            raise PathError(f"needs a whole number before character {self._position + 1}")
        position = int(self._token)
        self._next()
        self._expect("]")
        return steps_of.at(position)

    def _type_name(self) -> str:
        if self._kind == "name" and self._token in ("FHIR", "System"):
            self._next()
            self._expect(".")
        if self._kind != "name":
            raise PathError(f"needs a type before character {self._position + 1}")
        name = self._token
        self._next()
        return name


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text)
