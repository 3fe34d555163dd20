"""The security context of a Binary: another resource that stands for it where it is judged who may read it.

https://hl7.org/fhir/R4/binary-definitions.html#Binary.securityContext

It is the word of those who wrote the Binary, and takes the place of what attaches it. One that is not on this server
opens to nobody, and so does another Binary, which has no more to be judged by, and a version, which nobody may name any
more (app/resources/binary_context.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from app.authentication.caller import Role
from app.authorization import relations
from app.authorization.attachments import Proxies
from app.authorization.relations import DocumentRow
from app.authorization.rules import NO_CONTEXTS
from app.fhir import binary
from app.records.reader import Reader
from app.search.parameter import Filter
from app.search.search_parameters import parameters, present
from app.search.terms import EVERY

_CODE = "security-context"


async def contexts(
    store: Reader,
    resource_type: str,
    rows: Sequence[DocumentRow],
    role: Role | None,
    base_url: str,
) -> Proxies:
    """The security contexts of these rows that count for a role, by the rows' keys (`_id`)."""
    unwanted = NO_CONTEXTS.get(role, frozenset()) if role else frozenset()
    named = {
        row["_id"]: {
            each
            for each in relations.named(resource_type, _CODE, row, base_url)
            if each.partition("/")[0] not in unwanted | {binary.TYPE}
        }
        for row in rows
        if is_named(resource_type, row) and not _is_version(row)
    }
    ids: dict[str, set[str]] = {}
    for each in set().union(*named.values()):
        type_, _, id_ = each.partition("/")
        ids.setdefault(type_, set()).add(id_)
    found: dict[str, DocumentRow] = {}
    for type_, wanted in ids.items():
        there = {"_id": {"$in": sorted(wanted)}, "terms": EVERY}
        for row in await store.find(type_, there, projection={"terms": 1}):
            found[f"{type_}/{row['_id']}"] = row
    return {
        key: [(each.partition("/")[0], found[each]) for each in sorted(of) if each in found]
        for key, of in named.items()
    }


def is_named(resource_type: str, row: DocumentRow) -> bool:
    """Whether a row names a security context, wherever that is."""
    return resource_type == binary.TYPE and any(
        term.startswith((f"{_CODE}=", f"{_CODE}:")) for term in row["terms"]
    )


def _is_version(row: DocumentRow) -> bool:
    return any(term.startswith(f"{_CODE}=") and "/_history/" in term for term in row["terms"])


def filter_of(resource_type: str) -> Filter:
    """A filter on all that name a security context."""
    if resource_type != binary.TYPE:
        return {"_id": {"$in": []}}
    return present(parameters(binary.TYPE)[_CODE]).filter()
