"""In whose work list a Task stands, and whose it is until somebody takes it: Task.performerType and Task.owner.

https://hl7.org/fhir/R4/task.html
"""

from __future__ import annotations

from collections.abc import Mapping

from app.fhir.codes import OPERATIONS, TASK_QUEUE, TASK_QUEUES
from app.fhir.json import Resource
from app.settings import Settings

# The list of each Task.code of ours; the others are for those who run the server.
_LISTS: Mapping[str, str] = {
    "ambiguous-patient": "patient-records",
    "cancel-without-admission": "patient-records",
    "continuity-of-care-end": "care-management",
    "contract-party-missing": "contracts",
    "deadline-missed": "contracts",
    "deadline-near": "contracts",
    "hra-due": "care-management",
    "incomplete-names": "provider-directory",
    "late-admission": "patient-records",
    "merged-patient": "patient-records",
    "no-end-reason": "care-management",
    "no-endpoint": "provider-directory",
    "no-enrolment-date": "care-management",
    "no-pcp": "provider-directory",
    "no-subject": "patient-records",
    "opted-out-while-enrolled": "care-management",
    "pcp-period-ended": "provider-directory",
    "proposed-consent": "consent",
    "re-enrolment": "care-management",
    "refused-endpoint": "provider-directory",
    "several-pcps": "provider-directory",
    "taken-id": "patient-records",
    "unapplied-message": "patient-records",
    "unknown-patient": "patient-records",
    "unsuitable-consent": "consent",
}


def assigned(settings: Settings, code: str, owner: Resource | None = None) -> Resource:
    """The elements that say who is to do a new Task of a code; without an `owner` the one of its list has it."""
    work_list = _LISTS.get(code, OPERATIONS)
    coding = {"system": TASK_QUEUE, "code": work_list, "display": TASK_QUEUES[work_list]}
    found: Resource = {"performerType": [{"coding": [coding]}]}
    reference = settings.owners_of_lists.get(work_list)
    if owner is None and reference is not None:
        owner = {"reference": reference}
    return found if owner is None else {**found, "owner": owner}
