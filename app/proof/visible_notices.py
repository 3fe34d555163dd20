"""The notices whose proof a caller may see: each is judged as the Communication that it is, or is going to be."""

from __future__ import annotations

from collections.abc import Sequence

from app.context import Context
from app.errors import NotFound
from app.proof.communication import communication
from app.proof.notice import NoticeRecord, gather_readable
from app.proof.publisher import sender_of
from app.runtime.mongo import Document
from app.search.deferred_condition import TooMany
from app.search.extract import extract
from app.subscriptions.ledger import ledger_queries
from app.subscriptions.ledger.ledger_queries import Wanted

_PROOF = "Communication"
_AT_ONCE = 200


async def visible(context: Context, rows: Sequence[Document]) -> list[NoticeRecord]:
    """The notices of delivery rows, in their order, without those that are hidden from the caller."""
    # Read past the caller's limits: whom a notice was for says a Subscription, which only its owner sees. What is
    # shown of it is judged below.
    found = await gather_readable(
        context.services.store, rows, context.settings.base_url.rstrip("/")
    )
    access = context.access
    if access is None or not found:
        return found
    if not access.allows(_PROOF, "r"):
        return []
    sender = sender_of(context.settings)
    judged = []
    for each in found:
        fields = extract(_PROOF, communication(each, sender))
        if access.restrictions.match(_PROOF, "r", fields):
            judged.append({**fields, "_id": each.id})
    seen = await access.seen(_PROOF, judged)
    return [each for each in found if each.id in seen]


async def page(
    context: Context, wanted: Wanted, count: int, cursor: str | None
) -> tuple[list[Document], str | None]:
    """As `ledger_queries.search`, but for hidden rows. Raises TooMany where too many of them lie between.

    Raises Forbidden where the caller may read no Communications.
    """
    if context.access is None:
        return await ledger_queries.search(context.services.mongo, wanted, count, cursor)
    context.require(_PROOF, "r", "s")
    found: list[Document] = []
    examined, more = 0, cursor
    while len(found) <= count:
        rows, more = await ledger_queries.search(context.services.mongo, wanted, _AT_ONCE, more)
        found += await _visible_rows(context, rows)
        examined += len(rows)
        if more is None:
            break
        if examined > context.settings.max_chain_examined:
            raise TooMany
    last = found[count - 1] if len(found) > count else None
    key = ledger_queries.key_of(wanted)
    return [_without_answers(each) for each in found[:count]], None if last is None else str(
        last[key]
    )


async def one(context: Context, row: Document) -> Document:
    """A row that the caller may see. Raises NotFound for a hidden one."""
    if context.access is None:
        return row
    context.require(_PROOF, "r")
    if not await _visible_rows(context, [row]):
        raise NotFound("There is no such delivery")
    return _without_answers(row)


async def _visible_rows(context: Context, rows: Sequence[Document]) -> list[Document]:
    """Those of notices of topics: nothing else has a proof."""
    of_topics = [row for row in rows if row["topic"] is not None]
    seen = {each.id for each in await visible(context, of_topics)}
    return [row for row in of_topics if row["_id"] in seen]


def _without_answers(row: Document) -> Document:
    """A row without what receivers answered, which is between them and who runs the server."""
    attempts = [{k: v for k, v in each.items() if k != "answer"} for each in row["attempts"]]
    return {**row, "attempts": attempts}
