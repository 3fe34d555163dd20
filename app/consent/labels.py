"""The security labels of a resource (meta.security): its sensitivities, and its level of confidentiality.

https://hl7.org/fhir/R4/security-labels.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"
# The code systems of labels; codings of other systems are no labels.
SYSTEMS = frozenset(
    {
        ACT_CODE,
        CONFIDENTIALITY,
        "http://hl7.org/fhir/v3/ActCode",
        "http://hl7.org/fhir/v3/Confidentiality",
        "urn:oid:2.16.840.1.113883.5.4",
        "urn:oid:2.16.840.1.113883.5.25",
    }
)

PART_2 = "42CFRPart2"
_SUBSTANCE_USE = frozenset({"ETH", "ETHUD", "OPIOIDUD", "SUD"})
# The sensitivities that a code covers beside itself.
_COVERS: Mapping[str, frozenset[str]] = {
    PART_2: _SUBSTANCE_USE,
    "ETH": _SUBSTANCE_USE,
    "PSY": frozenset({"PSYTHPN"}),
    "BH": _SUBSTANCE_USE | {PART_2, "PSY", "PSYTHPN"},
}
# A permission has to name these themselves.
_ONLY_BY_NAME = frozenset({PART_2, "PSYTHPN"})
# Content that is not pushed whole unless a Consent permits it.
SENSITIVE = _SUBSTANCE_USE | {PART_2, "BH", "HIV", "PSY", "PSYTHPN", "SDV"}
# From the least to the most confidential.
LEVELS = ("U", "L", "M", "N", "R", "V")
RESTRICTED, VERY_RESTRICTED = "R", "V"

Labels = frozenset[str]
NONE: Labels = frozenset()


def of(resource: Mapping[str, Any] | None) -> Labels:
    """The codes of a resource's labels."""
    security = resource.get("meta", {}).get("security") if resource is not None else None
    return codes(security) if security else NONE


def codings(resource: Mapping[str, Any] | None) -> frozenset[tuple[str, str]]:
    """A resource's labels with the systems that they are written in."""
    security = resource.get("meta", {}).get("security", ()) if resource is not None else ()
    return frozenset((each.get("system", ""), code) for each in security for code in codes([each]))


def codes(codings: Iterable[Mapping[str, Any]]) -> Labels:
    """The codes among codings that are labels; one without a system counts where its code is known."""
    return frozenset(
        coding["code"]
        for coding in codings
        if "code" in coding
        and (
            coding.get("system") in SYSTEMS
            or (
                "system" not in coding and (coding["code"] in SENSITIVE or coding["code"] in LEVELS)
            )
        )
    )


def level(labels: Labels) -> int:
    """The index in LEVELS of the highest level named, that of N (normal) without one."""
    named = [LEVELS.index(each) for each in labels if each in LEVELS]
    return max(named, default=LEVELS.index("N"))


def covered(code: str, *, by_permission: bool) -> Labels:
    """The sensitivities that a rule on `code` covers; a permission covers fewer than a refusal."""
    below = _COVERS.get(code, NONE)
    return (below - _ONLY_BY_NAME if by_permission else below) | {code}
