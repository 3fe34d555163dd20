"""Fields that MongoDB works out of what lies beside a resource, for reads of very many: expressions of a projection.

A document has some thirty terms. Who needs two of each of 100,000 documents has MongoDB choose them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

from app.search.parameter import Parameter
from app.search.terms import successor

Expression = dict[str, Any]


def terms_with(beginnings: Iterable[str]) -> Expression:
    """The terms that have one of these beginnings."""
    tests = [
        {"$and": [{"$gte": ["$$term", each]}, {"$lt": ["$$term", successor(each)]}]}
        for each in beginnings
    ]
    test = tests[0] if len(tests) == 1 else {"$or": tests}
    return {"$filter": {"input": "$terms", "as": "term", "cond": test}}


def has_term_with(beginnings: Iterable[str]) -> Expression:
    """Whether there is a term with one of these beginnings."""
    return {"$gt": [{"$size": terms_with(beginnings)}, 0]}


def says(text: str) -> Expression:
    """Whether a text occurs in the resource's JSON, which is written without spaces."""
    return {"$gte": [{"$indexOfBytes": ["$text", text]}, 0]}


def occurrences(text: str) -> Expression:
    """How often it does."""
    return {"$subtract": [{"$size": {"$split": ["$text", text]}}, 1]}


def beginnings_of(parameter: Parameter, resource_type: str, base_url: str) -> tuple[str, ...]:
    """The beginnings of a parameter's terms that refer to resources of a type on this server."""
    key = parameter.shared or parameter.key
    bases = ("", f"{base_url}/") if base_url else ("",)
    return tuple(f"{key}={base}{resource_type}/" for base in bases)


def named_in(terms: Sequence[str], resource_type: str) -> tuple[str, ...]:
    """The resources of a type (`Patient/p1`) to which terms refer; of one with a version there is a second term."""
    start = f"{resource_type}/"
    if len(terms) == 1:  # nearly always
        name = terms[0][terms[0].index(start) :]
        return (name,) if name.count("/") == 1 else ()
    found = (term[term.index(start) :] for term in terms)
    return tuple(dict.fromkeys(each for each in found if each.count("/") == 1))


async def prefetched(
    read: Callable[[int], Awaitable[list[dict[str, Any]]]], size: int
) -> AsyncIterator[list[dict[str, Any]]]:
    """The batches of a read, each asked for while the one before is worked on."""
    coming = asyncio.ensure_future(read(size))
    try:
        while rows := await coming:
            coming = asyncio.ensure_future(read(size))
            yield rows
    finally:
        if not coming.done():
            await asyncio.wait([coming])
