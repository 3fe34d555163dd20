"""`_list`: the resources that a List names. https://hl7.org/fhir/R4/search.html#list

Entries marked as deleted no longer belong to the List. The functional lists (`$current-problems` and their like) are
answers to questions that this server has no rules for, so they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import BadRequest
from app.fhir.ids import is_id
from app.search import cost
from app.search.deferred_condition import DeferredCondition, Document, TooMany
from app.search.parameter import Condition, SearchScope
from app.search.parameters.special import Ids

if TYPE_CHECKING:
    from app.records.reader import Reader

NAME = "_list"


@dataclass(frozen=True, slots=True)
class Listed(DeferredCondition):
    """The resource is an entry of one of these Lists."""

    resource_type: str
    lists: tuple[str, ...]
    scope: SearchScope

    @property
    def needs(self) -> dict[str, int]:
        return {"_id": 1}

    async def find(self, store: Reader) -> Condition:
        found: dict[str, None] = {}
        for name in self.lists:
            found.update(dict.fromkeys(await self._entries(store, name)))
        if len(found) > self.scope.limits.examined:
            raise TooMany
        return Ids(tuple(found))

    async def test(self, store: Reader, rows: Sequence[Document]) -> set[str]:
        raise TooMany

    async def _entries(self, store: Reader, name: str) -> list[str]:
        stored = await store.read("List", name)
        if stored is None or stored.deleted:
            return []
        beginning = self.resource_type + "/"
        references = [
            entry["item"].get("reference", "").removeprefix(self.scope.base_url + "/")
            for entry in stored.resource().get("entry", ())
            if not entry.get("deleted")
        ]
        ids = [each.removeprefix(beginning) for each in references if each.startswith(beginning)]
        return [each.partition("/_history/")[0] for each in ids]


def condition(resource_type: str, modifier: str, text: str, scope: SearchScope) -> Condition:
    """The condition of a `_list` parameter. Raises BadRequest."""
    if modifier:
        raise _refused(f"Modifier ':{modifier}' is not supported on '{NAME}'", "not-supported")
    lists = list(dict.fromkeys(text.split(",")))
    scope.budget.spend(cost.STORED, NAME, len(lists))
    if any(each.startswith("$") for each in lists):
        raise _refused(
            "Functional lists such as $current-problems are not supported; name the id of a List",
            "not-supported",
        )
    lists = [each.removeprefix("List/") for each in lists]
    if not all(is_id(each) for each in lists):
        raise _refused(f"The value of '{NAME}' is malformed; expected the id of a List", "value")
    return Listed(resource_type, tuple(lists), scope)


def _refused(diagnostics: str, code: str) -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{NAME}")
