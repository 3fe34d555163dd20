"""Every parameter that is a time, at every door that takes one: the same texts are taken and refused everywhere.

https://hl7.org/fhir/R4/datatypes.html#instant; what a text means is in tests/fhir/test_instants.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.receiver import receiving
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

DAY = "2026-05-14"
ADMIN = "http://carerelay.test/admin"
MEASURE = "/Measure/carerelay-notice-timeliness/$evaluate-measure"
ASYNC = {"prefer": "respond-async"}

# Where a parameter is an instant: (path, name, what the issue points at).
SINCE = [
    pytest.param("/_history", "_since", "http._since", id="history-of-all"),
    pytest.param("/Patient/_history", "_since", "http._since", id="history-of-a-type"),
    pytest.param("/Patient/tp/_history", "_since", "http._since", id="history-of-one"),
    pytest.param("/Patient/$everything", "_since", "_since", id="everything-of-all"),
    pytest.param("/Patient/tp/$everything", "_since", "_since", id="everything-of-one"),
    pytest.param("/$export", "_since", "_since", id="export"),
    pytest.param("/Patient/$export", "_since", "_since", id="export-of-patients"),
    pytest.param("/Group/tg/$export", "_since", "_since", id="export-of-a-group"),
    pytest.param("/CarePlan/tc/$changes", "_since", "_since", id="changes"),
]
RANGES = [
    pytest.param("/_history", "_at", "http._at", id="history-of-all"),
    pytest.param("/Patient/_history", "_at", "http._at", id="history-of-a-type"),
    pytest.param("/Patient/tp/_history", "_at", "http._at", id="history-of-one"),
    pytest.param("/Patient/tp/$pcp", "at", "at", id="pcp"),
    pytest.param(f"{ADMIN}/deliveries", "since", "since", id="deliveries-since"),
    pytest.param(f"{ADMIN}/deliveries", "until", "until", id="deliveries-until"),
]
DAYS = [
    pytest.param("/Patient/tp/$everything", "start", id="everything-start"),
    pytest.param("/Patient/tp/$everything", "end", id="everything-end"),
    pytest.param(MEASURE, "periodStart", id="measure-start"),
    pytest.param(MEASURE, "periodEnd", id="measure-end"),
    pytest.param(f"{ADMIN}/reports/notices.csv", "periodStart", id="report-start"),
    pytest.param(f"{ADMIN}/reports/notices.csv", "periodEnd", id="report-end"),
]
# No date and no time of R4, wherever one is asked for.
WRONG = [
    "",
    "monday",
    "20260514T100000Z",
    "20260514",
    f"{DAY} 10:00:00Z",
    f"{DAY}t10:00:00Z",
    f"{DAY}T10:00:00z",
    f"{DAY}T10:00:00",
    f"{DAY}T10:00Z",
    f"{DAY}T10:00:60Z",
    f"{DAY}T24:00:00Z",
    f"{DAY}T10:00:00,5Z",
    f"{DAY}T10:00:00+14:01",
    f"{DAY}T10:00:00+05:75",
    "2026-W20-4T10:00:00Z",
    "2026-W20-4",
    "2026-134T10:00:00Z",
    "2026-134",
    "\uff12\uff10\uff12\uff16-05-14T10:00:00Z",
    "\uff12\uff10\uff12\uff16",
    "0000",
    "0000-01-01T00:00:00Z",
    "2026-02-29",
    "2026-02-29T10:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
]
ARE_INSTANTS = [
    f"{DAY}T10:00:00Z",
    f"{DAY}T10:00:00.123Z",
    f"{DAY}T10:00:00.123456789+14:00",
    "2024-02-29T10:00:00-12:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999Z",
]
ARE_DATES = ["2026", "2026-05", DAY, "2024-02-29", "0001", "9999", "0001-01-01", "9999-12-31"]


@pytest.fixture(scope="module")
async def client(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server with something to ask about at every door."""
    async with running(make_settings(mongod)) as (server, client), receiving() as receiver:
        subject = {"reference": "Patient/tp"}
        plan = {"status": "active", "intent": "plan", "subject": subject}
        group = {"type": "person", "actual": True, "member": [{"entity": subject}]}
        for resource in (
            {"resourceType": "Patient", "id": "tp"},
            {"resourceType": "CarePlan", "id": "tc", **plan},
            {"resourceType": "Group", "id": "tg", **group},
            {"id": "ts", **topic_based(endpoint=receiver.url)},
        ):
            await put(client, resource)
        await server.worker.drain()
        await put(client, {"id": "te", **encounter(patient="tp")})
        await server.worker.drain()
        yield client


async def put(client: httpx.AsyncClient, resource: dict[str, Any]) -> None:
    answer = await client.put(f"/{resource['resourceType']}/{resource['id']}", json=resource)
    assert answer.status_code == 201, answer.text


async def got(client: httpx.AsyncClient, path: str, **query: str) -> httpx.Response:
    if path.endswith(("/$evaluate-measure", "notices.csv")):
        query = {"periodStart": "2026-05", "periodEnd": "2026-05", **query}
    return await client.get(path, params=query, headers=ASYNC if "$export" in path else {})


@pytest.mark.parametrize(("path", "name", "where"), SINCE)
async def test_what_is_no_instant_is_refused(
    client: httpx.AsyncClient, path: str, name: str, where: str
) -> None:
    for text in (*WRONG, *ARE_DATES):
        assert_outcome(await got(client, path, **{name: text}), 400, "value", where)


@pytest.mark.parametrize(("path", "name", "where"), SINCE)
async def test_instants_are_taken(
    client: httpx.AsyncClient, path: str, name: str, where: str
) -> None:
    expected = 202 if "$export" in path else 200
    for text in ARE_INSTANTS:
        answer = await got(client, path, **{name: text})
        assert answer.status_code == expected, (text, answer.text)
        if "$export" in path:  # only so many at once
            await client.delete(answer.headers["content-location"])


@pytest.mark.parametrize(("path", "name", "where"), RANGES)
async def test_what_is_no_date_time_is_refused(
    client: httpx.AsyncClient, path: str, name: str, where: str
) -> None:
    for text in WRONG:
        assert_outcome_of(await got(client, path, **{name: text}), where)


@pytest.mark.parametrize(("path", "name", "where"), RANGES)
async def test_date_times_of_any_precision_are_taken(
    client: httpx.AsyncClient, path: str, name: str, where: str
) -> None:
    for text in (*ARE_INSTANTS, *ARE_DATES):
        answer = await got(client, path, **{name: text})
        assert answer.status_code == 200, (text, answer.text)


@pytest.mark.parametrize(("path", "name"), DAYS)
async def test_what_is_no_date_is_refused(client: httpx.AsyncClient, path: str, name: str) -> None:
    for text in (*WRONG, *ARE_INSTANTS):
        if text or "$everything" in path:
            assert_outcome_of(await got(client, path, **{name: text}), name)


@pytest.mark.parametrize(("path", "name"), DAYS)
async def test_dates_are_taken(client: httpx.AsyncClient, path: str, name: str) -> None:
    both = ("start", "end") if name in ("start", "end") else ("periodStart", "periodEnd")
    for text in ARE_DATES:
        answer = await got(client, path, **dict.fromkeys(both, text))
        assert answer.status_code == 200, (text, answer.text)


def assert_outcome_of(answer: httpx.Response, where: str) -> None:
    """The administrators' API answers with an OperationOutcome too, as plain JSON."""
    assert answer.status_code == 400, answer.text
    (issue,) = answer.json()["issue"]
    assert (issue["code"], issue["expression"]) == ("value", [where])


@pytest.mark.parametrize("name", ["eventsSinceInstant", "eventsUntilInstant"])
async def test_notices_are_sent_again_between_instants(
    client: httpx.AsyncClient, name: str
) -> None:
    for text in (*WRONG[1:], *ARE_DATES):
        answer = await posted(client, "/Subscription/ts/$resend", name, text)
        assert_outcome(answer, 400, "value", name)
    for text in ARE_INSTANTS:
        answer = await posted(client, "/Subscription/ts/$resend", name, text)
        assert answer.status_code == 202, answer.text


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/Patient/tp/$everything", "/CarePlan/tc/$changes"])
async def test_posted_instants_are_judged_as_those_of_a_query(
    client: httpx.AsyncClient, path: str
) -> None:
    for text in (*WRONG[1:], *ARE_DATES):
        assert_outcome(await posted(client, path, "_since", text), 400, "value", "_since")
    for text in ARE_INSTANTS:
        answer = await posted(client, path, "_since", text)
        assert answer.status_code == 200, answer.text


async def posted(client: httpx.AsyncClient, path: str, name: str, text: str) -> httpx.Response:
    """As a string, which is a text type as good as the parameter's own, and which nothing else has judged before."""
    given = [{"name": name, "valueString": text}]
    return await client.post(path, json={"resourceType": "Parameters", "parameter": given})


@pytest.mark.parametrize(
    ("query", "found"),
    [
        pytest.param("_since=2026-05-14T10:00:00+02:00", 200, id="plus-as-it-is"),
        pytest.param("_since=2026-05-14T10:00:00%2B02:00", 200, id="plus-encoded"),
        pytest.param("_at=ge2026-05-14T10:00:00+02:00", 200, id="after-a-prefix"),
        pytest.param("_at=sa2026", 400, id="a-prefix-that-is-none-of-history"),
        pytest.param("_at=gt9999-12-31", 400, id="after-the-end-of-time"),
        pytest.param("_at=lt0001", 400, id="before-its-beginning"),
    ],
)
async def test_a_plus_in_a_query(client: httpx.AsyncClient, query: str, found: int) -> None:
    for path in ("/Patient/tp/_history", "/Patient/tp/$everything"):
        if "$everything" in path and "_at" in query:
            continue
        answer = await client.get(f"{BASE}{path}?{query}")
        assert answer.status_code == found, answer.text


async def test_digits_beyond_the_millisecond_never_leave_out_what_is_in_time(
    client: httpx.AsyncClient,
) -> None:
    """A version that was made in the same millisecond is still found."""
    made = (await client.get("/Patient/tp")).json()["meta"]["lastUpdated"].removesuffix("Z")
    for digits, found in (("", 1), ("0", 1), ("999999", 1)):
        bundle = (await got(client, "/Patient/tp/_history", _since=f"{made}{digits}Z")).json()
        assert bundle["total"] == found


async def test_the_last_day_of_until_counts(client: httpx.AsyncClient) -> None:
    path = f"{ADMIN}/deliveries?subscription=ts"
    (row,) = (await client.get(path)).json()["deliveries"]
    day, moment = row["created_at"][:10], row["created_at"]
    for until, found in ((day, 1), (day[:4], 1), (moment, 1), ("2001", 0)):
        rows = (await client.get(f"{path}&until={until}")).json()
        assert len(rows["deliveries"]) == found, until
