"""A 1 s cache of the consent directives of patients.

Concurrent requests share a read, and one read serves all their patients. This process's own commits count at once,
those of other processes after a second at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from app.consent.judgement import Directive, WrittenConsent, consents, directives, patient_of
from app.records.reader import Reader
from app.runtime.batch_cache import BatchCache
from app.store.events import Event

# The lifetime of a cached entry in seconds.
_CONSENTS_LAST = 1.0

# The directives of one patient.
Standing = Sequence[Directive]


class ConsentDirectives:
    """The directives of patients. `now` is the clock that their periods are judged by."""

    def __init__(self, store: Reader, base_url: str, now: Callable[[], datetime]) -> None:
        self._store = store
        self._base_url = base_url
        self.now = now
        self._read_together: BatchCache[str, Standing] = BatchCache(
            self._read, (), lasting=_CONSENTS_LAST
        )

    def on_events(self, events: Sequence[Event]) -> None:
        """The store's listener: a Consent that was committed here counts at once."""
        for event in events:
            if event.type == "Consent":
                versions = (event.resource, event.previous)
                self._read_together.forget(
                    patient_of(each, self._base_url) for each in versions if each is not None
                )

    def begin(self, patients: Iterable[str]) -> None:
        """Begin to read the directives of these patients."""
        for patient in patients:
            self.ask(patient)

    def ask(self, patient: str) -> asyncio.Future[Standing]:
        """The directives of a patient (`Patient/p1`), as soon as they are read."""
        return self._read_together.ask(patient)

    def forget_older(self, patients: Iterable[str], than: float) -> bool:
        """Forget directives asked for before a `moment`; returns whether there were any."""
        return self._read_together.forget_older(patients, than)

    async def of(self, patient: str) -> Standing:
        """The directives of a patient (`Patient/p1`); empty without any."""
        return await self._read_together.get(patient)

    async def for_patients(self, patients: Iterable[str]) -> dict[str, Standing]:
        """The directives of patients (`Patient/p1`); those who have none are left out."""
        found = await self._read_together.get_all(patients)
        return {patient: own for patient, own in found.items() if own}

    async def _read(self, patients: list[str]) -> Mapping[str, Standing]:
        found: dict[str, list[WrittenConsent]] = {}
        for consent in await consents(self._store, patients, self._base_url):
            found.setdefault(patient_of(consent.resource, self._base_url), []).append(consent)
        return {patient: directives(each, self._base_url) for patient, each in found.items()}
