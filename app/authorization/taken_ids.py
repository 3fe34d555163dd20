"""The refusal of a write under an id that is taken by a resource which the writer may not see.

It tells that the id is taken, which the writer has to know, and how the resource can be stored under another one. An
event about the stored resource has a person asked, who sees both (app/coordination/practices/taken_id_review.py).
"""

from __future__ import annotations

from app.authorization.access import Access
from app.authorization.relations import DocumentRow
from app.errors import Forbidden
from app.fhir.codes import TAKEN_ID
from app.records.versions import Change
from app.search.search_parameters import parameters


async def refusal(access: Access, change: Change, stored: DocumentRow) -> Forbidden:
    """The answer to a write that would be allowed if its id were free; raises its event once for each writer."""
    writer = access.caller.organization
    if writer is not None:
        await access.store.raise_event(
            (change.type, change.id, stored["v"]),
            TAKEN_ID,
            key=f"{change.type}/{change.id} {writer}",
            at=access.relationships.now(),
            context=(writer,),
        )
    return Forbidden(_advice(change.type), expression=f"{change.type}.id")


def _advice(resource_type: str) -> str:
    taken = "The id is taken. "
    if "identifier" in parameters(resource_type):
        return (
            f"{taken}Send the resource without an id and by its identifier, for an Encounter the visit number: "
            f"PUT {resource_type}?identifier=[system]|[value]. The server then gives the id"
        )
    return f"{taken}Send the resource by POST {resource_type}: the server then gives the id"
