"""The value sets and code hierarchies inside a condition, settled wherever they stand: negated, at the end of a chain.

Chains and `_has` themselves stay: who follows them from one resource, as matching does, still has to know the codes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from app.search.chain import Chain, Has
from app.search.chain_step import ChainStep
from app.search.parameter import AllOf, AnyOf, Condition, Not
from app.search.terminology import InHierarchy, InValueSet

if TYPE_CHECKING:
    from app.records.reader import Reader


async def with_codes(store: Reader, condition: Condition) -> Condition:
    """The condition with codes in place of value sets and hierarchies. Raises FhirError where one cannot be settled."""
    match condition:
        case InValueSet() | InHierarchy():
            return await condition.resolved(store)
        case Not(inner):
            return Not(await with_codes(store, inner))
        case AnyOf(several) | AllOf(several):
            settled = tuple([await with_codes(store, each) for each in several])
            return replace(condition, conditions=settled)
        case Chain(links=links):
            return replace(condition, links=tuple([await _end(store, link) for link in links]))
        case Has(link=link):
            return replace(condition, link=await _end(store, link))
    return condition


async def _end(store: Reader, link: ChainStep) -> ChainStep:
    return ChainStep(link.resource_type, await with_codes(store, link.condition))
