"""Page links, snapshots and the commit horizon, on a real MongoDB."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlencode

import httpx
import pytest
from bson import Timestamp
from cryptography.fernet import Fernet

from app.errors import Gone
from app.records.versions import Change
from app.runtime.mongo import Mongo, Session
from app.runtime.secrets import Secrets
from app.search import cursor, page, system
from app.search.bundle_writer import CURSOR
from app.search.page_links import PageLinks
from app.search.query import parse
from app.settings import Settings
from app.store.store import Store
from tests.builders.pages import SECRETS, next_query, walk
from tests.conftest import BASE, Server, make_settings

pytestmark = pytest.mark.mongo


def patient(number: int, **elements: Any) -> Change:
    id_ = f"p{number:02}"
    return Change("create", "Patient", id_, {"resourceType": "Patient", "id": id_, **elements})


async def search(store: Store, text: str, **options: Any) -> dict[str, Any]:
    settings = Settings(**options)
    with store.search_state.applied():
        way = await walk(store, "Patient", text)
        query = parse(
            "Patient",
            way.asked,
            lenient=False,
            settings=settings,
            base_url=BASE,
            begin=way.begin,
        )
        bundle: dict[str, Any] = json.loads(await page.search_type(store, query, way))
    return bundle


def ids(bundle: dict[str, Any]) -> list[str]:
    return [each["resource"]["id"] for each in bundle.get("entry", ())]


# Links


async def test_a_link_is_good_for_every_process_on_the_database(store: Store) -> None:
    await store.commit([patient(n) for n in range(5)])
    following = next_query(await search(store, "_count=2&_sort=_id"))
    assert following is not None
    other = Store(store._mongo)
    await other.prepare()
    assert ids(await search(other, following)) == ["p02", "p03"]


async def test_a_forged_link_is_refused(store: Store) -> None:
    await store.commit([patient(n) for n in range(5)])
    following = next_query(await search(store, "_count=2&_sort=_id"))
    assert following is not None
    parts = dict(parse_qsl(following))
    token = parts[CURSOR]
    for changed in (token[1:], token + "A", token[:-4]):
        with pytest.raises(Gone):
            await search(store, urlencode({**parts, CURSOR: changed}))


async def test_a_link_sealed_with_another_key_is_refused(store: Store) -> None:
    begin = cursor.Position(("a", "id"))
    keys = [Fernet.generate_key().decode() for _ in range(2)]
    old, new, both = (
        PageLinks(store._mongo, Secrets(each), Settings())
        for each in (keys[:1], keys[1:], [keys[1], keys[0]])
    )
    token = await old.token("c", "Patient", [("name", "x")], begin)
    asked = [("_cursor", token)]
    with pytest.raises(Gone):
        await new.walk("c", BASE, "Patient", asked)
    for links in (old, both):  # a key that has been replaced still opens
        walked = await links.walk("c", BASE, "Patient", asked)
        assert (walked.asked, walked.begin) == ([("name", "x")], begin)


async def test_an_old_link_has_expired_by_the_databases_clock(store: Store) -> None:
    """So a process whose machine's clock is ahead takes those of the others."""
    links = PageLinks(store._mongo, SECRETS, Settings(page_link_lifetime=60))
    asked = [("_cursor", await links.token("c", "Patient", [], cursor.Position(("id",))))]
    assert (await links.walk("c", BASE, "Patient", asked)).begin is not None
    store._mongo._clock_offset = (store._mongo._clock_offset or 0.0) + 61
    with pytest.raises(Gone) as gone:
        await links.walk("c", BASE, "Patient", asked)
    assert gone.value.issues[0].code == "expired"


# Snapshots


async def everything(store: Store, text: str, **options: Any) -> list[str]:
    """All pages, with a write to the set between any two."""
    found: list[str] = []
    following: str | None = text
    number = 50
    while following is not None:
        bundle = await search(store, following, **options)
        found += ids(bundle)
        following = next_query(bundle)
        number += 1
        await store.commit([patient(number, gender="male")])
    return found


@pytest.mark.parametrize(
    ("text", "options"),
    [
        pytest.param("gender=male&_snapshot=true", {}, id="parameter"),
        pytest.param("gender=male", {"search_snapshot": True}, id="setting"),
        pytest.param("_has:Encounter:subject:status=finished&_snapshot=true", {}, id="chain"),
    ],
)
async def test_all_pages_show_the_first_ones_time(
    store: Store, text: str, options: dict[str, Any]
) -> None:
    await store.commit([patient(n, gender="male") for n in range(7)])
    encounters: list[dict[str, Any]] = [
        {
            "resourceType": "Encounter",
            "id": f"e{n}",
            "status": "finished",
            "subject": {"reference": f"Patient/p{n:02}"},
        }
        for n in range(7)
    ]
    await store.commit([Change("create", "Encounter", e["id"], e) for e in encounters])
    previous = await store.read("Patient", "p06")
    first = await search(store, f"{text}&_count=3&_sort=_id&_total=accurate", **options)
    await store.commit([Change("delete", "Patient", "p06", None, previous)])
    encounter = await store.read("Encounter", "e5")
    await store.commit([Change("delete", "Encounter", "e5", None, encounter)])
    following = next_query(first)
    assert following is not None
    rest = await everything(store, following, **options)
    assert [*ids(first), *rest] == [f"p{n:02}" for n in range(7)]
    assert first["total"] == 7


async def test_search_over_types_in_one_snapshot(store: Store) -> None:
    await store.commit([patient(n) for n in range(4)])
    pairs = [("_snapshot", "true"), ("_count", "3"), ("_sort", "_id"), ("_type", "Patient")]

    async def run(params: list[tuple[str, str]]) -> dict[str, Any]:
        way = await walk(store, "", params)
        read = system.parse(
            way.asked, lenient=False, settings=Settings(), base_url=BASE, begin=way.begin
        )
        bundle: dict[str, Any] = json.loads(await system.search_types(store, read, way))
        return bundle

    first = await run(pairs)
    previous = await store.read("Patient", "p03")
    await store.commit([Change("delete", "Patient", "p03", None, previous)])
    following = next_query(first)
    assert following is not None
    assert ids(first) + ids(await run(parse_qsl(following))) == ["p00", "p01", "p02", "p03"]


async def test_pages_past_the_snapshots_window_are_gone(store: Store) -> None:
    await store.commit([patient(n) for n in range(5)])
    way = await walk(store, "Patient", "_count=2&_sort=_id&_snapshot=true")
    old = cursor.Position(("p01",), Timestamp(int(time.time()) - 100_000, 1))
    token = await way.owner.token(way.client, way.place, way.asked, old)
    with pytest.raises(Gone) as gone:
        await search(store, f"_cursor={token}")
    assert gone.value.issues[0].code == "expired"


# The commit horizon


class Late:
    """Holds up the transactions of one store."""

    def __init__(self, mongo: Mongo) -> None:
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()
        begin = mongo.begin

        async def held(session: Session, **options: Any) -> None:
            await begin(session, **options)
            self.begun.set()
            await self.go_on.wait()

        mongo.begin = held  # type: ignore[method-assign]


def horizon(bundle: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(bundle["meta"]["lastUpdated"])


@pytest.mark.parametrize("is_other_process", [False, True], ids=["same-process", "other-process"])
async def test_polling_does_not_miss_a_write_that_commits_late(
    mongod: str, is_other_process: bool
) -> None:
    """A write begins, another begins and commits, a client polls, the first commits, the client polls on."""
    settings = make_settings(mongod)
    async with AsyncExitStack() as opened:
        slow, fast = await Mongo.open(settings), await Mongo.open(settings)
        opened.push_async_callback(slow.close)
        opened.push_async_callback(fast.close)
        # How well a process knows the database's clock is not what this is about.
        fast._clock_offset = slow._clock_offset
        writer, reader = Store(slow), Store(fast)
        await writer.prepare()
        await writer.commit([patient(0)])
        late = Late(slow)
        if is_other_process:
            await reader.cluster.beat()
        writing = asyncio.create_task(writer.commit([patient(1)]))
        await late.begun.wait()
        await writer.cluster.beat()
        await asyncio.sleep(0.002)  # the next write is later by at least a millisecond
        await reader.commit([patient(2)])
        asked = reader if is_other_process else writer
        first = await search(asked, "_lastUpdated=gt2020-01-01&_sort=_lastUpdated")
        assert ids(first) == ["p00"], "nothing after what may still commit"
        late.go_on.set()
        await writing
        await writer.cluster.beat()
        since = horizon(first).isoformat().replace("+00:00", "Z")
        second = await search(asked, f"_lastUpdated=gt{since}&_sort=_lastUpdated")
        assert ids(second) == ["p01", "p02"]


async def test_a_process_gone_silent_holds_nobody_up_for_ever(store: Store) -> None:
    """Until it can commit no more: that long after another process has taken it over."""
    await store.commit([patient(0)])
    processes = store._mongo.collection("processes")
    long_ago = store._mongo.now() - timedelta(hours=1)
    dead = {"_id": "dead", "seen": long_ago, "horizon": long_ago, "taken_over": long_ago}
    await processes.insert_one(dead)
    assert ids(await search(store, "_lastUpdated=gt2020-01-01")) == ["p00"]
    await processes.update_one({"_id": "dead"}, {"$set": {"taken_over": store._mongo.now()}})
    assert ids(await search(store, "_lastUpdated=gt2020-01-01")) == []


async def test_a_write_is_later_than_every_horizon_given(store: Store) -> None:
    for number in range(20):
        given = await store.cluster.horizon()
        (stored,) = await store.commit([patient(number)])
        assert stored.at > given


async def test_searches_not_about_time_see_the_newest(store: Store) -> None:
    bundle = await search(store, "gender=male")
    assert "meta" not in bundle
    await store.commit([patient(1, gender="male")])
    assert ids(await search(store, "gender=male")) == ["p01"]


async def test_history_since_reaches_up_to_the_horizon(
    server: Server, client: httpx.AsyncClient
) -> None:
    """A write under way holds its Bundle's time back, and with it what is shown."""
    id_ = f"t-{uuid.uuid4()}"
    await client.put(
        f"/Basic/{id_}", json={"resourceType": "Basic", "id": id_, "code": {"text": "x"}}
    )
    await asyncio.sleep(0.002)
    history = f"/Basic/{id_}/_history?_since=2020-01-01T00:00:00Z"
    bundle = (await client.get(history)).json()
    assert len(bundle["entry"]) == 1
    until = horizon(bundle)
    assert until <= server.mongo.now()
    again = (
        await client.get(f"/Basic/{id_}/_history", params={"_since": bundle["meta"]["lastUpdated"]})
    ).json()
    assert "entry" not in again
