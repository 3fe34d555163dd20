"""The security labels that what the server writes bears: those of the record that it is about.

It says that there is such a record, and when. https://hl7.org/fhir/R4/security-labels.html
"""

from __future__ import annotations

import msgspec

from app.context import Context
from app.fhir.json import Resource
from app.interactions.references import split


async def labelled(context: Context, made: Resource, reference: str) -> Resource:
    """A new resource with the labels of the record that it is about (`Encounter/e1`); of a deleted one, the last ones.

    One that is damaged keeps nobody from being told: what rests on it is judged by it whenever it is read.
    """
    place = split(reference)
    stored = None if place is None else await context.store.read(*place)
    if stored is not None and stored.deleted:
        stored = await context.store.vread(stored.type, stored.id, stored.version - 1)
    if stored is None or stored.deleted:
        return made
    try:
        given = stored.meta().get("security")
    except msgspec.DecodeError:
        return made
    return {**made, "meta": {"security": given}} if given else made
