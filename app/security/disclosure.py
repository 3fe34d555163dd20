"""Whether what a caller's rules let it see may be disclosed to it now: the patients' consent, and labels.

The same judgement as of notices (docs/consent.md), with the caller's organization as the recipient. What might be told
in fewer words there is hidden here: a read has no fewer words. Who wants no notices sent has not refused to be read of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from app.consent import labels
from app.consent.gate import Gate
from app.consent.judgement import decide
from app.consent.labels import Labels
from app.consent.provisions import Question
from app.consent.recipients import Kind, Recipient
from app.coordination.codes import PCP_NOTIFICATION
from app.search.terms import unescape
from app.security.access_rules import NO_PROVIDERS
from app.security.belonging import Belonging
from app.security.caller import Caller
from app.security.relations import Facts, id_of, patients_of
from app.settings import Settings

_SECURITY = "_security="
_OF_NOTICES = (PCP_NOTIFICATION,)


@dataclass(frozen=True, slots=True)
class Labelled:
    """How a document is labelled."""

    labels: Labels

    @property
    def is_very_restricted(self) -> bool:
        return labels.VERY_RESTRICTED in self.labels


_UNLABELLED = Labelled(labels.NONE)


def labels_in(terms: Sequence[str]) -> Labelled:
    """The labels among a document's search terms."""
    codings = []
    for term in terms:
        if term.startswith(_SECURITY):
            system, bar, code = term[len(_SECURITY) :].partition("|")
            if bar:
                coding = {"code": unescape(code)}
                codings.append(coding | ({"system": unescape(system)} if system else {}))
    return Labelled(labels.codes(codings)) if codings else _UNLABELLED


@cache
def very_restricted() -> tuple[str, ...]:
    """The search terms of what nobody but administrators reads."""
    return tuple(f"{_SECURITY}{system}|V" for system in ("", *sorted(labels.SYSTEMS)))


class Disclosure:
    """Judges documents that are a caller's by its compartment."""

    def __init__(self, gate: Gate, belonging: Belonging, settings: Settings) -> None:
        self._gate = gate
        self._belonging = belonging
        self._settings = settings
        self._base_url = settings.base_url.rstrip("/")

    async def of(self, caller: Caller, resource_type: str, rows: Sequence[Facts]) -> set[str]:
        """The ids of those that may be disclosed whole."""
        about = {row["_id"]: patients_of(resource_type, row, self._base_url) for row in rows}
        patients = sorted({each for of in about.values() for each in of})
        found = await asyncio.gather(*(self._gate.standing(each) for each in patients))
        standing = {
            patient: own
            for patient, each in zip(patients, found, strict=True)
            if (own := [one for one in each if one.matter != _OF_NOTICES])
        }
        passed: set[str] = set()
        for row in rows:
            given = labels_in(row["terms"]).labels
            consents = [standing[each] for each in about[row["_id"]] if each in standing]
            if not given and not consents:
                passed.add(row["_id"])
                continue
            # Who has consented to nothing at all is asked as well, for the labels.
            asked = [*consents, *([()] if len(consents) < len(about[row["_id"]]) else [])]
            question = Question(
                f"{resource_type}/{id_of(row)}",
                given,
                await self._recipient(caller),
                self._belonging.now(),
            )
            if all(decide(each, question, None).verdict == "full" for each in asked or [()]):
                passed.add(row["_id"])
        return passed

    async def _recipient(self, caller: Caller) -> Recipient:
        kind: Kind = "authority" if caller.role in NO_PROVIDERS else "provider"
        if caller.organization is None:
            return Recipient(None, kind)
        return await self._belonging.recipient(caller.organization, kind)
