"""Conditions that are tested many times, with a property that is computed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from app.search.parameter import Condition
from app.search.resolution import is_resolved


@dataclass(frozen=True, slots=True)
class CompiledConditions:
    """Conditions that must all hold; `is_plain` where each of them reads the version's own fields only."""

    conditions: tuple[Condition, ...]
    is_plain: bool

    @classmethod
    def of(cls, conditions: Iterable[Condition]) -> CompiledConditions:
        found = tuple(conditions)
        return cls(found, all(is_resolved(each) for each in found))
