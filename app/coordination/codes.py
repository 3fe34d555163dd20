"""The names that are our own: extensions, code systems and their codes. Everything else is HL7's or the field's."""

from __future__ import annotations

BASE = "http://carerelay.example/"
EXTENSION = BASE + "StructureDefinition/"
CODE_SYSTEM = BASE + "CodeSystem/"

# Why a person has to look at something (Task.code).
REVIEW_REASON = CODE_SYSTEM + "review-reason"
REVIEW_REASONS = {
    "cancel-without-admission": "A stay was cancelled of which no admission is known",
    "deadline-missed": "A notice was due by contract and has not been delivered",
    "deadline-near": "A notice that is due by contract has not been delivered yet",
    "incomplete-names": "A notice lacked the patient's, the practitioner's or the hospital's name",
    "late-admission": "An admission became known after its discharge",
    "merged-patient": "The record is about a patient that was merged into another",
    "no-endpoint": "The primary care practice has no endpoint",
    "no-pcp": "No primary care practice is known",
    "no-subject": "The record names no patient",
    "pcp-period-ended": "The primary care practice's responsibility has ended",
    "re-enrolment": "The member may need case management again",
    "several-pcps": "Several primary care practices are known",
    "unknown-patient": "The record is about a patient who is not known here",
    "unsuitable-consent": "A consent cannot be understood",
}
