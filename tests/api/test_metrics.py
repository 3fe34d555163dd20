"""What `/metrics` shows: everything that was done, once, of all workers, and nothing of anybody."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.runtime.metrics import Counter, Family
from tests.builders.receiver import Receiver
from tests.builders.smart import bearer, ec_key, register, token_for
from tests.builders.subscriptions import classic, encounter
from tests.conftest import make_settings, running
from tests.processes import children, environment, started, wait_for, wait_until_gone

PAGE = "http://carerelay.test/metrics"
TOKEN = "a-token-for-prometheus"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
# Words of these alone may be labels: codes of interactions, states, loops, reasons, bounds of buckets.
WORD = re.compile(r"[a-z][a-z-]*|[1-5]xx|\+Inf|[0-9.]+(?:e[+-][0-9]+)?")


def samples(text: str) -> Samples:
    """A page, read as Prometheus reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(client: httpx.AsyncClient) -> Samples:
    answer = await client.get(PAGE)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return samples(answer.text)


def value(found: Samples, name: str, **labels: str) -> float:
    """A sample's value; what nobody has counted yet is none."""
    return found.get((name, tuple(sorted(labels.items()))), 0)


class Growth:
    """What was counted between two scrapes: the numbers are the process's, which has served other tests."""

    def __init__(self, before: Samples, after: Samples) -> None:
        self._before, self._after = before, after

    def of(self, name: str, **labels: str) -> float:
        return value(self._after, name, **labels) - value(self._before, name, **labels)


async def test_what_is_done_is_counted_once(mongod: str, receiver: Receiver) -> None:
    async with running(make_settings(mongod)) as (server, client):
        asked = classic("Encounter?status=in-progress", receiver.url)
        (await client.put("/Subscription/s1", json={**asked, "id": "s1"})).raise_for_status()
        await server.worker.drain()
        before = await scraped(client)
        receiver.answers([503])
        stay = encounter(id="e1")
        assert (await client.put("/Encounter/e1", json=stay)).status_code == 201
        late = await client.put("/Encounter/e1", json=stay, headers={"if-match": 'W/"7"'})
        assert late.status_code == 412
        assert (await client.get("/Encounter/e1")).status_code == 200
        assert (await client.get("/Encounter?patient=p1")).status_code == 200
        assert (await client.get("/Encounter?nothing=p1")).status_code == 400
        assert (await client.get("/Encounter/e1/x/y")).status_code == 404
        assert (
            await client.put("/Patient/p1", json={"resourceType": "Patient", "id": "p1"})
        ).is_success
        await receiver.wait(2, events=False)
        await server.worker.drain()
        grown = Growth(before, await scraped(client))
    requests = "carerelay_request_seconds_count"
    assert grown.of(requests, interaction="update", status="2xx") == 2
    assert grown.of(requests, interaction="update", status="4xx") == 1
    assert grown.of(requests, interaction="read", status="2xx") == 1
    assert grown.of(requests, interaction="search-type", status="2xx") == 1
    assert grown.of(requests, interaction="search-type", status="4xx") == 1
    assert grown.of(requests, interaction="none", status="4xx") == 1
    assert grown.of("carerelay_request_seconds_sum", interaction="update", status="2xx") > 0
    assert grown.of("carerelay_commit_seconds_count", outcome="committed") >= 2
    assert grown.of("carerelay_events_total") >= 2
    assert grown.of("carerelay_matches_total") == 1
    assert grown.of("carerelay_match_failures_total") == 0
    delivered = {"channel": "rest-hook", "outcome": "delivered"}
    assert grown.of("carerelay_deliveries_total", **delivered) == 1
    assert grown.of("carerelay_deliveries_total", channel="rest-hook", outcome="retrying") == 1
    assert grown.of("carerelay_notice_seconds_count", channel="rest-hook") == 1
    assert grown.of("carerelay_notice_seconds_sum", channel="rest-hook") > 0


@pytest.mark.slow
async def test_writers_that_were_too_late_are_conflicts(mongod: str) -> None:
    async with running(make_settings(mongod)) as (_, client):
        patient: dict[str, Any] = {"resourceType": "Patient", "id": "p1"}
        (await client.put("/Patient/p1", json=patient)).raise_for_status()
        before = await scraped(client)
        writes = [
            client.put("/Patient/p1", json={**patient, "name": [{"text": f"n{number}"}]})
            for number in range(8)
        ]
        assert all(answer.is_success for answer in await asyncio.gather(*writes))
        grown = Growth(before, await scraped(client))
    assert grown.of("carerelay_commit_seconds_count", outcome="committed") == 8
    assert grown.of("carerelay_commit_seconds_count", outcome="conflict") > 0


@pytest.mark.slow
async def test_what_is_open_in_the_database_is_shown_with_its_age(
    mongod: str, receiver: Receiver
) -> None:
    async with running(make_settings(mongod)) as (server, client):
        asked = classic("Encounter?status=in-progress", receiver.url)
        (await client.put("/Subscription/s1", json={**asked, "id": "s1"})).raise_for_status()
        await server.worker.drain()
        receiver.answer = lambda _: 503
        for name in ("a", "b"):
            person = {"resourceType": "Patient", "id": name}
            (await client.put(f"/Patient/{name}", json=person)).raise_for_status()
            stay = encounter(id=name, patient=name)
            (await client.put(f"/Encounter/{name}", json=stay)).raise_for_status()
        await receiver.wait(2, events=False)
        await server.worker.drain()
        await server.engine.drain()
        await server.worker.drain()
        with server.store.cluster.loops["heartbeat"].step():  # the first comes after half a second
            await server.store.cluster.beat()
        found = await scraped(client)
    assert value(found, "carerelay_database_up") == 1
    assert value(found, "carerelay_open_deliveries", state="retrying") == 2
    assert 0 < value(found, "carerelay_open_delivery_age_seconds", state="retrying") < 60
    assert value(found, "carerelay_broken_targets") == 0
    assert value(found, "carerelay_pending_events") == 0
    assert value(found, "carerelay_open_deliveries", state="queued") == 0
    assert value(found, "carerelay_open_review_tasks", reason="no-pcp") == 2
    connections = [
        value(found, "carerelay_database_connections", state=s) for s in ("in-use", "idle")
    ]
    assert sum(connections) > 0
    for loop in ("heartbeat", "sweep", "take-over", "timers", "reactions-sweep"):
        age = time.time() - value(found, "carerelay_loop_last_run_timestamp_seconds", loop=loop)
        assert 0 <= age < 30, loop
        assert value(found, "carerelay_loop_in_trouble", loop=loop) == 0


@pytest.mark.slow
async def test_nothing_of_anybody_is_a_label(mongod: str, receiver: Receiver) -> None:
    """Traffic with identifiers in every place, and then each label is a word of ours."""
    planted = ["quetzalcoatlus", "qxz-member-77", "987-65-4320", "planted-id"]
    async with running(make_settings(mongod)) as (server, client):
        asked = {
            **classic("Encounter?status=in-progress", f"{receiver.url}/{planted[0]}"),
            "id": planted[3],
        }
        (await client.put(f"/Subscription/{planted[3]}", json=asked)).raise_for_status()
        await server.worker.drain()
        for number, word in enumerate(planted):
            patient = {
                "resourceType": "Patient",
                "id": f"planted-id-{number}",
                "name": [{"family": word}],
            }
            await client.put(f"/Patient/{patient['id']}", json=patient)
            await client.put(f"/Encounter/{word}", json=encounter(id=word, patient=word))
            for path in (
                f"/Patient?name={word}",
                f"/{word}/1",
                f"/Patient/{word}",
                f"/Patient/${word}",
                f"/{word}/a/b/c/d",
            ):
                await client.get(path, headers={"x-request-id": word})
            await client.request(word.upper(), f"/Patient/{word}")
            await client.get(f"http://carerelay.test/{word}")
            await client.get(f"http://carerelay.test/admin/topics/{word}")
        await receiver.wait(len(planted), events=False)
        await server.worker.drain()
        text = (await client.get(PAGE)).text
    assert [word for word in [*planted, *map(str.upper, planted)] if word in text] == []
    labels = {label for _, pairs in samples(text) for _, label in pairs}
    assert len(labels) > 30
    assert [label for label in labels if not WORD.fullmatch(label)] == []


@pytest.mark.slow
async def test_the_page_is_there_while_the_database_is_not(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod)) as (server, client):

        async def away(*_: object, **__: object) -> None:
            raise ConnectionError

        monkeypatch.setattr(server.mongo, "aggregate", away)
        found = await scraped(client)
    assert value(found, "carerelay_database_up") == 0
    assert not [name for name, _ in found if name == "carerelay_open_deliveries"]
    assert value(found, "carerelay_processes") == 1


async def test_with_authorization_the_token_and_administrators_come_in(mongod: str) -> None:
    settings = make_settings(mongod, auth="smart", audit="off", metrics_token=TOKEN)
    async with running(settings) as (server, client):
        assert (await client.get(PAGE)).status_code == 401
        assert (await client.get(PAGE, headers=bearer(TOKEN + "x"))).status_code == 401
        shown = await client.get(PAGE, headers=bearer(TOKEN))
        assert shown.status_code == 200
        assert "carerelay_request_seconds_bucket" in shown.text
        for role, status in (("administrator", 200), ("practice", 403)):
            key = ec_key()
            whose = await register(server, key, role=role)
            token = await token_for(server, client, whose, key)
            assert (await client.get(PAGE, headers=bearer(token))).status_code == status
        # What opens the metrics opens nothing else.
        assert (await client.get("/Patient", headers=bearer(TOKEN))).status_code == 401
        admin = "http://carerelay.test/admin/deliveries"
        assert (await client.get(admin, headers=bearer(TOKEN))).status_code == 401


async def test_without_a_token_set_an_empty_one_opens_nothing(mongod: str) -> None:
    async with running(make_settings(mongod, auth="smart", audit="off")) as (_, client):
        for headers in ({"authorization": ""}, {"authorization": "Bearer "}):
            assert (await client.get(PAGE, headers=headers)).status_code == 401


async def test_openmetrics_is_answered_where_it_is_asked_for(client: httpx.AsyncClient) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = await client.get(PAGE, headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_the_page_of_operations_names_every_metric_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text("utf-8")
    named = set(re.findall(r"\bcarerelay_\w+", page))
    families = {
        f"{name}_total" if isinstance(family, Counter) else name
        for name, family in Family.all.items()
    }
    assert families <= named
    of_rows = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
    assert of_rows == families


@pytest.mark.processes
@pytest.mark.slow
def test_one_scrape_shows_all_workers_and_none_is_forgotten(mongod: str) -> None:
    """Each request is counted by one of two workers; one is killed, another takes its place and its count."""
    settings = environment(
        mongodb_uri=mongod, mongodb_database=f"t{uuid.uuid4().hex[:8]}", workers="2"
    )
    with started("FHIR base: ", "serve", "--port", "0", env=settings) as (process, base):
        page = base.replace("/fhir", "/metrics")
        wait_for(base.replace("/fhir", "/readyz"))
        _until(page, lambda found: value(found, "carerelay_processes") == 2)
        read = {"interaction": "read", "status": "4xx"}

        def reads() -> float:
            return value(samples(httpx.get(page).text), "carerelay_request_seconds_count", **read)

        asked = 0
        for _ in range(40):  # each on a connection of its own, which either worker may take
            httpx.get(f"{base}/Patient/nobody")
            asked += 1
        # What the other worker counted in the last second may still be on its way.
        _until(page, lambda found: value(found, "carerelay_request_seconds_count", **read) == asked)
        found = samples(httpx.get(page).text)
        assert value(found, "carerelay_pending_events") == 0  # the database's, once and not twice
        victim = children(process.pid)[-1]
        os.kill(victim, signal.SIGKILL)
        wait_until_gone(victim)
        assert reads() == asked
        _until(page, lambda found: value(found, "carerelay_processes") == 2)
        assert reads() == asked
        httpx.get(f"{base}/Patient/nobody")
        _until(
            page, lambda found: value(found, "carerelay_request_seconds_count", **read) == asked + 1
        )


def _until(page: str, holds: Any) -> None:
    give_up = time.monotonic() + 30
    while not holds(samples(httpx.get(page, timeout=30).text)):
        assert time.monotonic() < give_up
        time.sleep(0.05)
