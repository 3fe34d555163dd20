"""What came of a load: counts per type, refusals, and files that were put right before they were sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.errors import FhirError
from app.fhir import json as fhir_json


@dataclass(frozen=True, slots=True)
class LoadRefusal:
    """One resource, transaction or file that was not stored, and why."""

    file: str
    resource: str
    reason: str


@dataclass(frozen=True, slots=True)
class Mended:
    """A file that was not R4 and was put right before it was sent, and what was done to it."""

    file: str
    notes: tuple[str, ...]


@dataclass(slots=True)
class LoadReport:
    """What became of each resource: counts per type, every refusal, and the files that were put right."""

    created: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    existing: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[LoadRefusal] = field(default_factory=list)
    mended: list[Mended] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.stored + self.existing.total() + self.refused.total()

    @property
    def stored(self) -> int:
        return self.created.total() + self.updated.total()

    def refuse(self, file: Path, resource_type: str, name: str, reason: str) -> None:
        self.refused[resource_type] += 1
        self.refusals.append(LoadRefusal(str(file), name, reason))


def reason_of(response: httpx.Response) -> str:
    """The status of a refusal and what its OperationOutcome says, that of a response message too."""
    try:
        outcome = fhir_json.decode(response.content)
    except FhirError:
        outcome = {}
    for entry in outcome.get("entry", ()):
        if entry.get("resource", {}).get("resourceType") == "OperationOutcome":
            outcome = entry["resource"]
    return reason(str(response.status_code), outcome)


def reason(status: str, outcome: dict[str, Any]) -> str:
    """A status with the issues of the OperationOutcome, where there is one."""
    said = []
    for issue in outcome.get("issue", ()):
        where = ", ".join(issue.get("expression", []))
        text = issue.get("diagnostics") or issue.get("code", "")
        said.append(f"{where}: {text}" if where and not text.startswith(where) else text)
    return f"{status} {'; '.join(said)}".rstrip()
