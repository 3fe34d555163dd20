"""The watch over the suite's logs hears what it must, and takes nobody's name out of ordinary words."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.log_watch import WATCH
from tests.processes import started

log = logging.getLogger("app.somewhere.in.the.server")

MEMBER = {
    "resourceType": "Patient",
    "name": [{"family": "Vörlandt-O'Quist", "given": ["Ysolde Marit"]}],
    "birthDate": "1937-08-29",
    "identifier": [{"system": "urn:member", "value": "MX-40917/3"}],
    "telecom": [{"system": "phone", "value": "+1 555 0177 231"}],
    "address": [{"line": ["7 Quernmoor Lane"], "city": "Tarnhollow"}],
}


@pytest.fixture
async def heard(client: httpx.AsyncClient) -> None:
    """A member was stored and searched for, by somebody with a token, alone and in a Bundle."""
    (await client.post("/Patient", json=MEMBER)).raise_for_status()
    in_xml = (
        '<Patient xmlns="http://hl7.org/fhir"><name><family value="Grünspeck"/></name></Patient>'
    )
    media_type = {"Content-Type": "application/fhir+xml"}
    (await client.post("/Patient", content=in_xml, headers=media_type)).raise_for_status()
    await client.get("/Patient?birthdate=ge1936-11-07&phone=sys|8005550144")
    await client.post("/Patient/_search", data={"address-city": "Ulmenfurt,Drossach"})
    url = "Patient?general-practitioner.name=Harkenwald"
    entry = {"request": {"method": "GET", "url": url}}
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    await client.post("/", json=batch, headers={"Authorization": "Basic cXVlcm46bW9vcg=="})


@contextmanager
def noticed() -> Iterator[list[str]]:
    """What the watch notices meanwhile; this test is not failed by it."""
    before, WATCH.leaks = WATCH.leaks, []
    yield WATCH.leaks
    WATCH.leaks = before


SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "family": ("no such member: VÖRLANDT-O'QUIST", {}),
    "family-in-xml": ("for grünspeck", {}),
    "given": ("hello Marit, again", {}),
    "in-a-document": ("{'family': \"Vörlandt-O'Quist\"}", {}),
    "birth-date": ("born 1937-08-29", {}),
    "identifier": ("duplicate key urn:member|MX-40917/3", {}),
    "phone": ("called +1 555 0177 231", {}),
    "street": ("at 7 Quernmoor Lane", {}),
    "city": ("from tarnhollow", {}),
    "search-date": ("birthdate=ge1936-11-07 is slow", {}),
    "search-token": ("terms: sys|8005550144", {}),
    "search-by-post": ("no index for Drossach", {}),
    "search-in-a-bundle": ("GET Patient?general-practitioner.name=Harkenwald", {}),
    "secret": ("who is cXVlcm46bW9vcg==?", {}),
    "bearer": ("Authorization: Bearer practice-1", {}),
    "token": ("refused eyJhbGciOiJFUzM4NCJ9", {}),
    "attached": ("failed", {"name_of": "Tarnhollow"}),
    "of-the-examples": ("Agnes Thistlewick", {}),
}


@pytest.mark.parametrize("name", SAID)
@pytest.mark.usefixtures("heard")
def test_what_is_somebodys_is_noticed(name: str) -> None:
    text, attached = SAID[name]
    with noticed() as leaks:
        log.info(text, extra=attached)
        assert len(leaks) == 1
        with pytest.raises(AssertionError, match="somebody's data in the log"):
            WATCH.verify()


ORDINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": ("export failed", {"action": "export", "error": "KeyError"}),
    "part-of-a-name": ("the quist of it", {}),
    "part-of-a-date": ("37 rows on 1937-08", {}),
    "longer": ("MX-40917/31", {}),
    "logical-id": ("reaction failed", {"id": "tarnhollow-1"}),
}


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.usefixtures("heard")
def test_what_is_nobodys_is_not(name: str) -> None:
    text, attached = ORDINARY[name]
    with noticed() as leaks:
        log.warning(text, extra=attached)
    assert leaks == []


@pytest.mark.usefixtures("heard")
def test_of_an_exception_only_what_the_server_writes_counts() -> None:
    """Its text stays out; the lines of code where it was raised are nobody's."""
    with noticed() as leaks:
        try:
            raise LookupError("Tarnhollow")
        except LookupError:
            log.exception("failed")
        assert leaks == []
        log.error("failed: %s", LookupError("Tarnhollow"))
    assert len(leaks) == 1


@pytest.mark.usefixtures("heard")
def test_what_a_child_process_prints_is_heard() -> None:
    script = "import sys; print('up: 1', flush=True); print('Tarnhollow', file=sys.stderr)"
    with (
        noticed() as leaks,
        started("up: ", command=(sys.executable, "-c", script)) as (child, _),
    ):
        child.wait()
    assert len(leaks) == 1
