"""How MongoDB answers a search: the filter, the index, what was examined.

https://www.mongodb.com/docs/manual/reference/explain-results/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bson import json_util

from app.errors import Issue
from app.search.parameter import Filter

if TYPE_CHECKING:
    from app.records.reader import Reader
    from app.search.query import Query


@dataclass(frozen=True, slots=True)
class QueryPlan:
    """One run of the database: its filter, the stages and indexes of the winning plan, and what it cost."""

    filter: Filter
    stages: tuple[str, ...]
    indexes: tuple[str, ...]
    keys_examined: int
    documents_examined: int
    returned: int


async def explain(store: Reader, query: Query, pieces: Sequence[Filter]) -> list[QueryPlan]:
    """A plan for each piece of a resolved query's page, in the order in which they are run, until the page is full.

    The candidates that the query's probes read beyond that are not counted.
    """
    plans: list[QueryPlan] = []
    wanted = query.count + 1
    for filter_ in pieces:
        sort = [(key.field, key.direction) for key in query.sort]
        explained = await store.explain(query.resource_type, filter_, sort=sort, limit=wanted)
        plans.append(_plan(filter_, explained))
        wanted -= plans[-1].returned
        if wanted <= 0:
            break
    return plans


async def issues(store: Reader, query: Query, pieces: Sequence[Filter]) -> list[Issue]:
    """The plans as the searchset's OperationOutcome shows them (`_explain=true`)."""
    return [
        Issue(
            "informational",
            f"{query.resource_type}: index {', '.join(plan.indexes) or 'none'}; "
            f"{plan.keys_examined} keys and {plan.documents_examined} documents examined, {plan.returned} rows; "
            f"stages {' < '.join(plan.stages)}; filter {json_util.dumps(plan.filter)}",
            severity="information",
        )
        for plan in await explain(store, query, pieces)
    ]


def _plan(filter_: Filter, explained: Mapping[str, Any]) -> QueryPlan:
    stages = list(_stages(explained["queryPlanner"]["winningPlan"]))
    cost = explained["executionStats"]
    return QueryPlan(
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
