"""How MongoDB answers a search: the filter, the index, what was examined.

https://www.mongodb.com/docs/manual/reference/explain-results/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.search import page
from app.search.parameter import Filter
from app.search.resolution import resolve

if TYPE_CHECKING:
    from app.search.query import Query
    from app.store import Store


@dataclass(frozen=True, slots=True)
class Plan:
    """One run of the database: its filter, the stages and indexes of the winning plan, and what it cost."""

    filter: Filter
    stages: tuple[str, ...]
    indexes: tuple[str, ...]
    keys_examined: int
    documents_examined: int
    returned: int


async def explain(store: Store, query: Query) -> list[Plan]:
    """A plan for each piece of the page, in the order in which they are run, until the page is full."""
    query = await resolve(store, query)
    plans: list[Plan] = []
    wanted = query.count + 1
    for filter_ in page.filters(query):
        sort = [(key.field, key.direction) for key in query.sort]
        explained = await store.explain(query.resource_type, filter_, sort=sort, limit=wanted)
        plans.append(_plan(filter_, explained))
        wanted -= plans[-1].returned
        if wanted <= 0:
            break
    return plans


def _plan(filter_: Filter, explained: Mapping[str, Any]) -> Plan:
    stages = list(_stages(explained["queryPlanner"]["winningPlan"]))
    cost = explained["executionStats"]
    return Plan(
        filter_,
        tuple(stage["stage"] for stage in stages),
        tuple(dict.fromkeys(stage["indexName"] for stage in stages if "indexName" in stage)),
        cost["totalKeysExamined"],
        cost["totalDocsExamined"],
        cost["nReturned"],
    )


def _stages(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every stage of a plan, outermost first; newer servers wrap the plan once more."""
    if "queryPlan" in node:
        yield from _stages(node["queryPlan"])
        return
    if "stage" in node:
        yield node
    for child in ("inputStage", "outerStage", "innerStage"):
        if child in node:
            yield from _stages(node[child])
    for child_node in node.get("inputStages", ()):
        yield from _stages(child_node)
