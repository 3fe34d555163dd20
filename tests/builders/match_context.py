"""Changes and versions as topics and criteria look at them, without a database."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, cast

from app.search.extract import extract
from app.store.store import Store
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.topics.compiled_conditions import CompiledConditions


@dataclass
class Pair:
    """A change from one version of a resource to the next; None where there is none."""

    before: dict[str, Any] | None
    after: dict[str, Any] | None
    type: str = "Encounter"
    resource_id: str = "e1"
    version: int = 2
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def method(self) -> str:
        if self.after is None:
            return "delete"
        return "update" if self.before else "create"

    @property
    def resource(self) -> dict[str, Any] | None:
        return self.after

    @property
    def previous(self) -> dict[str, Any] | None:
        return self.before

    @cached_property
    def fields(self) -> dict[str, Any] | None:
        return None if self.after is None else extract(self.type, self.after)

    @cached_property
    def previous_fields(self) -> dict[str, Any] | None:
        return None if self.before is None else extract(self.type, self.before)


async def found(question: CompiledConditions, fields: dict[str, Any]) -> bool:
    """Judge a question that needs nothing but the version itself."""
    return await facts(fields).answer(question)


def facts(
    fields: dict[str, Any], resource_type: str = "Encounter", base_url: str = ""
) -> MatchContext:
    return MatchContext(cast("Store", None), base_url, resource_type, fields)
