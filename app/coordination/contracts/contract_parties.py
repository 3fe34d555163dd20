"""The parties of a contract: the Group whose members it is about, who is told, and the plan that owes it.

A contract that names one that is not here would tell nobody, and nobody would notice. An operator who puts it is
refused. One of a file is kept, since the file may be there before what it names, and so is one whose Group or
organization is deleted later: a review Task says so, and closes itself when all of them are here.
"""

from __future__ import annotations

from collections.abc import Mapping

from app.automation import review_tasks
from app.automation.reactions import Reaction
from app.context import Context
from app.coordination.contracts.contract_terms import ContractTerms, contract_rows, read
from app.errors import Issue
from app.store.events import Event

REASON = "contract-party-missing"
_FIELDS = ("group", "recipient", "plan")


async def faults(context: Context, terms: ContractTerms) -> list[Issue]:
    """An issue for each party that is not here, with the field that names it."""
    missing = await _missing(context, terms)
    return [
        Issue("not-found", f"There is no {reference}", (field,))
        for field, (reference, _) in missing.items()
    ]


async def settle(context: Context, terms: ContractTerms) -> None:
    """Have a Task where a party is not here, and none otherwise."""
    missing = await _missing(context, terms)
    if not missing:
        await forget(context, terms.id)
        return
    names = [reference for reference, _ in missing.values()]
    occasion = " ".join(f"{reference} {version}" for reference, version in missing.values())
    why = f"There is no {' and no '.join(names)}"
    await review_tasks.ask_while(context, REASON, f"Contract/{terms.id}", occasion, why=why)


async def settle_all(context: Context) -> None:
    """The same of every contract: what it names may have gone while no server ran."""
    async for row in contract_rows(context).find():
        await settle(context, read(row["terms"]))


async def forget(context: Context, contract: str) -> None:
    """Close the Task about a contract."""
    await review_tasks.settle(context, REASON, f"Contract/{contract}")


async def react(context: Context, event: Event) -> None:
    """Settle the contracts that name what has come or gone."""
    if event.resource is not None and event.previous is not None:
        return
    reference = f"{event.type}/{event.resource_id}"
    naming = {"$or": [{f"terms.{field}": reference} for field in _FIELDS]}
    async for row in contract_rows(context).find(naming):
        await settle(context, read(row["terms"]))


REACTION = Reaction("contract-parties", frozenset({"Group", "Organization"}), react)


async def _missing(context: Context, terms: ContractTerms) -> Mapping[str, tuple[str, int]]:
    """By field the references that lead nowhere, each with the version that deleted it, 0 where it never was."""
    named = {field: each for field in _FIELDS if (each := getattr(terms, field)) is not None}
    keys = [(type_, id_) for type_, _, id_ in (each.partition("/") for each in named.values())]
    found = await context.services.store.read_many(keys)
    return {
        field: (each, found[each].version if each in found else 0)
        for field, each in named.items()
        if each not in found or found[each].deleted
    }
