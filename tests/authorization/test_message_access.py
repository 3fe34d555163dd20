"""Messages under authorization: what a sender may not write by itself it does not write by a message."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.fhir.ids import new_id
from tests.builders.access_world import World, encounter, world as a_world
from tests.builders.messages import ROOT, ForeignStay
from tests.builders.practices import organization
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

Json = dict[str, Any]


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        for name in ("general", "city"):
            known = [{"system": "urn:facility", "value": name}]
            await found.put("admin", {**organization(name), "identifier": known})
        yield found


def stay_of(hospital: str, mrn: str | None = None) -> ForeignStay:
    """A stay at one of the world's hospitals, of somebody new or of who has this number."""
    stay = ForeignStay()
    stay.organization["identifier"] = [{"system": "urn:facility", "value": hospital}]
    if mrn is not None:
        stay.patient["identifier"] = [{"system": "urn:mrn", "value": mrn}]
    return stay


async def send(world: World, who: str, message: Json, **more: Any) -> httpx.Response:
    return await world.ask(who, "POST", "/$process-message", message, **more)


def code(answer: httpx.Response) -> str:
    return str(answer.json()["entry"][0]["resource"]["response"]["code"])


def issues(answer: httpx.Response) -> list[Json]:
    found: list[Json] = answer.json()["entry"][1]["resource"]["issue"]
    return found


async def visits(world: World, stay: ForeignStay) -> list[str]:
    return await world.found("admin", stay.visit)


async def test_a_hospital_tells_of_its_patients_by_messages(world: World) -> None:
    """The visit is its own organization's; who works there and where is said by who keeps the directory."""
    stay = stay_of("general", "n")
    message = stay.message()
    message["entry"].append(stay.entry(stay.coverage))
    answer = await send(world, "general", message)
    assert (answer.status_code, code(answer)) == (200, "ok"), answer.text
    (visit,) = [each["resource"] for each in (await world.get("north", stay.visit)).json()["entry"]]
    assert visit["subject"] == {"reference": "Patient/pn"}
    assert visit["serviceProvider"] == {"reference": "Organization/general"}
    named = {
        "type": "Practitioner",
        "identifier": {"system": "urn:staff", "value": stay.n},
        "display": "Bo Birch",
    }
    assert visit["participant"] == [{"individual": named}]
    for url in (
        f"/Practitioner?identifier=urn:staff|{stay.n}",
        f"/Location?identifier=urn:wards|{stay.n}",
        f"/Coverage?identifier=urn:ietf:rfc:3986|{ROOT}/Coverage/4",
    ):
        assert await world.found("admin", url) == []
    # The message itself is its sender's.
    record = f"/Bundle?identifier={ROOT}/out|{message['id']}"
    assert len(await world.found("general", record)) == 1
    for who in ("city", "north"):
        assert await world.found(who, record) == []


async def test_a_hidden_person_is_answered_like_one_whom_nobody_knows(world: World) -> None:
    hidden, unknown = stay_of("general", "s"), stay_of("general")
    told = []
    for stay in (hidden, unknown):
        answer = await send(world, "general", stay.message())
        assert answer.status_code == 200, answer.text
        told.append(issues(answer))
    assert told[0] == told[1]
    assert any("a Patient was created" in each["diagnostics"] for each in told[0])
    # Both hang on the person who came with the message.
    for stay in (hidden, unknown):
        (visit,) = await visits(world, stay)
        subject = (await world.get("admin", f"/{visit}")).json()["subject"]["reference"]
        assert subject not in ("Patient/pn", "Patient/ps")


async def test_nobody_tells_of_anothers_visit(world: World) -> None:
    """Neither by naming the other hospital nor by the other's visit number, also where nobody knows of it."""
    stay = stay_of("city", "n")
    answer = await send(world, "general", stay.message())
    assert (answer.status_code, code(answer)) == (403, "fatal-error")
    assert await visits(world, stay) == []

    theirs = stay_of("general", "n")
    number = [{"system": "urn:visits", "value": theirs.n}]
    await world.put("admin", {**encounter(new_id(), "ps", "city"), "identifier": number})
    (before,) = await visits(world, theirs)
    answer = await send(world, "general", theirs.message())
    assert answer.status_code == 200, answer.text
    assert (await world.get("admin", f"/{before}")).json()["meta"]["versionId"] == "1"
    assert len(await visits(world, theirs)) == 2


@pytest.mark.parametrize(
    ("who", "is_own"),
    [
        ("admin", True),
        ("north", True),
        ("south", False),
        ("general", True),
        ("city", False),
        ("plan-a", True),
        ("plan-b", False),
        ("agency", None),
        ("bureau", None),
        ("registrar", None),
    ],
)
async def test_whom_a_message_about_a_person_is_about(
    world: World, who: str, is_own: bool | None
) -> None:
    """The person who has the number, of whose patient it is; somebody new of others; agencies send none."""
    stay = stay_of(new_id(), "n")
    visit = stay.encounter()
    del visit["serviceProvider"]
    answer = await send(world, who, stay.message(encounter=visit))
    if is_own is None:
        assert answer.status_code == 403
        assert await visits(world, stay) == []
        return
    assert (answer.status_code, code(answer)) == (200, "ok"), answer.text
    (stored,) = await visits(world, stay)
    subject = (await world.get("admin", f"/{stored}")).json()["subject"]["reference"]
    assert (subject == "Patient/pn") is is_own
    assert subject != "Patient/ps"


async def test_a_message_takes_the_scopes_that_its_writes_take(world: World) -> None:
    stay = stay_of("general", "n")
    scopes = "system/Bundle.c system/Patient.cus system/*.s"
    answer = await send(world, "general", stay.message(), scopes=scopes)
    assert (answer.status_code, code(answer)) == (403, "fatal-error")
    assert "system/Encounter.c" in str(issues(answer))
    assert await visits(world, stay) == []


async def test_the_operation_takes_the_scope_to_create_bundles(world: World) -> None:
    stay = stay_of("general", "n")
    answer = await send(world, "general", stay.message(), scopes="system/Encounter.cruds")
    assert_outcome(answer, 403, "forbidden")
    assert await visits(world, stay) == []
    without = await world.client.post("/$process-message", json=stay.message())
    assert without.status_code == 401


async def test_an_id_of_anothers_message_is_free(world: World) -> None:
    """Whether somebody else has sent a message of that id is nobody's to know."""
    message = stay_of("general", "n").message()
    theirs = stay_of("city", "s").message(id=message["id"])
    for who, each in (("general", message), ("city", theirs), ("general", message)):
        answer = await send(world, who, each)
        assert (answer.status_code, code(answer)) == (200, "ok"), answer.text
