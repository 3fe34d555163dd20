"""The recipient of a Subscription's notices."""

from __future__ import annotations

from app.attribution.claims import relative
from app.consent.recipients import RecipientKind
from app.fhir.codes import RECIPIENT_KIND, SUBSCRIPTION_RECIPIENT
from app.fhir.json import Resource
from app.subscriptions.matching.registration import FILTER_CRITERIA
from app.subscriptions.topics.topics import query_parameters

_FILTER = "general-practitioner"


def recipient_of(subscription: Resource) -> str | None:
    """The reference that the Subscription names as its recipient, else the only PCP that it filters by, else None."""
    for extension in subscription.get("extension", ()):
        if extension.get("url") == SUBSCRIPTION_RECIPIENT:
            reference: str | None = extension.get("valueReference", {}).get("reference")
            return reference
    named = panels_of(subscription)
    return named[0] if len(named) == 1 else None


def reference_of(subscription: Resource, base_url: str) -> str | None:
    """The recipient as a relative reference (`Practitioner/p1`); None also for one that Consents could not name."""
    return relative(recipient_of(subscription), base_url)


def kind_of(subscription: Resource) -> RecipientKind:
    """The kind of recipient that a Subscription states; `provider` by default."""
    said = {
        extension.get("valueCode")
        for extension in subscription.get("extension", ())
        if extension.get("url") == RECIPIENT_KIND
    }
    return "authority" if said == {"authority"} else "provider"


def panels_of(subscription: Resource) -> list[str]:
    """The PCPs that the Subscription filters by, as it names them; empty without such a filter."""
    return sorted(
        {
            value
            for extension in subscription.get("_criteria", {}).get("extension", ())
            if extension.get("url") == FILTER_CRITERIA
            for value in _named(extension.get("valueString", ""))
        }
    )


def _named(filter_: str) -> list[str]:
    """The values of a `general-practitioner` filter, in any of the forms that filters have."""
    try:
        parameters = query_parameters(filter_.partition("?")[2] or filter_)
    except ValueError:
        return []
    return [
        value
        for name, values in parameters
        if name.rpartition(".")[2] == _FILTER
        for value in values.split(",")
    ]
