"""The practices that are responsible for a plan's patient now, and by which Subscriptions they hear of the plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from app.attribution import attribution
from app.attribution.derived import PCP
from app.attribution.practices import Provider
from app.context import Context
from app.settings import Settings
from app.subscriptions.matching.registry import SubscriptionRegistry

CHANGE_TOPIC = "careplan-change"


def canonical(settings: Settings, topic: str) -> str:
    """The URL of one of the server's own topics."""
    return settings.topic_base.rstrip("/") + "/" + topic


async def providers(context: Context, patient: str) -> tuple[Provider, ...]:
    """The primary care providers of a patient, with their Endpoints."""
    now = context.services.clock.now()
    found = await attribution.primary_care(context.services.store, patient, now, context.settings)
    return found.providers


async def listening(context: Context, patient: str | None) -> list[str]:
    """The references of a patient's providers by which a current Subscription hears of plans."""
    if patient is None:
        return []
    return heard(context, await providers(context, patient))


def heard(context: Context, found: Iterable[Provider]) -> list[str]:
    """Of the references of providers those by which a current Subscription hears of plans."""
    every = dict.fromkeys(each for provider in found for each in provider.references)
    return sorted(each for each in every if subscriptions(context, [each]))


def subscriptions(context: Context, references: Collection[str]) -> set[str]:
    """The current Subscriptions to changes of plans that name one of these providers as their filter."""
    registry = context.services.get(SubscriptionRegistry)
    topic = canonical(context.settings, CHANGE_TOPIC)
    return {
        each
        for each in registry.index.requiring(f"{PCP}={name}" for name in references)
        if registry.delivery_mode(each) != "ended"
        and (known := registry.get(each)) is not None
        and known.criteria.scope == topic
    }
