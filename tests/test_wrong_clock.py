"""Two servers on one database, and the machine of one of them has its clock an hour wrong: nothing depends on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.builders.practices import organization, patient, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import make_settings
from tests.processes import environment, started

pytestmark = [pytest.mark.mongo, pytest.mark.processes, pytest.mark.slow]

# `carerelay` on a machine whose clock has been set wrong by so many seconds.
ON_A_WRONG_MACHINE = """
import time
right, right_ns = time.time, time.time_ns
time.time = lambda: right() + {off}
time.time_ns = lambda: right_ns() + {off} * 10**9
from app.cli import main
main()
"""


async def until(what: Callable[[], Any], wanted: object) -> None:
    """Look again and again, for half a minute at most."""
    give_up = time.monotonic() + 30
    while (found := await what()) != wanted:
        assert time.monotonic() < give_up, (found, wanted)


@pytest.mark.parametrize(
    "off",
    [
        pytest.param(-3600, id="behind"),
        pytest.param(3600, id="ahead", marks=pytest.mark.chaos),
    ],
)
async def test_what_the_one_with_the_wrong_clock_tells_is_told_and_proved(
    mongod: str, receiver: Receiver, off: int
) -> None:
    database = make_settings(mongod).mongodb_database
    env = environment(
        mongodb_uri=mongod,
        mongodb_database=database,
        test_clock="true",
        secret_key="4hGuCGXZ0WRYg4vuAnH1RQuvbnXbzSBj5iJK2q3DTZ0=",
    )
    wrong_machine = (sys.executable, "-c", ON_A_WRONG_MACHINE.format(off=off))
    with ExitStack() as opened:
        serve = ("serve", "--port", "0")
        _, right = opened.enter_context(started("FHIR base: ", *serve, env=env))
        _, wrong = opened.enter_context(
            started("FHIR base: ", *serve, command=wrong_machine, env=env)
        )
        async with httpx.AsyncClient(timeout=30) as client:

            async def put(base: str, resource: dict[str, Any]) -> None:
                url = f"{base}/{resource['resourceType']}/{resource['id']}"
                answer = await client.put(url, json=resource)
                assert answer.is_success, answer.text

            async def told() -> set[str]:
                return {each.focus.partition("/Encounter/")[2][:3] for each in receiver.events}

            async def heard_of(base: str, name: str) -> None:
                """Admissions by one server, until it has learnt of the Subscription and tells one."""
                for number in range(1000):
                    await put(base, encounter(patient="member", id=f"{name}-{number}"))
                    if name in await told():
                        return
                raise AssertionError(f"nobody was told of {name}")

            async def proved() -> set[str]:
                found = (await client.get(f"{right}/Communication")).json()
                entries = [entry["resource"] for entry in found.get("entry", ())]
                return {each["encounter"]["reference"][10:13] for each in entries}

            async def published(base: str) -> None:
                """The publisher's next round is due."""
                url = base.replace("/fhir", "/admin/clock")
                assert (await client.post(url, json={"advance": 60})).is_success

            await put(right, organization("practice"))
            await put(right, patient("member", ref("Organization/practice")))
            asked = topic_based(
                "general-practitioner=Organization/practice", endpoint=f"{receiver.url}/in"
            )
            await put(wrong, {**asked, "id": "s"})
            await heard_of(right, "one")
            await published(right)
            await until(proved, {"one"})
            await heard_of(wrong, "two")
            await heard_of(right, "six")
            await published(right)
            await until(proved, {"one", "two", "six"})
