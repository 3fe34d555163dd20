"""What an export was asked for: read from the parameters of `$export`, kept in the job's row, read back from it.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#query-parameters
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import parse_qsl

from app.context import Context
from app.errors import BadRequest, TooLarge
from app.fhir import definitions
from app.runtime.mongo import Document
from app.search import compartment, cost, query
from app.search.query import Query

Level = Literal["system", "patient", "group"]

FORMATS = frozenset({"application/fhir+ndjson", "application/ndjson", "ndjson"})
# In nobody's compartment. The resources of a Group's members refer to them, and without them tell less.
REFERRED = ("Location", "Medication", "Organization", "Practitioner", "PractitionerRole")
MOST_PATIENTS = 10_000
_PATIENT = re.compile(r"(?:Patient/)?([A-Za-z0-9\-.]{1,64})")
# A comma inside a query's values is not followed by the beginning of another query.
_NEXT_QUERY = re.compile(r",(?=[A-Z][A-Za-z]*\?)")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """`types` is empty for all that the level has, `patients` for all; `filters` are pairs of a type and a query."""

    level: Level
    group: str | None = None
    types: tuple[str, ...] = ()
    since: datetime | None = None
    elements: tuple[str, ...] = ()
    filters: tuple[tuple[str, str], ...] = ()
    patients: tuple[str, ...] = ()

    def document(self) -> Document:
        row = asdict(self)
        row["filters"] = [list(pair) for pair in self.filters]
        return row

    @classmethod
    def of(cls, row: Document) -> ExportRequest:
        return cls(
            row["level"],
            row["group"],
            tuple(row["types"]),
            row["since"],
            tuple(row["elements"]),
            tuple((kind, text) for kind, text in row["filters"]),
            tuple(row["patients"]),
        )

    def elements_of(self, resource_type: str) -> list[str]:
        """The elements wanted of a type; none where only other types are to be cut down."""
        named = [each.partition(".") for each in self.elements]
        return [rest or own for own, dot, rest in named if not dot or own == resource_type]


def types_at(level: Level) -> Sequence[str]:
    """The types that an export at this level has where none are named."""
    return definitions.SUPPORTED_TYPES if level == "system" else compartment.types("Patient")


def read_types(level: Level, texts: Iterable[str], *, lenient: bool) -> tuple[str, ...]:
    """The types of `_type`. Raises BadRequest for one that is not served here, or not at this level."""
    offered = (*types_at(level), *(REFERRED if level == "group" else ()))
    found = list(dict.fromkeys(each for text in texts for each in text.split(",")))
    kept = [each for each in found if each in offered]
    if len(kept) < len(found) and not (lenient and kept):
        where = "is not served" if level == "system" else "is not in the compartment of a Patient"
        raise BadRequest(f"_type names a type that {where}", code="value", expression="_type")
    return tuple(kept)


def read_elements(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of elements, `status` or `Encounter.status`. Raises BadRequest for what no type served here has."""
    names = [each for text in texts for each in text.split(",")]
    for name in names:
        kind, dot, element = name.partition(".")
        types = [kind] if dot else definitions.SUPPORTED_TYPES
        known = (each for each in types if each in definitions.SUPPORTED_TYPES)
        wanted = element if dot else kind
        if not any(wanted in definitions.structure(each).elements for each in known):
            raise BadRequest(
                "_elements names an element that does not exist",
                code="value",
                expression="_elements",
            )
    return tuple(names)


def read_filters(
    context: Context, texts: Iterable[str], types: Sequence[str], *, lenient: bool
) -> tuple[tuple[str, str], ...]:
    """The queries of `_typeFilter`, each tried. Raises BadRequest; lenient, a type beside `_type` is left out."""
    found: list[tuple[str, str]] = []
    budget = cost.Budget(context.settings.max_search_cost)
    for text in (each for whole in texts for each in _NEXT_QUERY.split(whole)):
        kind, mark, criteria = text.partition("?")
        if not mark or kind not in types:
            if lenient and mark:
                continue
            raise BadRequest(
                "_typeFilter must be queries such as Observation?status=final, of types that are exported",
                code="value",
                expression="_typeFilter",
            )
        budget.spend(cost.INCLUSION, "_typeFilter")
        query_of(context, kind, criteria, lenient=lenient)
        found.append((kind, criteria))
    return tuple(found)


def query_of(context: Context, resource_type: str, criteria: str, *, lenient: bool = True) -> Query:
    """The query of one `_typeFilter`. Raises BadRequest."""
    pairs = parse_qsl(criteria, keep_blank_values=True)
    for name, _ in pairs:
        if not query.is_criterion(name):
            raise BadRequest(
                f"'{name}' selects nothing and has no place in _typeFilter",
                code="not-supported",
                expression="_typeFilter",
            )
    return query.parse(
        resource_type,
        pairs,
        lenient=lenient,
        settings=context.settings,
        base_url=context.base_url,
    )


def read_patients(references: Sequence[Any], base_url: str) -> tuple[str, ...]:
    """The ids in the `patient` parameters, each a Reference. Raises BadRequest or TooLarge."""
    if len(references) > MOST_PATIENTS:
        raise TooLarge(
            f"Name at most {MOST_PATIENTS} patients, or put them into a Group", expression="patient"
        )
    ids: list[str] = []
    for element in references:
        text = str(element.get("reference", "")) if isinstance(element, dict) else ""
        match = _PATIENT.fullmatch(text.removeprefix(f"{base_url}/"))
        if match is None:
            raise BadRequest("patient must refer to Patients", code="value", expression="patient")
        ids.append(match[1])
    return tuple(dict.fromkeys(ids))
