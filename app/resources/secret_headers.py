"""Headers that hold secrets: Subscription.channel.header and Endpoint.header.

What is stored and shown has their values masked. The values lie beside the current version, sealed, and go back to the
writer alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import Issue, Unprocessable
from app.network.egress_policy import origin
from app.records.reader import Reader
from app.runtime import secrets
from app.runtime.masking import MASK, mask
from app.runtime.mongo import Document
from app.settings import Settings


def masked(headers: Iterable[Any]) -> list[Any]:
    """The headers as they are stored; what is null has an extension in its place, and stays."""
    return [mask(header) if isinstance(header, str) else header for header in headers]


def sealed(headers: Iterable[Any], settings: Settings) -> list[str]:
    """The headers as they lie in `private`. Raises SecretsError where there is no key that can be used."""
    texts = [header for header in headers if isinstance(header, str)]
    return secrets.of_settings(settings).seal_all(texts) if texts else []


def opened(private: Document, settings: Settings) -> list[str]:
    """The headers in the `private` fields of a version. Raises SecretsError where their key is not there."""
    kept: list[str] = private.get("headers", [])
    return secrets.of_settings(settings).open_all(kept) if kept else []


@dataclass(frozen=True, slots=True)
class Known:
    """What is stored of a resource: its `private` fields, and its address while it is not deleted."""

    private: Document
    address: str | None


async def private_of(store: Reader, resource_type: str, resource_id: str) -> Document:
    """The `private` fields of a current version. `store` is without a caller's limits: nobody may see these values."""
    found = await store.find(resource_type, {"_id": resource_id}, projection={"private": 1})
    private: Document = found[0].get("private", {}) if found else {}
    return private


async def of(store: Reader, resource_type: str, resource_id: str, settings: Settings) -> list[str]:
    """The headers of a current version with their values. Raises SecretsError where their key is not there."""
    return opened(await private_of(store, resource_type, resource_id), settings)


def are_known(headers: Iterable[Any], private: Document, settings: Settings) -> bool:
    """Whether these headers, with their values, are those in `private`; not so where their key is not there."""
    texts = [header for header in headers if isinstance(header, str)]
    try:
        return texts == opened(private, settings)
    except secrets.SecretsError:
        return False


def unmasked(
    sent: Sequence[Any], known: Known, address: str | None, settings: Settings, *, path: str
) -> list[Any]:
    """The headers with known values in place of masks, so that a client can send back what it has read.

    Only towards the origin that knows them: another `address` would receive the old one's secret. Raises Unprocessable,
    naming the element at `path`, for a mask without a value.
    """
    headers = list(sent)
    masks = [
        i for i, header in enumerate(sent) if isinstance(header, str) and header.endswith(MASK)
    ]
    if not masks:
        return headers
    is_same_origin = known.address is not None and origin(known.address) == origin(address or "")
    left = opened(known.private, settings) if is_same_origin else []
    for index in masks:
        value = next((each for each in left if mask(each) == headers[index]), None)
        if value is None:
            diagnostics = "A masked value needs the header itself here"
            raise Unprocessable(issues=[Issue("value", diagnostics, (f"{path}[{index}]",))])
        left.remove(value)
        headers[index] = value
    return headers
