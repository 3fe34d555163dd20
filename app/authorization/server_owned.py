"""What only the server says, and an administrator may correct: other clients read it and write nothing of it.

Communication   of the category `notice-kind|event-notification`: the proof of a notice (docs/proof.md)
Subscription    its extension `recipient-kind`: whether patients' refusals reach its recipient (docs/consent.md)
"""

from __future__ import annotations

from app.errors import Forbidden
from app.fhir.codes import EVENT_NOTICE, NOTICE_KIND, RECIPIENT_KIND
from app.fhir.json import Resource
from app.records.versions import Change
from app.search.extract import extract
from app.search.terms import escape

# As readers of the proof find it (app/proof).
_PROOF = f"category={escape(NOTICE_KIND)}|{escape(EVENT_NOTICE)}"


def is_proof(resource: Resource) -> bool:
    """Whether a Communication counts as the proof of a notice."""
    terms: list[str] = extract("Communication", resource)["terms"]
    return _PROOF in terms


def check(change: Change) -> None:
    """Raises Forbidden for a change of one of these. To be asked last: it tells what the version that is there says."""
    previous = change.previous
    before = previous.resource() if previous is not None and not previous.deleted else {}
    after = change.resource or {}
    if change.type == "Communication" and any(is_proof(each) for each in (before, after) if each):
        raise Forbidden(
            "Communications of the category notice-kind|event-notification are the proof of notices: "
            "the server writes them, and no client but an administrator",
            expression="Communication.category",
        )
    if change.type == "Subscription" and after and _kinds(before) != _kinds(after):
        raise Forbidden(
            "The extension recipient-kind decides how much is told: only an administrator adds, "
            "changes or removes it",
            expression="Subscription.extension",
        )


def _kinds(subscription: Resource) -> list[Resource]:
    return [each for each in subscription.get("extension", ()) if each.get("url") == RECIPIENT_KIND]
