"""What people call the members of an answer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from app.context import Context

_AT_ONCE = 5_000


class _Name(msgspec.Struct):
    family: str = ""
    given: list[str | None] = msgspec.field(default_factory=list)
    text: str = ""
    use: str = ""


class _Identifier(msgspec.Struct):
    value: str = ""


class _Patient(msgspec.Struct, rename="camel"):
    name: list[_Name] = msgspec.field(default_factory=list)
    birth_date: str = ""
    identifier: list[_Identifier] = msgspec.field(default_factory=list)


_decode = msgspec.json.Decoder(_Patient).decode


@dataclass(frozen=True, slots=True)
class Person:
    """A member as lists name one."""

    name: str = ""
    birth_date: str = ""
    identifier: str = ""


NOBODY = Person()


async def of_members(context: Context, patients: Collection[str]) -> dict[str, Person]:
    """The names of patients (`Patient/p1`) whom the caller is known to see."""
    ids = sorted(each.partition("/")[2] for each in patients)
    found: dict[str, Person] = {}
    for start in range(0, len(ids), _AT_ONCE):
        some = {"_id": {"$in": ids[start : start + _AT_ONCE]}}
        for row in await context.services.store.find("Patient", some, projection={"text": 1}):
            if "text" in row:
                found[f"Patient/{row['_id']}"] = _person(_decode(row["text"]))
    return found


def _person(patient: _Patient) -> Person:
    official = [each for each in patient.name if each.use == "official"]
    name = next(iter(official or patient.name), _Name())
    parts = [*(each for each in name.given if each), name.family]
    return Person(
        name.text or " ".join(each for each in parts if each),
        patient.birth_date,
        patient.identifier[0].value if patient.identifier else "",
    )
