"""The resources that a write names: whose word it is, and where its references lead.

What a client may not see is answered as what never was: in the same words, and after the same reads as far as the
patient's relation to the organization decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from app.authorization import relations
from app.authorization.access import Access
from app.authorization.judged_rows import current_rows, last_rows_of
from app.authorization.relations import DocumentRow
from app.authorization.rules import SPEAKS_FOR, rule_of
from app.fhir.json import Resource
from app.search.extract import extract
from app.search.search_parameters import parameters
from app.search.terms import EVERY

_IDENTIFIER = "identifier="


async def is_own_word(
    access: Access, resource_type: str, row: DocumentRow, resource: Resource | None = None
) -> bool:
    """Whether a resource speaks for the caller's organizations, or for none that is known here.

    What is named by an identifier, also in a contained Organization of `resource`, is known here if an Organization of
    the directory has it. What those of several organizations in use have is nobody's to speak under.
    """
    if resource_type not in SPEAKS_FOR:
        return True
    code, _ = SPEAKS_FOR[resource_type]
    family = await access.family()
    named = relations.named(resource_type, code, row, access.base_url)
    if not all(each in family for each in named if each.startswith("Organization/")):
        return False
    identified = _identifiers(resource_type, code, row)
    if resource is not None:
        identified += _identifiers_inside(resource_type, resource)
    found = await organizations_with(access, identified)
    in_use = [name for name, is_active in found.items() if is_active]
    return family.issuperset(in_use or found)


async def organizations_with(access: Access, identifiers: Sequence[str]) -> dict[str, bool]:
    """The Organizations that have one of these identifiers (terms), each with whether it is in use."""
    if not identifiers:
        return {}
    rows = await access.store.find(
        "Organization", {"terms": {"$in": list(identifiers)}}, projection={"terms": 1}
    )
    return {f"Organization/{row['_id']}": "active=false" not in row["terms"] for row in rows}


def identifiers_of(organization: Resource) -> list[str]:
    """The terms of an Organization's identifiers, with their systems."""
    terms: list[str] = extract("Organization", organization)["terms"]
    return _with_system(term for term in terms if term.startswith(_IDENTIFIER))


def _identifiers_inside(resource_type: str, resource: Resource) -> list[str]:
    """The identifiers of contained Organizations that a resource speaks for."""
    element = resource.get(SPEAKS_FOR[resource_type][1]) or []
    named = {
        each.get("reference") for each in (element if isinstance(element, list) else [element])
    }
    return [
        term
        for each in resource.get("contained", ())
        if each.get("resourceType") == "Organization" and f"#{each.get('id')}" in named
        for term in identifiers_of(each)
    ]


def _identifiers(resource_type: str, code: str, row: DocumentRow) -> list[str]:
    """The terms that Organizations have by which a reference identifies one, with their systems."""
    prefix = f"{parameters(resource_type)[code].key}:identifier="
    written = (term.removeprefix(prefix) for term in row["terms"] if term.startswith(prefix))
    return _with_system(f"{_IDENTIFIER}{each}" for each in written)


def _with_system(identifiers: Iterable[str]) -> list[str]:
    return [each for each in identifiers if all(each.removeprefix(_IDENTIFIER).partition("|")[::2])]


async def are_seen(access: Access, references: Collection[str]) -> bool:
    """Whether all these resources (`Patient/p1`) are there and may be seen, scopes aside."""
    for resource_type, ids in _by_type(references).items():
        if not await _may_be_own(access, resource_type, ids):
            return False
        rows = [
            row
            for row in (await current_rows(access.store, resource_type, ids)).values()
            if not row.get("deleted")
        ]
        if await access.seen(resource_type, rows) != ids:
            return False
    return True


async def are_readable(access: Access, references: Collection[str]) -> bool:
    """Whether all these resources are there and may be read, by scopes too."""
    for resource_type, ids in _by_type(references).items():
        if not access.allows(resource_type, "r"):
            return False
        if not await _may_be_own(access, resource_type, ids):
            return False
        rows = await access.store.find(
            resource_type, {"_id": {"$in": sorted(ids)}, "terms": EVERY}, projection={"terms": 1}
        )
        if await access.readable(resource_type, rows) != ids:
            return False
    return True


async def are_own(access: Access, references: Collection[str]) -> bool:
    """Whether all these resources are there, or were, and may be changed by the caller, scopes aside."""
    for resource_type, ids in _by_type(references).items():
        if not await _may_be_own(access, resource_type, ids):
            return False
        found = (await current_rows(access.store, resource_type, ids)).values()
        rows = await last_rows_of(access.store, resource_type, found)
        old = rule_of(access.caller.role, resource_type).old
        if await access.related(resource_type, rows, old, is_own_past=True) != ids:
            return False
        if not all([await is_own_word(access, resource_type, row) for row in rows]):
            return False
    return True


async def _may_be_own(access: Access, resource_type: str, ids: set[str]) -> bool:
    """Whether Patients are the organization's: asked in the same way of those that are here and those that are not."""
    if resource_type != "Patient":
        return True
    patients = {f"Patient/{each}" for each in ids}
    return patients <= await access.own_patients(patients, await access.family())


def _by_type(references: Collection[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for each in references:
        resource_type, _, id_ = each.partition("/")
        found.setdefault(resource_type, set()).add(id_)
    return found
