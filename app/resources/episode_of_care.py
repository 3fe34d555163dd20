"""Rules of EpisodeOfCare: the end reason of an enrolment in case management has a code of ours, or is absent.

https://hl7.org/fhir/R4/episodeofcare.html has no element for it; the extension `episode-end-reason` is a
CodeableConcept with a code from the code system of the same name. Ending without a reason is accepted, with a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.errors import Issue, Unprocessable
from app.fhir import code_lists
from app.fhir.codes import (
    CASE_MANAGEMENT,
    EPISODE_END_REASON,
    EPISODE_END_REASON_EXTENSION,
    EPISODE_TYPE,
)
from app.fhir.json import Resource
from app.resources.type_rules import Prepared

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import ResourceVersion

_PATH = f"EpisodeOfCare.extension('{EPISODE_END_REASON_EXTENSION}')"


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Check the end reason. Raises Unprocessable for several, or for one that is not in the code list."""
    reasons = [
        each
        for each in resource.get("extension", ())
        if each["url"] == EPISODE_END_REASON_EXTENSION
    ]
    if len(reasons) > 1:
        raise _refused("An enrolment has at most one end reason", "structure")
    known = code_lists.codes(EPISODE_END_REASON)
    for reason in reasons:
        codes = _codes(reason.get("valueCodeableConcept"), EPISODE_END_REASON)
        if not codes or not known.issuperset(codes):
            raise _refused(
                f"The end reason must be one of {', '.join(sorted(known))} in {EPISODE_END_REASON}",
                "code-invalid",
            )
    is_ours = any(
        CASE_MANAGEMENT in _codes(each, EPISODE_TYPE) for each in resource.get("type", ())
    )
    if is_ours and resource["status"] == "finished" and not reasons:
        warning = "Case management ended without a reason; a person is asked for it"
        return Prepared(resource, issues=(Issue("required", warning, (_PATH,), "warning"),))
    return Prepared(resource)


def _codes(concept: Any, system: str) -> list[str | None]:
    """The codes of one system in a CodeableConcept."""
    return [
        coding.get("code")
        for coding in (concept or {}).get("coding", ())
        if coding.get("system") == system
    ]


def _refused(diagnostics: str, code: str) -> Unprocessable:
    return Unprocessable(issues=[Issue(code, diagnostics, (_PATH,))])
