"""Links to pages: short, opaque, bound to the client that asked, and judged anew on each page."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import httpx
import pytest

from app.records.versions import Change
from tests.builders.access_world import World, condition, world as make_world
from tests.builders.audit_events import QUERY, entities
from tests.builders.pages import link
from tests.conftest import Server
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

Json = dict[str, Any]
FORM = {"content-type": "application/x-www-form-urlencoded"}
# As a client with a panel asks: far longer together than a URL may be.
PANEL = [f"of-the-panel-{number:04}-{'x' * 20}" for number in range(400)]


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with make_world(mongod, max_kept_searches=2, audit="required") as found:
        made = [condition(id_, "pn" if n % 2 else "ps") for n, id_ in enumerate(PANEL)]
        changes = [Change("create", "Condition", each["id"], each) for each in made]
        await found.server.store.commit(changes)
        yield found


def following(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    url = link(answer.json(), "next")
    assert url is not None
    return url


async def post(world: World, who: str, ids: list[str], **more: str) -> httpx.Response:
    """A search by POST, which keeps what is asked out of the URL."""
    content = urlencode({"_id": ",".join(ids), "_count": "50", **more})
    return await world.ask(who, "POST", "/Condition/_search", content=content, headers=FORM)


def names(text: str) -> Iterator[str]:
    return (id_ for id_ in PANEL if id_ in text)


async def test_a_long_search_by_post_has_pages_that_fit_into_a_url(world: World) -> None:
    kept = world.server.mongo.collection("kept_searches")
    before = await kept.distinct("_id")
    answer = await post(world, "north", PANEL, _elements="code", _sort="_id")
    assert len(list(names(link(answer.json(), "self") or ""))) == len(PANEL), "as R4 wants it"
    shown: list[str] = []
    while True:
        shown += [each["resource"]["id"] for each in answer.json()["entry"]]
        assert all(each["resource"]["meta"]["tag"] for each in answer.json()["entry"])
        url = link(answer.json(), "next")
        if url is None:
            break
        assert len(httpx.URL(url).raw_path) < 300
        assert not list(names(url))
        answer = await world.get("north", url)
        assert answer.status_code == 200, answer.text
    assert shown == sorted(PANEL[1::2])
    rows = await kept.find({"_id": {"$nin": before}}).to_list(None)
    assert len(rows) == 1, "kept once, however many pages there are"
    assert not list(names(str(rows)))
    (until,) = (row["until"] for row in rows)
    left = (until - world.server.mongo.now()).total_seconds()
    assert 0 < left <= world.server.settings.page_link_lifetime + 1
    indexes = await kept.index_information()
    assert any(each.get("expireAfterSeconds") == 0 for each in indexes.values())


async def test_what_a_post_kept_out_of_urls_does_not_come_back_in_the_one_to_follow(
    world: World,
) -> None:
    answer = await post(world, "north", PANEL[:6], _count="1", _sort="_id")
    url = following(answer)
    assert "_id" not in url
    assert not list(names(url))
    assert [each["resource"]["id"] for each in (await world.get("north", url)).json()["entry"]] == [
        PANEL[3]
    ]


DOORS = [
    pytest.param("/Condition?_count=1", id="type"),
    pytest.param("/?_type=Condition&_count=1", id="types"),
    pytest.param("/Patient/pn/Condition?_count=1", id="compartment"),
    pytest.param("/Condition/_history?_count=1", id="history"),
    pytest.param("/Patient/pn/$everything?_count=1", id="everything"),
]


@pytest.mark.parametrize("url", DOORS)
async def test_another_clients_link_is_as_unknown_as_any(world: World, url: str) -> None:
    """Though that client may see as much: `admin` sees all that `north` does."""
    first = following(await world.get("north", url))
    assert (await world.get("north", first)).status_code == 200
    begun, mark, token = first.partition("_cursor=")
    changed = begun + mark + token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    clock = world.server.mongo
    answers = [await world.get("admin", first), await world.get("north", changed)]
    answers.append(await world.get("north", f"{begun}{mark}made-up"))
    ours = clock._clock_offset or 0.0
    try:
        clock._clock_offset = ours + world.server.settings.page_link_lifetime + 60
        answers.append(await world.get("north", first))
    finally:
        clock._clock_offset = ours
    for answer in answers:
        assert_outcome(answer, 410, "expired", "http._cursor")
        assert answer.json() == answers[0].json()


async def test_a_link_leads_nowhere_else(world: World) -> None:
    token = following(await world.get("north", "/Condition?_count=1")).partition("?")[2]
    for place in ("/Encounter", "/Patient/pn/Condition", "/Condition/_history", "/"):
        assert_outcome(await world.get("north", f"{place}?{token}"), 410, "expired")


async def test_a_kept_search_is_its_clients_alone(world: World) -> None:
    url = following(await post(world, "north", PANEL))
    for who in ("admin", "south"):
        assert_outcome(await world.get(who, url), 410, "expired")
    assert (await world.get("north", url)).status_code == 200


async def test_a_client_has_so_many_kept_searches(world: World) -> None:
    """The one that was used longest ago goes; those of other clients stay."""
    theirs = following(await post(world, "south", PANEL))
    mine = [following(await post(world, "north", PANEL[n:])) for n in range(3)]
    kept = [(await world.get("north", url)).status_code for url in mine]
    assert kept == [410, 200, 200]
    assert (await world.get("south", theirs)).status_code == 200
    again = following(await post(world, "north", PANEL[1:]))
    assert (await world.get("north", again)).status_code == 200
    count = await world.server.mongo.collection("kept_searches").count_documents(
        {"client": "north"}
    )
    assert count == 2


@pytest.mark.parametrize("url", DOORS)
async def test_each_page_is_judged_by_the_rights_of_its_moment(world: World, url: str) -> None:
    first = following(await world.get("north", url))
    assert "Broken heart" in (await world.get("north", first)).text
    known = world.authority.known
    before = known["north"]
    try:
        # From now on it is of an organization that has no patients.
        known["north"] = replace(before, organization="Organization/registrar")
        answer = await world.get("north", first)
        assert "Broken heart" not in answer.text
        assert "Familyn" not in answer.text
    finally:
        known["north"] = before
    without = {"Authorization": "Bearer north system/Task.r"}
    narrower = await world.client.get(first, headers=without)
    assert "Broken heart" not in narrower.text


async def test_a_page_is_on_record_with_what_it_was_asked(world: World) -> None:
    asked = "/Condition?subject=Patient/pn&_count=1&code:text=broken"
    url = following(await world.get("plan-a", asked))
    assert "subject" not in url
    assert (await world.get("plan-a", url)).status_code == 200
    found = await world.get("admin", "/AuditEvent?agent=plan-a&subtype=search-type&_count=1")
    (query,) = entities(found.json()["entry"][0]["resource"], *QUERY)
    line = base64.b64decode(query["query"]).decode()
    request, _, spelled = line.rpartition(" ")
    assert request == f"GET {httpx.URL(url).raw_path.decode()}"
    assert dict(parse_qsl(spelled))["subject"] == "Patient/pn"


async def test_a_page_can_be_larger_and_ask_for_nothing_else(
    server: Server, client: httpx.AsyncClient
) -> None:
    made: list[Json] = [
        {"resourceType": "Basic", "id": f"links-{n}", "code": {"text": "x"}} for n in range(4)
    ]
    for each in made:
        await client.put(f"/Basic/{each['id']}", json=each)
    ids = ",".join(each["id"] for each in made)
    first = await client.get(f"/Basic?_id={ids}&_count=1&_sort=_id")
    url = following(first)
    page = (await client.get(f"{url}&_count=2&_format=json")).json()
    assert [each["resource"]["id"] for each in page["entry"]] == ["links-1", "links-2"]
    itself = link(page, "self")
    assert itself is not None
    assert quote(ids, safe=",") in itself
    again = (await client.get(itself)).json()
    assert again["entry"] == page["entry"]
    assert json.dumps(link(again, "self")) == json.dumps(itself)
    for other in ("code=x", "_id=links-3", "_elements=code", "_sort=-_id"):
        assert_outcome(await client.get(f"{url}&{other}"), 400, "value", "http._cursor")
    assert_outcome(await client.get(f"{url}&{url.partition('?')[2]}"), 400, "invalid")
