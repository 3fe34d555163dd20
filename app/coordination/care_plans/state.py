"""A care plan as its recipient knows it: the plan with its goals, activities, care teams and risk tier at one moment.

A state is named by the versions it is made of, so it can be read again at any time. What the plan names counts only as
far as it is about the plan's patient, or directory: whoever writes a plan must not learn by it of others. What the
server itself tells of a plan is written once for many, so what the patient has refused to any provider is not in it,
nor that there is a confidential record which somebody else than the plan's maker made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app.authentication.caller import SERVER
from app.authorization.subject_store import IsTold, is_everybodys
from app.consent import labels
from app.context import Context
from app.coordination.care_plans.wording import codes, is_restricted, key_of, kind, title
from app.fhir.json import Resource
from app.interactions.references import split
from app.records.reader import Reader, ResourceStore
from app.records.versions import HistoryRange, ResourceVersion

RISK_TIER = "risk-tier"
# One patient has a few of each; more would be a mistake in the data.
_MOST_FLAGS = 200


@dataclass(frozen=True, slots=True)
class PlanState:
    """`others`: the `followed` resources and flags, by relative reference; `versions`: of all, the plan included."""

    plan: Resource
    others: Mapping[str, Resource] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)

    def find(self, key: str) -> Resource | None:
        """The resource that a reference of the plan leads to, contained ones included."""
        if key.startswith("#"):
            return next(
                (each for each in self.plan.get("contained", ()) if each.get("id") == key[1:]), None
            )
        return self.others.get(key)

    def referred(self, element: str) -> dict[str, Mapping[str, Any]]:
        """The plan's References in an element, by their keys."""
        return {key_of(each): each for each in self.plan.get(element, ()) if key_of(each)}

    @property
    def flags(self) -> list[Resource]:
        """The flags that state a risk tier."""
        return [each for key, each in sorted(self.others.items()) if key.startswith("Flag/")]


def is_tier(flag: Resource | None) -> bool:
    """Whether a Flag states the member's risk tier."""
    return flag is not None and RISK_TIER in codes(flag.get("category"))


def followed(plan: Resource) -> list[str]:
    """The resources whose changes are changes of the plan, as far as it refers to them."""
    found = [key_of(each) for each in (*plan.get("goal", ()), *plan.get("careTeam", ()))]
    found += [key_of(each.get("reference")) for each in plan.get("activity", ())]
    found += [
        key_of(each)
        for each in plan.get("supportingInfo", ())
        if key_of(each).startswith("RiskAssessment/")
    ]
    return sorted({key for key in found if split(key) is not None})


def subject_of(plan: Resource) -> str | None:
    """The patient, as a relative reference."""
    key = key_of(plan.get("subject"))
    return key if key.startswith("Patient/") and split(key) else None


def of_plan(context: Context, plan: Resource) -> Context:
    """The context as far as it is about the plan's patient."""
    patient = subject_of(plan)
    return context.about([patient] if patient else [], f"CarePlan/{plan['id']}")


async def store_of(context: Context, plan: Resource) -> ResourceStore:
    """What a plan's state and document are read from: what is about its patient, as far as it may be told.

    Of a plan that is refused itself nothing is written. That it changed counts all the same: the event is withheld from
    each recipient, with the Consent as the reason.
    """
    own = of_plan(context, plan)
    judge = await _judge_of(context, plan)
    if judge is None or not _tells(judge, plan):
        return own.store
    return own.telling(judge).store


async def is_told(context: Context, plan: Resource) -> bool:
    """Whether the plan itself may be told to whoever reads what the server writes about it."""
    judge = await _judge_of(context, plan)
    return judge is None or _tells(judge, plan)


async def may_be_told_with(context: Context, earlier: Resource, later: Resource) -> bool:
    """Whether an earlier plan may be told of wherever a later one is told that replaces it.

    It may neither be refused nor be the more confidential one, nor be hidden from whoever wrote the later one.
    """
    own, other = labels.of(earlier), labels.of(later)
    if labels.level(own) > labels.level(other) or not own & labels.SENSITIVE <= other:
        return False
    stored = await of_plan(context, earlier).store.read("CarePlan", earlier["id"])
    if stored is None or not await without_hidden(context, later, [stored]):
        return False
    return await is_told(context, earlier)


def _tells(judge: IsTold, plan: Resource) -> bool:
    return judge(f"CarePlan/{plan['id']}", labels.of(plan))


async def _judge_of(context: Context, plan: Resource) -> IsTold | None:
    """The judge of what the server itself tells of a plan; for a client its own store has judged."""
    patient = subject_of(plan)
    if context.caller != SERVER or patient is None:
        return None
    return await context.services.accesses.disclosure.to_any_provider(patient)


async def current(context: Context, plan: ResourceVersion) -> PlanState:
    """The plan in this version with the other resources as they are now."""
    resource = plan.resource()
    store = await store_of(context, resource)
    keys = [target for key in followed(resource) if (target := split(key))]
    stored = dict(await store.read_many(keys))
    for flag in await _flags(store, subject_of(resource)):
        stored[flag.reference] = flag
    return _state(plan, resource, await without_hidden(context, resource, stored.values()))


async def pinned(context: Context, plan_id: str, versions: Mapping[str, int]) -> PlanState | None:
    """The state made of these versions; None where the plan's is no longer stored."""
    plan = await _version(context.store, f"CarePlan/{plan_id}", versions)
    if plan is None:
        return None
    resource = plan.resource()
    store = await store_of(context, resource)
    found = [
        stored
        for key in versions
        if not key.startswith("CarePlan/")
        and (stored := await _version(store, key, versions)) is not None
    ]
    return _state(plan, resource, await without_hidden(context, resource, found))


async def at_time(context: Context, plan_id: str, moment: datetime) -> PlanState | None:
    """The state at a moment, or with the plan's first version where it is younger; None for an unknown plan."""
    plan = await _as_of(context.store, "CarePlan", plan_id, moment)
    if plan is None:
        plan = await context.store.vread("CarePlan", plan_id, 1)
    if plan is None or plan.deleted:
        return None
    resource = plan.resource()
    store = await store_of(context, resource)
    moment = max(moment, plan.at)
    keys = followed(resource)
    keys += [flag.reference for flag in await _flags(store, subject_of(resource), ended=True)]
    found = []
    for key in keys:
        target = split(key)
        stored = await _as_of(store, *target, moment) if target else None
        if stored is not None:
            found.append(stored)
    return _state(plan, resource, await without_hidden(context, resource, found))


def is_of_same_patient(one: PlanState, other: PlanState) -> bool:
    """Whether two states of a plan are about one patient: a plan may have been moved from somebody else."""
    return subject_of(one.plan) == subject_of(other.plan)


async def names_of(
    context: Context, plan: Resource, resources: Iterable[Resource]
) -> dict[str, str]:
    """The names of the resources that these, of a plan's state, refer to, by relative reference.

    A role is called by its practitioner, else by its practice, and what is about a medication by that. Where the
    patient refuses something, what cannot be read is not called by what a reference says of it: that would be its name.
    """
    named = {key for each in resources for key in _references(each)}
    found = await _told_of(context, plan, named)
    behind = {key: _behind(resource) for key, resource in found.items()}
    keys = {key_of(each) for references in behind.values() for each in references}
    others = await _told_of(context, plan, keys)
    names = {key: title(resource) for key, resource in found.items()}
    for key, references in behind.items():
        called = (_called(each, others) for each in references)
        names[key] = next(filter(None, called), names[key])
    if await _judge_of(context, plan) is not None:
        absent = (key for key in {*named, *keys} - {*found, *others} if _is_of_patients(key))
        names |= {key: kind({"reference": key}) for key in absent}
    return {key: name for key, name in names.items() if name}


def _is_of_patients(key: str) -> bool:
    target = split(key)
    return target is not None and not is_everybodys(target[0])


def _called(reference: Mapping[str, Any], others: Mapping[str, Resource]) -> str:
    target = others.get(key_of(reference))
    return (title(target) if target else "") or str(reference.get("display", ""))


async def _told_of(context: Context, plan: Resource, keys: Iterable[str]) -> dict[str, Resource]:
    """The current resources of these references that are told of in a plan.

    Of deleted ones the last version counts where it is restricted: its name is no more told than before.
    """
    targets = [target for key in sorted(keys) if (target := split(key))]
    store = await store_of(context, plan)
    found = await store.read_many(targets)
    live = [each for each in found.values() if not each.deleted]
    told = {each.reference: each.resource() for each in await without_hidden(context, plan, live)}
    for each in found.values():
        last = await store.vread(each.type, each.id, each.version - 1) if each.deleted else None
        if last is not None and not last.deleted and is_restricted(resource := last.resource()):
            told[each.reference] = resource
    return told


def _behind(resource: Resource) -> list[Mapping[str, Any]]:
    """The references to what a resource is called by, the best first; none where it has a name of its own."""
    if is_restricted(resource):
        return []
    match resource["resourceType"]:
        case "PractitionerRole":
            elements: tuple[str, ...] = ("practitioner", "organization")
        case "MedicationRequest" | "MedicationStatement":
            elements = ("medicationReference",)
        case _:
            return []
    return [resource[each] for each in elements if each in resource]


async def without_hidden(
    context: Context, plan: Resource, versions: Iterable[ResourceVersion]
) -> list[ResourceVersion]:
    """Those that the server tells of in a plan: of confidential ones those that the plan's maker made.

    Who writes a plan would learn by naming any other that it is there, and when it changes. For a client its own store
    has judged.
    """
    every = list(versions)
    closed = [each for each in every if not each.deleted and is_restricted({"meta": each.meta()})]
    if context.caller != SERVER or not closed:
        return every
    keys = [("CarePlan", plan["id"]), *((each.type, each.id) for each in closed)]
    # Who made something is known of its current version.
    current = await context.store.read_many(keys)
    makers = {reference: each.custodian for reference, each in current.items()}
    maker = makers.get(f"CarePlan/{plan['id']}")
    hidden = {each.reference for each in closed if makers.get(each.reference) != maker}
    return [each for each in every if each.reference not in hidden]


def _references(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield key_of(value)
        for child in value.values():
            yield from _references(child)
    elif isinstance(value, list):
        for child in value:
            yield from _references(child)


def _state(
    plan: ResourceVersion, resource: Resource, stored: Iterable[ResourceVersion]
) -> PlanState:
    live = [each for each in stored if not each.deleted]
    versions = {each.reference: each.version for each in live}
    return PlanState(
        resource,
        {each.reference: each.resource() for each in live},
        {**versions, plan.reference: plan.version},
    )


async def _version(store: Reader, key: str, versions: Mapping[str, int]) -> ResourceVersion | None:
    resource_type, _, resource_id = key.partition("/")
    stored = await store.vread(resource_type, resource_id, versions.get(key, 0))
    return None if stored is None or stored.deleted else stored


async def _as_of(
    store: Reader, resource_type: str, resource_id: str, moment: datetime
) -> ResourceVersion | None:
    """The version that was current at a moment; None where there was none yet or it was deleted."""
    range_ = HistoryRange(resource_type, resource_id, until=moment)
    found = await store.history(range_, 1)
    return found[0] if found and not found[0].deleted else None


async def _flags(
    store: Reader, patient: str | None, *, ended: bool = False
) -> list[ResourceVersion]:
    """The flags that state a patient's risk tier; with `ended` also those that no longer hold."""
    if patient is None:
        return []
    found = await store.search("Flag", {"terms": f"subject={patient}"}, _MOST_FLAGS)
    return [
        each
        for each in found
        if is_tier(flag := each.resource()) and (ended or flag.get("status") == "active")
    ]
