"""What a conditional write's criteria find, and the guards of that result.

https://hl7.org/fhir/R4/http.html#cond-update
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from app.context import Context
from app.errors import PreconditionFailed
from app.records.versions import Guard, ResourceVersion
from app.runtime import pace
from app.search import query
from app.search.query import Query
from app.search.resolution import resolve


class Matches(NamedTuple):
    """What a conditional write's criteria find, the guards of that result, and the search that they are."""

    guards: tuple[Guard, ...]
    found: Sequence[ResourceVersion]
    query: Query


async def find_matches(
    context: Context, resource_type: str, criteria: str, limit: int = 1
) -> Matches:
    """The resources that match a conditional write's criteria, at most `limit`, without those that its commit deletes.

    Raises PreconditionFailed where more match, BadRequest where the criteria are empty or not understood: a criterion
    that is left out would match too much.
    """
    guards, found, (parsed,) = await _find(context, resource_type, (criteria,), limit)
    return Matches(guards, found, parsed)


async def find_matches_of_any(
    context: Context, resource_type: str, criteria: Sequence[str], limit: int
) -> tuple[tuple[Guard, ...], Sequence[ResourceVersion]]:
    """The resources that match at least one of several criteria, and the guards of all; else as `find_matches`."""
    guards, found, _ = await _find(context, resource_type, criteria, limit)
    return guards, found


def strictly_read(
    context: Context, resource_type: str, parameters: Sequence[tuple[str, str]]
) -> Query:
    """Criteria that decide what is written: what is not understood in them is refused."""
    return query.parse(
        resource_type,
        parameters,
        lenient=False,
        settings=context.settings,
        base_url=context.base_url,
    )


async def _find(
    context: Context, resource_type: str, criteria: Sequence[str], limit: int
) -> tuple[tuple[Guard, ...], Sequence[ResourceVersion], Sequence[Query]]:
    context.require(resource_type, "s")
    parsed: list[Query] = []
    keys: list[str] = []
    async for each in pace.paced(criteria):
        parameters = query.criteria(each)
        parsed.append(strictly_read(context, resource_type, parameters))
        key = "&".join(sorted(f"{name}={value}" for name, value in parameters))
        keys.append(f"{resource_type}?{key}")
    guards = await context.store.guards(*keys)
    parsed = [await resolve(context.store, each) for each in parsed]
    filters = [each.filter for each in parsed]
    leaving = {
        each for each in context.write_scope.deleting if each.startswith(f"{resource_type}/")
    }
    stored = await context.store.search(
        resource_type,
        filters[0] if len(filters) == 1 else {"$or": filters},
        limit + 1 + len(leaving),
    )
    found = [each for each in stored if each.reference not in leaving]
    if len(found) > limit:
        raise PreconditionFailed(
            "The criteria match more than one resource", code="multiple-matches"
        )
    return guards, found, parsed
