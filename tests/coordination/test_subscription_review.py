"""A Subscription whose endpoint takes no notices is shown to a person, for as long as that is so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.fhir.codes import REVIEW_REASON
from app.subscriptions.channels.protocol import REFUSED
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, subscribed, topic_based
from tests.conftest import Server, make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture
async def pair(mongod: str) -> AsyncIterator[Pair]:
    """A server that gives up on a refusal at once."""
    async with running(make_settings(mongod, refusal_window=0)) as pair:
        yield pair


async def settled(pair: Pair) -> None:
    await pair[0].worker.drain()
    await pair[0].engine.drain()


async def fail(pair: Pair, receiver: Receiver, id_: str, status: int) -> None:
    receiver.answers([status])
    assert (await pair[1].post("/Encounter", json=encounter(patient=id_))).is_success
    await settled(pair)


async def ask_again(pair: Pair, id_: str, **changes: Any) -> None:
    current = (await pair[1].get(f"/Subscription/{id_}")).json()
    answer = await pair[1].put(
        f"/Subscription/{id_}", json={**current, "status": "requested", **changes}
    )
    assert answer.is_success, answer.text
    await settled(pair)


async def tasks(pair: Pair, id_: str) -> list[str]:
    """The statuses of the Tasks about a Subscription, in their order."""
    query = {
        "focus": f"Subscription/{id_}",
        "code": f"{REVIEW_REASON}|subscription-error",
        "_sort": "authored-on",
    }
    bundle = (await pair[1].get("/Task", params=query)).json()
    return [each["resource"]["status"] for each in bundle.get("entry", ())]


async def test_an_error_is_a_task_which_closes_itself(pair: Pair, receiver: Receiver) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await fail(pair, receiver, id_, 404)
    current = (await pair[1].get(f"/Subscription/{id_}")).json()
    assert (current["status"], current["error"]) == ("error", REFUSED)
    assert await tasks(pair, id_) == ["requested"]
    await ask_again(pair, id_)
    assert await tasks(pair, id_) == ["completed"]
    await fail(pair, receiver, id_, 403)
    assert sorted(await tasks(pair, id_)) == ["completed", "requested"]


async def test_an_endpoint_that_is_gone_is_a_task_until_the_client_ends_it(
    pair: Pair, receiver: Receiver
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await fail(pair, receiver, id_, 410)
    assert (await pair[1].get(f"/Subscription/{id_}")).json()["status"] == "off"
    assert await tasks(pair, id_) == ["requested"]
    await ask_again(pair, id_, status="off")
    assert await tasks(pair, id_) == ["completed"]


async def test_a_client_that_ends_its_subscription_asks_nobody(
    pair: Pair, receiver: Receiver
) -> None:
    id_ = await subscribed(pair, topic_based(endpoint=receiver.url))
    await ask_again(pair, id_, status="off")
    assert (await pair[1].delete(f"/Subscription/{id_}")).is_success
    await settled(pair)
    assert await tasks(pair, id_) == []
