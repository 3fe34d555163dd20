"""The verdict of a patient's Consents and the content's labels: disclosed in full, as references only, or withheld.

Of several Consents about one matter the newest that answers the question counts; of several matters the strictest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from app.consent import labels, provisions, statements
from app.consent.labels import Labels
from app.consent.provisions import ConsentQuestion, Effect
from app.consent.recipients import Recipient, RecipientKind, organizations_around
from app.fhir.codes import (
    CASE_MANAGEMENT,
    CONSENT_CATEGORY,
    PART_2_DISCLOSURE,
    PCP_NOTIFICATION,
    PROVIDER_ACCESS,
)
from app.fhir.instants import BEGINNING, span
from app.fhir.json import Resource
from app.records.reader import Reader
from app.records.versions import CURRENT, ResourceVersion, stored_current
from app.search.terms import escape
from app.settings import Settings

# Noted in `private` of Consents that anybody may have recorded, until they are written again.
UNCONFIRMED = "unconfirmed"

Verdict = Literal["full", "id-only", "withhold"]
LabelledContent = Literal["id-only", "withhold"]
Matter = tuple[str, ...]

# The matters that are ours; a Consent in none of them is about privacy in general.
_OWN = (CASE_MANAGEMENT, PCP_NOTIFICATION, PROVIDER_ACCESS, PART_2_DISCLOSURE)
_PRIVACY = "privacy"
# The matters that are about providers alone.
_OF_PROVIDERS = frozenset({CASE_MANAGEMENT, PCP_NOTIFICATION, PROVIDER_ACCESS})
# Scopes that say nothing about who receives information (consentscope): every other one may.
_OTHER_SCOPES = frozenset({"adr", "research", "treatment"})
_CASE_MANAGEMENT_TYPES = frozenset({"CarePlan", "CareTeam", "EpisodeOfCare", "Goal"})
_CASE_MANAGEMENT_TOPICS = frozenset(
    {
        "careplan-annual-review",
        "careplan-change",
        "careteam-change",
        "case-management-status",
        "letter",
    }
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How much may be disclosed. `reason` is made of codes and ids, never of content; empty for `full`.

    `permitted_by` are the Consents without which content of 42 CFR Part 2 could not be disclosed in full.
    """

    verdict: Verdict
    reason: str = ""
    permitted_by: tuple[Resource, ...] = field(default=(), repr=False)


FULL = Judgement("full")


@dataclass(frozen=True, slots=True)
class Writers:
    """The organizations whose word a Consent is; without `names` it is a consent authority's.

    `around` are they and the organizations that they are part of. Where it was recorded while authorization was off and
    `is_unconfirmed`, it permits nothing.
    """

    names: frozenset[str] = frozenset()
    around: frozenset[str] = frozenset()
    is_unconfirmed: bool = False

    def are(self, recipient: Recipient) -> bool:
        """Whether the recipient is one of them, or one may be part of the other; so is one that nobody has named."""
        if recipient.reference is None:
            return True
        return bool(self.names & recipient.around or self.around & recipient.itself)

    def limit(self, effect: Effect, question: ConsentQuestion) -> Effect:
        """The effect of their word: organizations permit others to have their own records, and bind no authority."""
        if self.is_unconfirmed and effect is Effect.PERMIT:
            return Effect.NOTHING
        if not self.names or effect is Effect.NOTHING:
            return effect
        if effect is Effect.PERMIT:
            is_theirs = question.custodian in self.names and not self.are(question.recipient)
            return effect if is_theirs else Effect.NOTHING
        return Effect.NOTHING if question.recipient.kind == "authority" else effect


_AUTHORITY = Writers()
_ANYBODY = Writers(is_unconfirmed=True)


@dataclass(frozen=True, slots=True)
class WrittenConsent:
    """A Consent with those whose word it is."""

    resource: Resource = field(repr=False)
    writers: Writers = _AUTHORITY


@dataclass(frozen=True, slots=True)
class Directive:
    """An active Consent with the matter it is about, when it was given, and whose word it is."""

    resource: Resource = field(repr=False)
    matter: Matter
    since: datetime
    writers: Writers = _AUTHORITY

    @property
    def is_understood(self) -> bool:
        """Whether no part of it is uncertain; one about a matter of ours has to have a rule."""
        silent = self.matter[0] != _PRIVACY and not provisions.says_something(self.resource)
        return not silent and provisions.is_understood(self.resource)

    @property
    def names_actors(self) -> bool:
        """Whether a provision depends on the recipient."""
        return statements.names_actors(self.resource)

    @property
    def names_labels(self) -> bool:
        """Whether it is about labelled content."""
        return self.matter == (PART_2_DISCLOSURE,) or statements.names_labels(self.resource)

    @property
    def refused(self) -> Sequence[statements.Actors]:
        """Whom each of its refusals is about; empty where it refuses nothing to anybody."""
        return statements.refused(self.resource) if self.is_understood else [None]

    @property
    def permitted(self) -> Sequence[statements.Actors]:
        """Whom each of its permissions is for."""
        return statements.permitted(self.resource)

    def can_concern(self, kind: RecipientKind) -> bool:
        """Whether it can be about recipients of a kind."""
        return kind == "provider" or self.matter[0] not in _OF_PROVIDERS

    def effect(self, question: ConsentQuestion) -> Effect:
        """The answer to the question, as far as its writers may give it."""
        return self.writers.limit(self._answer(question), question)

    def _answer(self, question: ConsentQuestion) -> Effect:
        if question.whole_of is not None:
            is_part_2 = self.matter == (PART_2_DISCLOSURE,)
            return provisions.answer(self.resource, question, names_label=is_part_2)
        if self.matter[0] != _PRIVACY and not provisions.says_something(self.resource):
            running = provisions.is_running(self.resource, question.at)
            return Effect.UNSURE if running else Effect.NOTHING
        return provisions.answer(self.resource, question)

    @property
    def reference(self) -> str:
        return f"Consent/{self.resource.get('id', '')}"


def directives(consents: Iterable[WrittenConsent], base_url: str = "") -> list[Directive]:
    """The Consents that count, newest first; one in several matters of ours once for each."""
    found = [
        Directive(
            statements.with_local_references(consent.resource, base_url),
            matter,
            _since(consent.resource),
            consent.writers,
        )
        for consent in consents
        if consent.resource.get("status") == "active"
        for matter in _matters(consent.resource)
    ]
    return sorted(found, key=lambda each: each.since, reverse=True)


def concerning(kind: RecipientKind) -> dict[str, Any]:
    """The filter on the Consents in force that can be about recipients of a kind."""
    in_force = {"terms": "status=active"}
    if kind == "provider":
        return in_force
    categories = [f"category={escape(CONSENT_CATEGORY)}|{each}" for each in sorted(_OF_PROVIDERS)]
    part_2 = f"category={escape(CONSENT_CATEGORY)}|{PART_2_DISCLOSURE}"
    of_providers = {"$and": [{"terms": {"$in": categories}}, {"terms": {"$ne": part_2}}]}
    return {"$and": [in_force, {"$nor": [of_providers]}]}


def decide(
    active: Sequence[Directive],
    question: ConsentQuestion,
    topic: str | None,
    labelled_content: LabelledContent = "id-only",
) -> Judgement:
    """The judgement from directives that have been read, and the labels of the focus. `topic` is a canonical."""
    refused = by_consent(active, question, topic) if active else FULL
    if refused.verdict == "withhold":
        return refused
    sensitive = _by_labels(active, question, labelled_content)
    return sensitive if sensitive.verdict == "withhold" or refused is FULL else refused


def by_consent(
    active: Sequence[Directive], question: ConsentQuestion, topic: str | None
) -> Judgement:
    """The judgement by what was refused alone, whatever the labels."""
    answers: dict[Matter, tuple[Effect, Directive]] = {}
    settled: set[Matter] = set()
    for directive in active:
        if directive.matter in settled or not _concerns(directive.matter, question, topic):
            continue
        effect = directive.effect(question)
        if effect is Effect.NOTHING:
            continue
        if effect is not Effect.UNSURE:
            settled.add(directive.matter)
        known = answers.get(directive.matter)
        if known is None or effect > known[0]:
            answers[directive.matter] = (effect, directive)
    if not answers:
        return FULL
    effect, directive = max(answers.values(), key=lambda each: each[0])
    if effect is Effect.DENY:
        return Judgement("withhold", f"consent-{_name(directive)} {directive.reference}")
    if effect is Effect.UNSURE:
        return Judgement("id-only", f"consent-unclear {directive.reference}")
    return FULL


def _by_labels(
    active: Sequence[Directive], question: ConsentQuestion, labelled_content: LabelledContent
) -> Judgement:
    given = question.labels
    if not given:
        return FULL
    if labels.VERY_RESTRICTED in given:
        return Judgement("withhold", f"label {labels.VERY_RESTRICTED}")
    sensitive = given & labels.SENSITIVE
    permitted = {each: _permitted_by(active, question, each) for each in sensitive}
    closed = {each for each, by in permitted.items() if by is None}
    # A permission for all sensitivities of the content is one for its level R, too.
    if labels.RESTRICTED in given and (closed or not sensitive):
        by = permitted[labels.RESTRICTED] = _permitted_by(active, question, labels.RESTRICTED)
        if by is None:
            closed.add(labels.RESTRICTED)
    if not closed:
        part_2 = labels.covered(labels.PART_2, by_permission=True)
        needed = {
            by.reference: by.resource for each, by in permitted.items() if by and each in part_2
        }
        return Judgement("full", permitted_by=tuple(needed.values())) if needed else FULL
    return Judgement(labelled_content, f"label {' '.join(sorted(closed))}")


def _permitted_by(
    active: Sequence[Directive], question: ConsentQuestion, label: str
) -> Directive | None:
    """By which Consent content with this label may be disclosed in full: the newest that answers for it decides."""
    of_label = replace(question, whole_of=label)
    part_2 = labels.covered(labels.PART_2, by_permission=True)
    for directive in active:
        is_part_2 = directive.matter == (PART_2_DISCLOSURE,)
        if is_part_2 and label not in part_2:
            continue
        if not is_part_2 and directive.matter[0] != _PRIVACY:
            continue
        effect = directive.effect(of_label)
        if effect is not Effect.NOTHING:
            return directive if effect is Effect.PERMIT else None
    return None


def _concerns(matter: Matter, question: ConsentQuestion, topic: str | None) -> bool:
    """Whether Consents about the matter can forbid the disclosure in question."""
    if matter[0] == _PRIVACY:
        return True
    if matter[0] == PART_2_DISCLOSURE:
        return bool(question.labels & labels.covered(labels.PART_2, by_permission=False))
    if question.recipient.kind == "authority":
        return False
    if matter[0] == CASE_MANAGEMENT:
        slug = (topic or "").rpartition("/")[2].partition("|")[0]
        return question.focus_type in _CASE_MANAGEMENT_TYPES or slug in _CASE_MANAGEMENT_TOPICS
    return True


def _matters(consent: Resource) -> list[Matter]:
    codings = [coding for each in consent.get("category", ()) for coding in each.get("coding", ())]
    own = {coding.get("code") for coding in codings if coding.get("system") == CONSENT_CATEGORY}
    found: list[Matter] = [(each,) for each in _OWN if each in own]
    if found:
        return found
    scope = {coding.get("code") for coding in consent.get("scope", {}).get("coding", ())}
    if scope and scope <= _OTHER_SCOPES:
        return []
    kinds = {f"{coding.get('system', '')}|{coding.get('code', '')}" for coding in codings}
    return [(_PRIVACY, *sorted(kinds))]


def _name(directive: Directive) -> str:
    return directive.matter[0]


def _since(consent: Mapping[str, Any]) -> datetime:
    """The time at which a Consent was given, at the latest that at which it was stored."""
    times = (consent.get("dateTime"), consent.get("meta", {}).get("lastUpdated"))
    return min((time for text in times if text for time in _begin(text)), default=BEGINNING)


def _begin(text: str) -> list[datetime]:
    try:
        return [span(text)[0]]
    except ValueError:
        return []


def patient_of(consent: Resource, base_url: str = "") -> str:
    """The patient's relative reference, empty where there is none."""
    reference = consent.get("patient", {}).get("reference", "").split("/_history/")[0]
    return str(reference.removeprefix(f"{base_url.rstrip('/')}/") if base_url else reference)


async def consents(
    store: Reader, patients: Iterable[str], base_url: str = ""
) -> list[WrittenConsent]:
    """The Consents of patients (`Patient/p1`), of whatever status, in one indexed read."""
    prefixes = ("", f"{base_url.rstrip('/')}/") if base_url else ("",)
    terms = [f"patient={prefix}{patient}" for patient in patients for prefix in prefixes]
    # All of them: one left out might be the refusal.
    with_note = CURRENT | {f"private.{UNCONFIRMED}": 1}
    documents = await store.find("Consent", {"terms": {"$in": terms}}, projection=with_note)
    found = [stored_current("Consent", document) for document in documents]
    unconfirmed = {each["_id"] for each in documents if UNCONFIRMED in each.get("private", {})}
    names = {each for stored in found if stored.custodian for each in stored.by}
    above = {each: await organizations_around(store, each, base_url) for each in sorted(names)}
    return [
        WrittenConsent(
            each.resource(), _ANYBODY if each.id in unconfirmed else writers_of(each, above)
        )
        for each in found
    ]


def writers_of(stored: ResourceVersion, around: Mapping[str, frozenset[str]]) -> Writers:
    """Whose word a stored Consent is; `around` has the organizations around each that wrote one."""
    if stored.custodian is None:
        return _AUTHORITY
    return Writers(frozenset(stored.by), frozenset().union(*(around[each] for each in stored.by)))


async def judge(
    store: Reader,
    patient: str | None,
    *,
    focus: str,
    topic: str | None,
    recipient: Recipient,
    given: Labels,
    at: datetime,
    settings: Settings,
    custodian: str | None = None,
) -> Judgement:
    """The judgement on a disclosure about a patient, from Consents read anew (`ConsentDirectives` caches them)."""
    found = await consents(store, [patient], settings.base_url) if patient else []
    question = ConsentQuestion(focus, given, recipient, at, custodian=custodian)
    active = directives(found, settings.base_url)
    return decide(active, question, topic, settings.labelled_content)
