"""Bundles for the batch and transaction doors, and what goes into them."""

from __future__ import annotations

from typing import Any

from tests.builders.subscriptions import ACT_CODE

Resource = dict[str, Any]


def bundle(*entries: Resource, type: str = "transaction") -> Resource:
    return {"resourceType": "Bundle", "type": type, "entry": list(entries)}


def entry(
    method: str,
    url: str,
    resource: Resource | None = None,
    full_url: str | None = None,
    **request: str,
) -> Resource:
    made: Resource = {"request": {"method": method, "url": url, **request}}
    if resource is not None:
        made["resource"] = resource
    if full_url is not None:
        made["fullUrl"] = full_url
    return made


def patient(**changes: Any) -> Resource:
    return {"resourceType": "Patient", "active": True, **changes}


def identified(value: str, **changes: Any) -> Resource:
    return patient(identifier=[{"system": "urn:test", "value": value}], **changes)


def condition(subject: str, **changes: Any) -> Resource:
    return {"resourceType": "Condition", "subject": {"reference": subject}, **changes}


def visit(subject: str, number: str, **changes: Any) -> Resource:
    return {
        "resourceType": "Encounter",
        "identifier": [{"system": "urn:visit", "value": number}],
        "status": "in-progress",
        "class": {"system": ACT_CODE, "code": "IMP"},
        "subject": {"reference": subject},
        **changes,
    }
