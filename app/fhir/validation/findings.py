"""Where a check is in a resource, and what it found there."""

from __future__ import annotations

from typing import Any

from app.errors import Issue

# A location as a chain: the place around it, the element's name, its index in a list. Made for every
# object on the way down, so it must cost next to nothing; only a finding turns it into text.
Where = tuple[Any, str, int | None]

MAX_ISSUES = 50
# Well formed, but breaking a rule; every other code makes the body something that is not FHIR.
RULE_CODES = frozenset({"code-invalid", "invariant"})
_SHOWN = 40


class Enough(Exception):
    """The check has found `MAX_ISSUES` and stops."""


class Findings:
    """Collects issues, with FHIRPath locations such as `Encounter.participant[0].type`.

    `resource` is the one that is being looked at, `root` the same or the one that contains it: FHIRPath's `%resource`
    and `%rootResource`. Where the body `is_malformed` an element may be anything, and invariants ask no further.
    """

    __slots__ = ("_contained", "errors", "is_malformed", "resource", "root", "warnings")

    def __init__(self) -> None:
        self.errors: list[Issue] = []
        self.warnings: list[Issue] = []
        self.is_malformed = False
        self.resource: Any = None
        self.root: Any = None
        self._contained: tuple[Any, dict[str, Any]] = (None, {})

    def contained(self) -> dict[str, Any]:
        """The types of the resources that the root contains, by id."""
        of, types = self._contained
        if of is not self.root:
            held = self.root.get("contained")
            resources = [each for each in held if type(each) is dict] if type(held) is list else []
            types = {
                each["id"]: each.get("resourceType")
                for each in resources
                if type(each.get("id")) is str
            }
            self._contained = (self.root, types)
        return types

    def add(self, where: Where, code: str, diagnostics: str) -> None:
        """Raises Enough after `MAX_ISSUES`."""
        if code not in RULE_CODES:
            self.is_malformed = True
        location = fhirpath(where)
        self.errors.append(Issue(code, f"{location}: {diagnostics}", (location,)))
        if len(self.errors) >= MAX_ISSUES:
            raise Enough

    def warn(self, where: Where, code: str, diagnostics: str) -> None:
        """Something doubtful that is no reason to refuse; past `MAX_ISSUES` it is dropped."""
        if len(self.warnings) < MAX_ISSUES:
            location = fhirpath(where)
            text = f"{location}: {diagnostics}"
            self.warnings.append(Issue(code, text, (location,), "warning"))


def fhirpath(where: Where) -> str:
    """The location as FHIRPath."""
    parts: list[str] = []
    here: Where | None = where
    while here is not None:
        parent, name, index = here
        parts.append(name if index is None else f"{name}[{index}]")
        here = parent
    return ".".join(reversed(parts))


def shown(value: str) -> str:
    """A value as a diagnostic may quote it: printable and short."""
    text = value if len(value) <= _SHOWN else value[:_SHOWN] + "..."
    return '"' + "".join(c if c.isprintable() else "?" for c in text) + '"'


def json_type(value: Any) -> str:
    """The JSON type of a decoded value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    return "a number"
