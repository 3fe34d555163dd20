"""Carequality's topics as further canonicals of our own, with what they limit these to.

https://build.fhir.org/ig/Carequality/CEQSubscription/Notification_Triggers.html. Those that tell of something that none
of our topics tells have no alias: ambulatory admissions, referrals by others, transfer orders, gaps in care.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.settings import Settings
from app.subscriptions.topics.topics import Alias

_CAREQUALITY = "http://www.carequality.net/CEQTopic/"
# Our topic, and the filters that a Subscription to the alias has beside its own.
_OURS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "admit": ("encounter-admission", ()),
    "edadmit": ("encounter-admission", ("class=EMER",)),
    "acadmit": ("encounter-admission", ("class=IMP,ACUTE,SS",)),
    "snradmit": ("encounter-snf-admission", ()),
    "discharge": ("encounter-discharge", ()),
    "transfer-ext": ("encounter-transfer", ()),
}


def aliases(settings: Settings) -> Iterable[Alias]:
    """The aliases that the settings ask for."""
    if not settings.carequality_topics:
        return
    base = settings.topic_base.rstrip("/")
    for name, (topic, filters) in _OURS.items():
        yield Alias(_CAREQUALITY + name, f"{base}/{topic}", filters)
