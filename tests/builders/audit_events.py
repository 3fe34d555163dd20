"""How tests look at the audit: its AuditEvents, and a database that takes none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tests.conftest import BASE, Server

# Types and roles of entities.
PATIENT, DATA, REPORT, JOB, QUERY = ("1", "1"), ("2", "4"), ("2", "3"), ("2", "20"), ("2", "24")


async def events(client: httpx.AsyncClient, **parameters: str) -> list[dict[str, Any]]:
    """The AuditEvents that a search finds, the newest first, over all pages."""
    answer = await client.get(f"{BASE}/AuditEvent", params=parameters)
    assert answer.status_code == 200, answer.text
    found = []
    while True:
        bundle = answer.json()
        found += [entry["resource"] for entry in bundle.get("entry", ())]
        following = [link["url"] for link in bundle["link"] if link["relation"] == "next"]
        if not following:
            return found
        answer = await client.get(following[0])
        assert answer.status_code == 200, answer.text


def entities(event: dict[str, Any], type_: str, role: str) -> list[dict[str, Any]]:
    return [
        entity
        for entity in event.get("entity", ())
        if (entity["type"]["code"], entity.get("role", {}).get("code")) == (type_, role)
    ]


def codes(event: dict[str, Any]) -> list[str]:
    return [coding["code"] for coding in event["subtype"]]


@asynccontextmanager
async def refusing_rows(server: Server, taken: dict[str, Any] | None = None) -> AsyncIterator[None]:
    """While it is open, the database takes no row of the audit but what the filter `taken` finds."""

    async def set_validator(rule: dict[str, Any]) -> None:
        await server.mongo.db.command({"collMod": "audit", "validator": rule})

    await set_validator(taken or {"never": {"$exists": True}})
    try:
        yield
    finally:
        await set_validator({})
