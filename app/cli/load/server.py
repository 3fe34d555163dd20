"""Requests of a load to its server, made again while that is busy."""

from __future__ import annotations

import asyncio

import httpx

from app.cli.load.files import LoadError
from app.cli.load.outcome import reason_of
from app.cli.load.plan import PlanError
from app.fhir import json as fhir_json
from app.fhir.json import Resource

ATTEMPTS = 6
FIRST_PAUSE = 0.2  # seconds before a second attempt; doubled each time unless the server says
FHIR_JSON = "application/fhir+json"
HEADERS = {"Content-Type": FHIR_JSON}
MINIMAL = {"Prefer": "return=minimal"}
_BUSY = frozenset({429, 503})


class FhirServer:
    """A FHIR server as a load needs it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @property
    def base(self) -> str:
        return str(self._client.base_url)

    async def request(
        self, method: str, url: str, body: bytes | None = None, *, may_repeat: bool = True
    ) -> httpx.Response:
        """The answer. Raises LoadError where the server cannot be reached.

        `may_repeat`: sent twice, the request changes no more than sent once. A lost connection may have carried it.
        """
        headers = HEADERS | (MINIMAL if method == "POST" else {})
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            is_last = attempt == ATTEMPTS
            try:
                response = await self._client.request(method, url, content=body, headers=headers)
                if response.status_code not in _BUSY or is_last:
                    break
                asked = response.headers.get("Retry-After", "")
            except httpx.TransportError as error:
                if is_last or not may_repeat or isinstance(error, httpx.ConnectError):
                    raise LoadError(f"{self.base} does not answer: {error}") from None
                asked = ""
            await asyncio.sleep(float(asked) if asked.isdigit() else pause)
            pause *= 2
        return response

    async def exists(self, reference: str) -> bool:
        return (await self.request("GET", reference)).status_code == 200

    async def search(self, query: str, count: int = 2) -> list[Resource]:
        """The matches of a search, `count` at most. Raises PlanError where it is refused."""
        joint = "&" if query.partition("?")[2] else ""
        response = await self.request("GET", f"{query}{joint}_count={count}")
        if response.status_code != 200:
            raise PlanError(f"needs the search {query}: {reason_of(response)}")
        return [
            entry["resource"]
            for entry in fhir_json.decode(response.content).get("entry", [])
            if entry.get("search", {}).get("mode", "match") == "match"
        ]


class Conditional:
    """The records that conditional references mean, each searched for once."""

    def __init__(self, server: FhirServer) -> None:
        self._server = server
        self._found: dict[str, str] = {}

    async def only_match(self, search: str) -> str:
        """The one record. Raises PlanError where there is none, or more than one."""
        if search not in self._found:
            matches = await self._server.search(search)
            if len(matches) != 1:
                count = "no resource" if not matches else "more than one resource"
                raise PlanError(f"refers to {search}, which matches {count}")
            self._found[search] = f"{matches[0]['resourceType']}/{matches[0]['id']}"
        return self._found[search]
