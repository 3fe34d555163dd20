"""What is more at once than one row of the audit holds: every entry is kept, in rows that are linked as all are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.audit.entry import PATIENTS_AT_ONCE
from app.audit.hash_chain import ENTRIES_A_ROW
from tests.audit.test_audit import check, put_patient
from tests.builders.audit_events import events, refusing_rows
from tests.builders.practices import group, patient
from tests.conftest import BASE, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Pair = tuple[Server, httpx.AsyncClient]
MORE = ENTRIES_A_ROW + 1
# Each entry names so many patients: of this roster, one row does not hold the entries.
MEMBERS = PATIENTS_AT_ONCE * ENTRIES_A_ROW + 1


@pytest.fixture
async def recorded(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod, audit="required")) as pair:
        yield pair


@pytest.fixture(scope="module")
async def roster(mongod: str) -> AsyncIterator[Pair]:
    """A server with a Group of 100,001 members, and a patient who is none."""
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        made = group("all", *(f"Patient/m{number:06}" for number in range(MEMBERS)))
        answer = await client.put(f"{BASE}/Group/all", json=made)
        assert answer.status_code == 201, answer.text
        yield server, client


def people(begin: int, end: int) -> dict[str, Any]:
    """A transaction that writes the patients of these numbers."""
    entries = [
        {"request": {"method": "PUT", "url": f"Patient/t{n}"}, "resource": patient(f"t{n}")}
        for n in range(begin, end)
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


async def written(server: Server, what: str, about: str) -> list[dict[str, Any]]:
    """The rows of the audit with entries of a kind about such resources."""
    filter_ = {"each": {"$elemMatch": {"what": what, "k": {"$regex": f"^e:{about}"}}}}
    found = await server.mongo.collection("audit").find(filter_).to_list(None)
    return list(found)


async def named(roster: Pair, what: str) -> list[int]:
    """How often three members are named: the first two by entries of a first row, the last by a second row's."""
    numbers = (0, MEMBERS - 2, MEMBERS - 1)
    found = [await events(roster[1], patient=f"m{each:06}", subtype=what) for each in numbers]
    return [len(each) for each in found]


async def test_each_change_of_a_large_transaction_is_on_record(recorded: Pair) -> None:
    server, client = recorded
    for begin, end in ((0, MORE), (MORE, MORE + 2 * ENTRIES_A_ROW + 1)):
        answer = await client.post(BASE, json=people(begin, end))
        assert answer.status_code == 200, answer.text
        for number in (begin, begin + ENTRIES_A_ROW - 1, begin + ENTRIES_A_ROW, end - 1):
            found = await events(client, entity=f"Patient/t{number}", subtype="update")
            assert len(found) == 1, number
    rows = await written(server, "update", "Patient/t")
    assert sorted(len(row["each"]) for row in rows) == [1, 1, *[ENTRIES_A_ROW] * 3]
    about = {key for row in rows for each in row["each"] for key in each["k"] if key[:2] == "p:"}
    assert about == {f"p:t{number}" for number in range(end)}
    # What follows is linked to the last of them.
    assert (await client.get(f"{BASE}/Patient/t0")).status_code == 200
    report = await check(server)
    assert (report.findings, report.unanchored) == ([], 0)


@pytest.mark.processes
async def test_a_read_that_tells_of_100_000_is_on_record_for_each(roster: Pair) -> None:
    """It is no part of a transaction: its rows are written by themselves, one after the other."""
    server, client = roster
    assert await named(roster, "update") == [1, 1, 1]
    before = await named(roster, "read")
    assert (await client.get(f"{BASE}/Group/all")).status_code == 200
    assert await named(roster, "read") == [each + 1 for each in before]
    assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
    report = await check(server)
    assert (report.findings, report.unanchored) == ([], 0)


@pytest.mark.processes
async def test_a_read_whose_second_row_is_refused_is_not_answered_and_the_chain_goes_on(
    roster: Pair,
) -> None:
    """The first row is there and stays: what comes next is linked to it."""
    server, client = roster
    before = len(await written(server, "read", "Group/all"))
    async with refusing_rows(server, {f"each.{ENTRIES_A_ROW - 1}": {"$exists": True}}):
        refused = await client.get(f"{BASE}/Group/all")
        assert refused.status_code == 503
        assert_outcome(refused, 503, "transient")
        assert "Patient/m" not in refused.text
    assert len(await written(server, "read", "Group/all")) == before + 1
    assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
    report = await check(server)
    assert (report.findings, report.unanchored) == ([], 0)
