"""The words of a document that are the server's own, in the language of its member.

    profiles/document-phrases/<language>.json   {phrase in English: the same phrase in that language}

English stands in the code. What people have recorded stays in the language that they recorded it in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec

from app.coordination.care_plans import wording as words
from app.fhir.definitions import PROFILES
from app.fhir.json import Resource

ENGLISH = "en"
_TABLES = PROFILES / "document-phrases"
# Codes of HL7 and of ours whose displays are no plain words, or that come without one.
PLAIN_WORDS: Mapping[str, str] = {
    # v3-ActCode, the classes of Encounters
    "ACUTE": "hospital stay",
    "EMER": "emergency visit",
    "IMP": "hospital stay",
    "NONAC": "stay that is not acute",
    "OBSENC": "observation stay",
    "SS": "short stay",
    # statuses of Encounters, Goals, requests and medications
    "accepted": "accepted",
    "active": "active",
    "arrived": "arrived",
    "cancelled": "cancelled",
    "completed": "completed",
    "draft": "draft",
    "finished": "finished",
    "in-progress": "in progress",
    "not-started": "not started",
    "on-hold": "on hold",
    "onleave": "on leave",
    "planned": "planned",
    "proposed": "proposed",
    "rejected": "rejected",
    "requested": "requested",
    "revoked": "revoked",
    "scheduled": "scheduled",
    "stopped": "stopped",
    "triaged": "triaged",
    "unknown": "status not known",
    # goal-achievement and goal-priority
    "achieved": "achieved",
    "improving": "improving",
    "no-change": "no change",
    "no-progress": "no progress",
    "not-achieved": "not achieved",
    "not-attainable": "not attainable",
    "sustaining": "sustained",
    "worsening": "getting worse",
    "high-priority": "high priority",
    "medium-priority": "medium priority",
    "low-priority": "low priority",
    # condition-clinical, condition-ver-status and their like for allergies
    "recurrence": "recurrence",
    "relapse": "relapse",
    "unconfirmed": "not confirmed",
    "provisional": "provisional",
    "differential": "one of several possible diagnoses",
    "presumed": "presumed",
    # allergy criticality and reaction severity
    "high": "high",
    "low": "low",
    "unable-to-assess": "risk cannot be assessed",
    "mild": "mild",
    "moderate": "moderate",
    "severe": "severe",
    "very-high": "very high",
    # discharge-disposition
    "alt-home": "another home",
    "aadvice": "left against advice",
    "exp": "died",
    "home": "home",
    "hosp": "hospice",
    "long": "long-term care",
    "oth": "elsewhere",
    "other-hcf": "another health care facility",
    "psy": "psychiatric hospital",
    "rehab": "rehabilitation",
    "snf": "skilled nursing facility",
    # subscriber-relationship, consent provisions
    "deny": "refused",
    "permit": "agreed to",
}
_PLAIN_SYSTEMS = ("http://terminology.hl7.org/", "http://hl7.org/", "http://carerelay.example/")


@dataclass(frozen=True, slots=True)
class Phrases:
    """The phrases in one language; one that its table lacks is said in English."""

    language: str = ENGLISH
    table: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, phrase: str, **values: object) -> str:
        """A phrase, with these values where it has their {names}."""
        said = self.table.get(phrase, phrase)
        return said.format(**values) if values else said

    def labelled(self, label: str, value: str) -> str:
        """A label and a value; empty for an empty value."""
        return f"{self(label)}: {value}" if value else ""

    def code(self, code: object) -> str:
        """A code of FHIR's own in plain words."""
        text = str(code or "")
        return self(PLAIN_WORDS[text]) if text in PLAIN_WORDS else text

    def concept(self, value: Any) -> str:
        """CodeableConcepts or Codings as their writers put them, else in plain words, else by display or code."""
        return words.listing(self._one(each) for each in words.each(value))

    def _one(self, concept: Mapping[str, Any]) -> str:
        if "text" not in concept:
            for coding in concept.get("coding", (concept,)):
                is_ours = str(coding.get("system", "")).startswith(_PLAIN_SYSTEMS)
                if is_ours and coding.get("code") in PLAIN_WORDS:
                    return self.code(coding["code"])
        return words.concept(concept)

    def period(self, value: Mapping[str, Any] | None) -> str:
        """A Period, open ends included; empty for none."""
        if not value:
            return ""
        start, end = words.day(value.get("start")), words.day(value.get("end"))
        if start and end:
            return self("from {start} to {end}", start=start, end=end)
        if end:
            return self("until {end}", end=end)
        return self("since {start}", start=start) if start else ""


@cache
def languages() -> Mapping[str, Phrases]:
    """The languages that documents are written in, by their codes of BCP 47."""
    found = {ENGLISH: Phrases()}
    for file in sorted(_TABLES.glob("*.json")):
        found[file.stem] = Phrases(file.stem, msgspec.json.decode(file.read_bytes()))
    return found


def phrases_for(patient: Resource | None) -> Phrases:
    """The phrases in the language that a member prefers, else speaks, as far as there is a table; else in English."""
    spoken = (patient or {}).get("communication", ())
    preferred = [each for each in spoken if each.get("preferred")]
    for each in preferred or spoken:
        for code in _language_codes(each.get("language")):
            if code in languages():
                return languages()[code]
    return languages()[ENGLISH]


def _language_codes(language: Mapping[str, Any] | None) -> Iterable[str]:
    """The languages that a concept names, without their regions."""
    for coding in (language or {}).get("coding", ()):
        yield str(coding.get("code", "")).partition("-")[0].lower()
