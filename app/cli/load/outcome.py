"""What came of a load: counts per type, refusals, and files that were put right before they were sent."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Refusal:
    """One resource that was not stored, and why."""

    file: str
    resource: str
    reason: str


@dataclass(frozen=True, slots=True)
class Mended:
    """A file that was not R4 and was put right before it was sent, and what was done to it."""

    file: str
    notes: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """What became of each resource: counts per type, every refusal, and the files that were put right."""

    created: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    existing: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)
    mended: list[Mended] = field(default_factory=list)

    @property
    def total(self) -> int:
        counters = (self.created, self.updated, self.existing, self.refused)
        return sum(counter.total() for counter in counters)

    def refuse(self, file: Path, resource_type: str, name: str, reason: str) -> None:
        self.refused[resource_type] += 1
        self.refusals.append(Refusal(str(file), name, reason))
