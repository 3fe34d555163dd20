"""Whether what a caller's rules let it see may be disclosed to it now: the patients' consent, and labels.

The same judgement as of notices (docs/consent.md), with the caller's organization as the recipient. What might be told
in fewer words there is hidden here: a read has no fewer words. Who wants no notices sent has not refused to be read of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.authentication.caller import Caller
from app.authorization.relations import DocumentRow, Traits, id_of
from app.authorization.relationships import Relationships
from app.authorization.rules import NO_PROVIDERS
from app.consent.directives import ConsentDirectives, Standing
from app.consent.judgement import decide
from app.consent.provisions import ConsentQuestion
from app.consent.recipients import Recipient, RecipientKind
from app.fhir.codes import PCP_NOTIFICATION

_OF_NOTICES = (PCP_NOTIFICATION,)


class Disclosure:
    """Judges documents that are a caller's by its compartment."""

    def __init__(self, directives: ConsentDirectives, relationships: Relationships) -> None:
        self._directives = directives
        self._belonging = relationships

    def begin(self, patients: Iterable[str]) -> None:
        """Begin to read what `of` will ask."""
        self._directives.begin(patients)

    async def of(
        self, caller: Caller, resource_type: str, rows: Mapping[str, tuple[DocumentRow, Traits]]
    ) -> set[str]:
        """The keys of those that may be disclosed whole."""
        found = await self._directives.for_patients(
            {each for _, of in rows.values() for each in of.patients}
        )
        standing = {
            patient: own
            for patient, each in found.items()
            if (own := [one for one in each if one.matter != _OF_NOTICES])
        }
        if not standing and not any(of.labels for _, of in rows.values()):
            return set(rows)
        return {
            key
            for key, (row, of) in rows.items()
            if not (of.labels or standing.keys() & of.patients)
            or await self._is_told(caller, f"{resource_type}/{id_of(row)}", of, standing)
        }

    async def _is_told(
        self, caller: Caller, focus: str, of: Traits, standing: Mapping[str, Standing]
    ) -> bool:
        question = ConsentQuestion(
            focus, of.labels, await self._recipient(caller), self._belonging.now()
        )
        # Who has consented to nothing at all is asked as well, for the labels.
        asked = [standing.get(each, ()) for each in of.patients]
        return all(decide(each, question, None).verdict == "full" for each in asked)

    async def _recipient(self, caller: Caller) -> Recipient:
        kind: RecipientKind = "authority" if caller.role in NO_PROVIDERS else "provider"
        if caller.organization is None:
            return Recipient(None, kind)
        return await self._belonging.recipient(caller.organization, kind)
