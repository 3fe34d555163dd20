"""The audit entries of delivery attempts: of each one, whatever its outcome, for data has left the server.

An attempt is recorded before its delivery row is settled: no row that was sent is settled without a record. Handshakes
and heartbeats are about no patient and are not recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from app.audit.entry import BY_CONSENT, FAILED, OK, of_caller, with_patients
from app.authentication.caller import NOBODY, Caller
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document
from app.subscriptions.ledger.lanes import subject_of
from app.subscriptions.ledger.settlement import Settlement
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.owner_rights import OwnerRights

log = logging.getLogger(__name__)


async def entries(
    settlements: Sequence[Settlement], registry: SubscriptionRegistry, rights: OwnerRights
) -> list[Document]:
    """The audit entries of those settlements that come from an attempt. Raises where the database is away."""
    known: dict[str, tuple[Registration | None, Caller]] = {}
    found: list[Document] = []
    for each in settlements:
        if each.attempt is None:
            continue
        name = each.delivery.subscription
        try:
            if name not in known:
                registration = registry.get(name)
                owner = await rights.whose(registration) if registration is not None else NOBODY
                known[name] = registration, owner
            found += _rows(each, each.attempt, *known[name])
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            extra = {"action": "audit", "id": name, "error": type(error).__name__}
            log.error("attempt on record in part", extra=extra)
            found += _rows(each, each.attempt, None, NOBODY)
    return found


def _rows(
    entry: Settlement, attempt: Document, registration: Registration | None, owner: Caller
) -> list[Document]:
    delivery = entry.delivery
    focus = delivery.focus
    row: Document = {
        "at": attempt["at"],
        "what": "delivery",
        "o": OK if entry.state == "delivered" else FAILED,
        "k": [f"u:{delivery.subscription}", f"e:{focus['type']}/{focus['id']}"],
        "v": focus["version"],
    }
    if entry.state != "delivered":
        row["k"].append(f"o:{FAILED}")
    if owner != NOBODY:
        row["k"] += of_caller(owner)
    if owner.role is not None:
        row["r"] = owner.role
    if attempt.get("status") is not None:
        row["s"] = attempt["status"]
    row["k"] += [f"{BY_CONSENT}:{each}" for each in attempt.get("permitted_by", ())]
    words = [f"notice {delivery.id} attempt {delivery.attempt}"]
    if registration is not None:
        words.append(registration.channel.content or "")
        if place := address(registration.channel.endpoint):
            row["ip"] = place
    row["m"] = " ".join(word for word in words if word)
    subject = subject_of(delivery.lane)
    is_patient = subject.startswith("Patient/")
    return with_patients(row, [subject.removeprefix("Patient/")] if is_patient else [])


def address(endpoint: str | None) -> str | None:
    """An endpoint without what may be secret in it: user, password and query."""
    try:
        parts = urlsplit(endpoint or "")
    except ValueError:
        return None
    if not parts.scheme:
        return None
    return f"{parts.scheme}:{'//' if parts.netloc else ''}{parts.netloc.rpartition('@')[2]}{parts.path}"
