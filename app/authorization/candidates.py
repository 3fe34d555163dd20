"""The documents of a filter that a caller may see, page by page; narrowed to the caller's panel once they are many.

Documents come in the requested order. The first thousand are judged one by one, which costs less than to read the
panel; where there are more, the filter is narrowed to the panel's patients (panel.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from app.authorization.access import Access
from app.runtime.mongo import Document
from app.search.deferred_condition import TooMany
from app.search.parameter import Filter
from app.store.store import Store

# So many are judged before the filter is narrowed to the panel.
_JUDGED_FIRST = 1_000
Read = Callable[[int], Awaitable[list[Document]]]


class Candidates:
    """Made by `candidates`. At most `most` documents are judged; all where it is None."""

    def __init__(
        self,
        stack: AsyncExitStack,
        open_: Callable[[Filter], Any],
        access: Access,
        resource_type: str,
        where: Filter,
        most: int | None,
    ) -> None:
        self._stack = stack
        self._open = open_
        self._access = access
        self._type = resource_type
        self._where = where
        self._most = most
        self._read: Read | None = None
        self._judged: set[str] = set()
        self._may_narrow = True
        self._examined = 0

    async def seen(self, size: int) -> list[Document] | None:
        """Those of the next `size` documents that may be seen; None at the end. Raises TooMany beyond `most`."""
        rows = await self._next(size)
        if rows is None:
            return None
        self._examined += len(rows)
        if self._most is not None and self._examined > self._most:
            raise TooMany
        ids = await self._access.seen(self._type, [row for row in rows if "terms" in row])
        return [row for row in rows if row["_id"] in ids]

    def _up_to(self, size: int) -> int:
        return min(size, _JUDGED_FIRST - self._examined) if self._may_narrow else size

    async def _begin(self, where: Filter) -> Read:
        read: Read = await self._stack.enter_async_context(self._open(where))
        return read

    async def _next(self, size: int) -> list[Document] | None:
        """The next documents, without those that were judged before the narrowing."""
        if self._may_narrow and self._examined >= _JUDGED_FIRST:
            self._may_narrow = False
            narrower = await self._access.panel_filter(self._type)
            if narrower is None:
                self._judged.clear()
            else:
                await self._stack.aclose()
                self._read = await self._begin({"$and": [self._where, narrower]})
        if self._read is None:
            self._read = await self._begin(self._where)
        rows = await self._read(self._up_to(size))
        if not rows:
            return None
        if self._may_narrow:
            self._judged.update(row["_id"] for row in rows)
        elif self._judged:
            rows = [row for row in rows if row["_id"] not in self._judged]
        return rows


@asynccontextmanager
async def candidates(
    store: Store,
    access: Access,
    resource_type: str,
    where: Filter,
    *,
    most: int | None,
    **options: Any,
) -> AsyncIterator[Candidates]:
    """The documents that a filter finds; `options` as for `Store.batches`, with a projection that keeps the terms."""

    def open_(where: Filter) -> Any:
        return store.batches(resource_type, where, **options)

    async with AsyncExitStack() as stack:
        yield Candidates(stack, open_, access, resource_type, where, most)
