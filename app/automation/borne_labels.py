"""The security labels that what the server writes bears: those of the record that it is about.

It says that there is such a record, and when. https://hl7.org/fhir/R4/security-labels.html
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from app.consent import labels
from app.context import Context
from app.fhir.json import Resource
from app.interactions.references import split
from app.records.versions import ResourceVersion
from app.store.events import Event


async def labelled(context: Context, made: Resource, reference: str) -> Resource:
    """A new resource with the labels of the record that it is about, which is given as a relative reference."""
    return with_labels(made, await labels_of(context, reference))


def with_labels(resource: Resource, given: Sequence[Resource]) -> Resource:
    """A resource with these labels and no others."""
    meta = {name: value for name, value in resource.get("meta", {}).items() if name != "security"}
    if given:
        meta["security"] = list(given)
    rest = {name: value for name, value in resource.items() if name != "meta"}
    return {**rest, "meta": meta} if meta else rest


def is_relabelled(event: Event) -> bool:
    """Whether a change gives a record other labels."""
    return labels.codings(event.resource) != labels.codings(event.previous)


async def labels_of(context: Context, reference: str) -> list[Resource]:
    """The labels of a record, as it writes them; of a deleted one, the last ones.

    One that is damaged has none: it keeps nobody from being told, and what rests on it is judged by it whenever that is
    read.
    """
    stored = await last_known(context, reference)
    try:
        return [] if stored is None else stored.meta().get("security", [])
    except msgspec.DecodeError:
        return []


async def last_known(context: Context, reference: str) -> ResourceVersion | None:
    """A record as it is now; of a deleted one the version before, None where there is nothing to read."""
    place = split(reference)
    stored = None if place is None else await context.store.read(*place)
    if stored is not None and stored.deleted:
        stored = await context.store.vread(stored.type, stored.id, stored.version - 1)
    return None if stored is None or stored.deleted else stored
