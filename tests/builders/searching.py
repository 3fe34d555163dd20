"""Resources stored together and what a search finds of them, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx

DIV = {"status": "empty", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'}


def ref(reference: str) -> dict[str, str]:
    return {"reference": reference}


async def put(client: httpx.AsyncClient, resources: list[dict[str, Any]]) -> None:
    entries = [
        {
            "resource": {"text": DIV, **each},
            "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
        }
        for each in resources
    ]
    for start in range(0, len(entries), 500):
        bundle = {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": entries[start : start + 500],
        }
        response = await client.post("", json=bundle)
        assert response.status_code == 200, response.text


async def search(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    response = await client.get(url)
    assert response.status_code == 200, response.text
    bundle: dict[str, Any] = response.json()
    return bundle


def ids(bundle: dict[str, Any], mode: str = "match") -> set[str]:
    found = [e["resource"]["id"] for e in bundle.get("entry", ()) if e["search"]["mode"] == mode]
    assert len(found) == len(set(found))
    return set(found)
