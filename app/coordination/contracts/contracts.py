"""Contracts that the server keeps: each has a Contract resource, a Subscription for each topic and a watched deadline.

    contracts   {_id, terms, origin: "file" | "admin", subscriptions: [id]}

`terms` are the operator's with header values masked; the values themselves are sealed with the Subscriptions.
docs/contracts.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, Literal

from app.authorization.rules import room_of
from app.automation.reactions import stable_id
from app.context import Context
from app.coordination.contracts import contract_deadlines, contract_parties
from app.coordination.contracts.contract_terms import (
    ContractTerms,
    contract_rows,
    dumped,
    read,
    read_files,
)
from app.errors import FhirError, Issue, NotFound, Unprocessable
from app.fhir.codes import (
    ACT_CODE,
    ADMISSION,
    CONTRACT_ALERT,
    CONTRACT_DEADLINE,
    CONTRACT_ID,
    RECIPIENT_KIND,
    RESOURCE_TYPE,
    ROLE_CODE,
    SNF_ADMISSION,
    SUBSCRIPTION_ORIGIN,
    SUBSCRIPTION_OWNER,
    SUBSCRIPTION_RECIPIENT,
)
from app.fhir.json import Resource
from app.interactions import interactions
from app.resources import secret_headers
from app.resources.subscription import is_as_wanted
from app.runtime.masking import MASK, mask
from app.runtime.mongo import Document
from app.subscriptions.matching.channel_terms import PAYLOAD_CONTENT
from app.subscriptions.matching.registration import FILTER_CRITERIA
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import Topic

Origin = Literal["file", "admin"]
# All other kinds of facilities: psychiatric and critical access hospitals are hospitals.
_NO_NURSING_FACILITY = ("hospital", "other")
# What notices bring along that no topic's shape names (docs/care-plans.md).
_BESIDE = {"CarePlan": ("Communication", "DocumentReference")}


async def load(context: Context) -> None:
    """Keep the contracts of CARERELAY_CONTRACTS, and end those that it no longer lists.

    Raises ValueError for one that cannot be read or kept: a server that silently missed deadlines would be worse.
    """
    await _renew(context)
    await contract_parties.settle_all(context)
    place = context.settings.contracts
    if place is None:
        await contract_deadlines.resume(context)
        return
    wanted = await asyncio.to_thread(read_files, place)
    for terms in wanted:
        try:
            await _keep(context, terms, "file")
        except FhirError as error:
            words = "; ".join(issue.diagnostics for issue in error.issues)
            raise ValueError(f"{place}: contract {terms.id}: {words}") from None
    names = [terms.id for terms in wanted]
    async for row in contract_rows(context).find({"origin": "file", "_id": {"$nin": names}}):
        await _end(context, row)
    await contract_deadlines.resume(context)


async def _renew(context: Context) -> None:
    """Write what is kept of contracts anew where it would say something else by now.

    That are the Contract, where it is read what it gives, and the filters of Subscriptions that are in force. One whose
    topics are not known any more stays as it is.
    """
    async for row in contract_rows(context).find():
        with suppress(Unprocessable):
            terms = read(row["terms"])
            topics = _topics(context, terms)
            await interactions.update(context, "Contract", terms.id, _contract(terms, topics))
            terms = await _unmasked(context, terms, row)
            for topic in topics:
                await _renew_filters(context, _subscription(terms, topic, topics))


async def _renew_filters(context: Context, wanted: Resource) -> None:
    stored = await context.store.read("Subscription", wanted["id"])
    if stored is None or stored.deleted:
        return
    known = stored.resource()
    if known["status"] != "off" and known.get("_criteria") != wanted["_criteria"]:
        await interactions.update(context, "Subscription", wanted["id"], wanted)


async def put(context: Context, contract: str, given: Any) -> bool:
    """Keep a contract; returns whether it is new. Raises Unprocessable, and all that a Subscription's update may."""
    terms = read(given)
    if terms.id != contract:
        raise Unprocessable("The id must be the one in the address", code="value", expression="id")
    before = await contract_rows(context).find_one({"_id": contract})
    await _keep(context, await _unmasked(context, terms, before), "admin")
    return before is None


async def get(context: Context, contract: str) -> Document:
    """A contract's terms with its origin and the resources kept for it. Raises NotFound."""
    row: Document | None = await contract_rows(context).find_one({"_id": contract})
    if row is None:
        raise NotFound("There is no such contract")
    return _shown(row)


async def list_all(context: Context) -> list[Document]:
    return [_shown(row) async for row in contract_rows(context).find().sort("_id", 1)]


async def delete(context: Context, contract: str) -> None:
    """End a contract: its Subscriptions are off, its Contract is terminated, what was sent stays in the ledger."""
    row = await contract_rows(context).find_one({"_id": contract})
    if row is None:
        raise NotFound("There is no such contract")
    await _end(context, row)


async def _keep(context: Context, terms: ContractTerms, origin: Origin) -> None:
    """A file may come before what it names: then a person is asked, and what an operator puts is refused."""
    faults = await contract_parties.faults(context, terms) if origin == "admin" else ()
    topics = _topics(context, terms, faults)
    subscriptions = [_subscription(terms, topic, topics) for topic in topics]
    before = await contract_rows(context).find_one({"_id": terms.id})
    for wanted in subscriptions:
        if await _differs(context, wanted):
            await interactions.update(context, "Subscription", wanted["id"], wanted)
    kept = [each["id"] for each in subscriptions]
    for gone in set((before or {}).get("subscriptions", ())) - set(kept):
        await _switch_off(context, gone)
    resource = _contract(terms, topics)
    await interactions.update(context, "Contract", terms.id, resource)
    row = {"terms": dumped(terms), "origin": origin, "subscriptions": kept}
    await contract_rows(context).update_one({"_id": terms.id}, {"$set": row}, upsert=True)
    await contract_deadlines.watch(context, terms.id)
    await contract_parties.settle(context, terms)


async def _end(context: Context, row: Document) -> None:
    for subscription in row["subscriptions"]:
        await _switch_off(context, subscription)
    stored = await context.store.read("Contract", row["_id"])
    if stored is not None and not stored.deleted:
        resource = {**stored.resource(), "status": "terminated"}
        await interactions.update(context, "Contract", row["_id"], resource)
    await contract_deadlines.forget(context, row["_id"])
    await contract_parties.forget(context, row["_id"])
    await contract_rows(context).delete_one({"_id": row["_id"]})


async def _switch_off(context: Context, subscription: str) -> None:
    stored = await context.store.read("Subscription", subscription)
    if stored is not None and not stored.deleted and stored.resource()["status"] != "off":
        resource = {**stored.resource(), "status": "off"}
        await interactions.update(context, "Subscription", subscription, resource)


def _topics(context: Context, terms: ContractTerms, faults: Sequence[Issue] = ()) -> list[Topic]:
    """The topics by name under the topic base, or by canonical.

    Raises Unprocessable for one that is unknown, and for `faults` that were found before.
    """
    catalogue = context.services.get(SubscriptionRegistry).catalogue
    base = context.settings.topic_base.rstrip("/")
    found, issues = [], list(faults)
    for index, name in enumerate(terms.topics):
        topic = catalogue.find(name if ":" in name else f"{base}/{name}")
        if topic is None:
            issues.append(Issue("not-found", f"There is no topic {name}", (f"topics[{index}]",)))
        elif not any("group" in filters for filters in topic.filters.values()):
            issues.append(
                Issue(
                    "not-supported",
                    f"The topic {name} cannot be filtered by group",
                    (f"topics[{index}]",),
                )
            )
        else:
            found.append(topic)
    if issues:
        raise Unprocessable(issues=issues)
    return found


def _subscription(terms: ContractTerms, topic: Topic, topics: Sequence[Topic]) -> Resource:
    """The Subscription of one of the contract's topics; its id is always the same.

    An admission to a nursing facility is left to the topic of these where the contract has it, so that it is told once.
    """
    filters = [f"group={terms.group}"]
    if classes := _classes(terms, topic):
        filters.append(f"class={','.join(classes)}")
    if _name(topic) == ADMISSION and any(_is_of_nursing_facilities(each) for each in topics):
        filters.append(f"facility-type={','.join(_NO_NURSING_FACILITY)}")
    channel: dict[str, Any] = {
        "type": terms.channel.type,
        "endpoint": terms.channel.endpoint,
        "payload": terms.channel.mime_type,
        "_payload": {"extension": [{"url": PAYLOAD_CONTENT, "valueCode": terms.payload}]},
    }
    if terms.channel.headers:
        channel["header"] = list(terms.channel.headers)
    return {
        "resourceType": "Subscription",
        "id": stable_id("contract-subscription", terms.id, topic.canonical),
        "meta": {
            "tag": [
                {"system": SUBSCRIPTION_ORIGIN, "code": "contract"},
                {"system": SUBSCRIPTION_OWNER, "code": f"Contract/{terms.id}"},
            ]
        },
        "extension": [
            {"url": SUBSCRIPTION_RECIPIENT, "valueReference": {"reference": terms.recipient}},
            {"url": RECIPIENT_KIND, "valueCode": "authority"},
        ],
        "status": "requested",
        "reason": f"Kept by the server for Contract/{terms.id}",
        "criteria": topic.canonical,
        "_criteria": {
            "extension": [{"url": FILTER_CRITERIA, "valueString": each} for each in filters]
        },
        "channel": channel,
    }


async def _differs(context: Context, wanted: Resource) -> bool:
    """Whether the stored Subscription differs, or is off or in error; header values are compared too."""
    stored = await context.store.read("Subscription", wanted["id"])
    if stored is None or stored.deleted:
        return True
    known = stored.resource()
    if known["status"] in ("off", "error"):
        return True
    return not await is_as_wanted(context.store, wanted, known, context.settings)


async def _headers(context: Context, subscription: str) -> list[str]:
    """The headers of a stored Subscription with their values."""
    return await secret_headers.of(context.store, "Subscription", subscription, context.settings)


async def _unmasked(
    context: Context, terms: ContractTerms, before: Document | None
) -> ContractTerms:
    """The terms with stored headers in place of masked ones. Raises Unprocessable where the endpoint is another one."""
    if not any(header.endswith(MASK) for header in terms.channel.headers):
        return terms
    known: list[str] = []
    if before is not None and before["terms"]["channel"]["endpoint"] == terms.channel.endpoint:
        known = await _headers(context, before["subscriptions"][0])
    by_mask = {mask(header): header for header in known}
    headers = [by_mask.get(each, each) for each in terms.channel.headers]
    if any(header.endswith(MASK) for header in headers):
        raise Unprocessable(
            "A masked value needs the header itself here",
            code="value",
            expression="channel.headers",
        )
    channel = terms.channel.model_copy(update={"headers": tuple(headers)})
    return terms.model_copy(update={"channel": channel})


def _contract(terms: ContractTerms, topics: Sequence[Topic]) -> Resource:
    names = ", ".join(topic.resource.get("title", topic.url) for topic in topics)
    assets = _assets(terms, topics)
    text = (
        f"Notices ({names}) about the members of {terms.group} go to {terms.recipient} "
        f"within {terms.deadline:g} hours of the event."
    )
    return {
        "resourceType": "Contract",
        "id": terms.id,
        "extension": [
            {"url": CONTRACT_DEADLINE, "valueDuration": _hours(terms.deadline)},
            {"url": CONTRACT_ALERT, "valueDuration": _hours(terms.alert_before)},
        ],
        "identifier": [{"system": CONTRACT_ID, "value": terms.id}],
        "status": "executed",
        "subject": [{"reference": each} for each in (terms.group, terms.plan) if each],
        "authority": [{"reference": terms.recipient}],
        "title": terms.title,
        "term": [{"offer": {"text": text}} | ({"asset": assets} if assets else {})],
    }


def _assets(terms: ContractTerms, topics: Sequence[Topic]) -> list[Resource]:
    """What the topics about stays are about and carry, and what the others are: the classes are those of the former."""
    of_stays = [each for each in topics if "Encounter" in each.resource_types]
    others = [each for each in topics if each not in of_stays]
    found: list[Resource] = []
    for some in (of_stays, others):
        if types := _types(terms, some):
            codings = [{"system": RESOURCE_TYPE, "code": each} for each in types]
            found.append({"type": [{"coding": codings}]})
            if stays := _stays(terms, some):
                found[-1]["subtype"] = [{"coding": stays}]
    return found


def _types(terms: ContractTerms, topics: Sequence[Topic]) -> list[str]:
    """The types of records that the recipient needs: those of the events, and in full all that their notices carry."""
    found = dict.fromkeys(each for topic in topics for each in topic.resource_types)
    if terms.payload == "full-resource":
        for topic in topics:
            found |= dict.fromkeys(topic.carried_types)
            for each in topic.resource_types:
                found |= dict.fromkeys(_BESIDE.get(each, ()))
    return [each for each in found if room_of(each) == "record"]


def _stays(terms: ContractTerms, topics: Sequence[Topic]) -> list[Resource]:
    """The classes of the stays that the topics are about, and nursing facilities; empty where any stay is."""
    found: dict[tuple[str, str], None] = {}
    for topic in topics:
        if _is_of_nursing_facilities(topic):
            found[ROLE_CODE, "SNF"] = None
        elif classes := _classes(terms, topic):
            found |= dict.fromkeys((ACT_CODE, each) for each in classes)
        elif "Encounter" in _types(terms, [topic]):
            return []
    return [{"system": system, "code": code} for system, code in found]


def _classes(terms: ContractTerms, topic: Topic) -> tuple[str, ...]:
    """The classes of stays that count for a topic; empty where every class does."""
    takes_class = any("class" in each for each in topic.filters.values())
    return terms.classes if takes_class and not _is_of_nursing_facilities(topic) else ()


def _is_of_nursing_facilities(topic: Topic) -> bool:
    return _name(topic) == SNF_ADMISSION


def _name(topic: Topic) -> str:
    return topic.url.rpartition("/")[2]


def _hours(count: float) -> Resource:
    unit = {"unit": "hours", "system": "http://unitsofmeasure.org", "code": "h"}
    return {"value": Decimal(f"{count:g}"), **unit}


def _shown(row: Document) -> Document:
    return {
        **row["terms"],
        "origin": row["origin"],
        "resources": [
            f"Contract/{row['_id']}",
            *(f"Subscription/{each}" for each in row["subscriptions"]),
        ],
    }
