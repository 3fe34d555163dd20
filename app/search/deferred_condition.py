"""Conditions whose answer lies in other documents, and which may be asked from either side.

Driven from its own side, a lookup finds what it leads to and becomes a condition on the documents searched (`find`).
Where that would be too much, a cohort of 100,000 patients, say, the query is driven from the other side: its other
conditions give candidates in the order asked for, and the lookup is asked about each batch of them (`test`,
candidate_scan.py). Both have limits, beyond which the answer is `too-costly`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from app.errors import Unprocessable
from app.search.parameter import Condition, Fields, Filter

if TYPE_CHECKING:
    from app.records.reader import Reader

Document = dict[str, Any]


class TooMany(Unprocessable):
    """A search leads through more resources than the limit: it would run for minutes."""

    def __init__(self) -> None:
        super().__init__(
            "The search leads through too many resources; add parameters that select fewer, "
            "such as a code, a patient, a date range or _lastUpdated, or search in smaller steps",
            code="too-costly",
        )


class DeferredCondition(ABC):
    """A condition on documents of one type that depends on others. Resolve a query before using its filter."""

    @property
    @abstractmethod
    def needs(self) -> dict[str, int]:
        """The projection on the documents that `test` is given."""

    @abstractmethod
    async def find(self, store: Reader) -> Condition:
        """The same as a plain condition. Raises TooMany."""

    @abstractmethod
    async def test(self, store: Reader, rows: Sequence[Document]) -> set[str]:
        """The ids of those documents that meet the condition; asked after `find` has raised TooMany."""

    async def resolved(self, store: Reader) -> Condition:
        """As `resolution.resolve` asks for it."""
        return await self.find(store)

    def filter(self) -> Filter:
        raise RuntimeError("the query was not resolved")

    def matches(self, fields: Fields) -> bool:
        raise RuntimeError("the query was not resolved")
