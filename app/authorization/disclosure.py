"""The disclosure of resources that a caller's rules let it see: the patients' consent and the labels decide.

The judgement is that of notices (docs/consent.md), with the caller's organization as the recipient. A resource that a
notice would send as a reference is hidden here: a read has no such form. A refusal of notices refuses no read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from app.authentication.caller import Caller
from app.authorization.relations import DocumentRow, Traits, id_of
from app.authorization.relationships import Relationships
from app.authorization.rules import NO_PROVIDERS
from app.authorization.subject_store import IsTold
from app.consent import redisclosure
from app.consent.directives import ConsentDirectives, Standing
from app.consent.judgement import by_consent, decide
from app.consent.labels import Labels
from app.consent.provisions import ConsentQuestion
from app.consent.recipients import Recipient, RecipientKind
from app.fhir.codes import PCP_NOTIFICATION

_OF_NOTICES = (PCP_NOTIFICATION,)


class Disclosure:
    """Judges documents that are a caller's by its compartment."""

    def __init__(self, directives: ConsentDirectives, relationships: Relationships) -> None:
        self._directives = directives
        self._relationships = relationships

    async def directives(self, patient: str) -> Standing:
        """The directives of a patient (`Patient/p1`)."""
        return await self._directives.of(patient)

    def begin(self, patients: Iterable[str]) -> None:
        """Begin to read the directives that `of` needs."""
        self._directives.begin(patients)

    def forget_older(self, patients: Iterable[str], than: float) -> bool:
        """Forget directives asked for before a `moment`; returns whether there were any."""
        return self._directives.forget_older(patients, than)

    async def of(
        self, caller: Caller, resource_type: str, rows: Mapping[str, tuple[DocumentRow, Traits]]
    ) -> set[str]:
        """The keys of those that may be disclosed in full: what the caller's organization made, whatever its labels."""
        found = await self._directives.for_patients(
            {each for _, of in rows.values() for each in of.patients}
        )
        directives = {
            patient: own
            for patient, each in found.items()
            if (own := [one for one in each if one.matter != _OF_NOTICES])
        }
        if not directives and not any(of.labels for _, of in rows.values()):
            return set(rows)
        return {
            key
            for key, (row, of) in rows.items()
            if not (of.labels or directives.keys() & of.patients)
            or await self._is_disclosed(caller, f"{resource_type}/{id_of(row)}", of, directives)
        }

    async def _is_made_by(self, caller: Caller, custodian: str | None) -> bool:
        """Whether a record is one that the caller's organization made, and so knows."""
        if custodian is None or caller.organization is None:
            return False
        return custodian in await self._relationships.family(caller.organization)

    async def _is_disclosed(
        self, caller: Caller, focus: str, of: Traits, directives: Mapping[str, Standing]
    ) -> bool:
        question = ConsentQuestion(
            focus,
            of.labels,
            await self.recipient(caller),
            self._relationships.now(),
            custodian=of.custodian,
        )
        # Patients without a directive are judged as well, for the labels, and so is what is about nobody.
        own = [directives.get(each, ()) for each in of.patients] or [()]
        # A label is for those who do not know yet. What the patient has refused is refused to its maker, too.
        judge = by_consent if await self._is_made_by(caller, of.custodian) else decide
        judgements = [judge(each, question, None) for each in own]
        if any(each.verdict != "full" for each in judgements):
            return False
        for each in judgements:
            redisclosure.note(each.permitted_by)
        return True

    async def to_any_provider(self, patient: str) -> IsTold | None:
        """Whether a patient's Consents let every provider have a record; None where they refuse nothing.

        It is asked for what is written once and read by many. Labels are judged by who writes it.
        """
        standing = [
            each
            for each in await self._directives.of(patient)
            if each.refused and each.matter != _OF_NOTICES
        ]
        if not standing:
            return None
        now = self._relationships.now()

        def is_told(reference: str, labels: Labels) -> bool:
            question = ConsentQuestion(reference, labels, Recipient(None), now)
            return by_consent(standing, question, None).verdict == "full"

        return is_told

    async def recipient(self, caller: Caller) -> Recipient:
        """The caller's organization as Consents name it."""
        kind = self.kind(caller)
        if caller.organization is None:
            return Recipient(None, kind)
        return await self._relationships.recipient(caller.organization, kind)

    @staticmethod
    def kind(caller: Caller) -> RecipientKind:
        """The kind of recipient that the caller's role makes it."""
        return "authority" if caller.role in NO_PROVIDERS else "provider"
