"""The topics on stays: which fires at which step of a stay, told to a practice that listens for all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.fhir.codes import EVENT_TIME
from tests.builders.subscriptions import ENDPOINT, encounter, topic_based
from tests.builders.topic_listener import Listener, listening

pytestmark = pytest.mark.mongo

STAYS = ("admission", "snf-admission", "discharge", "transfer", "cancelled")
ROLE_CODE = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
PHYSICAL = "http://terminology.hl7.org/CodeSystem/location-physical-type"
ORGANIZATION = "http://terminology.hl7.org/CodeSystem/organization-type"
DISPOSITION = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
NUBC = "https://www.nubc.org/CodeSystem/PatDischargeStatus"
EXPECTED = (datetime.now(UTC) + timedelta(days=2)).isoformat(timespec="seconds")


def concept(system: str, code: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code}]}


def location(id_: str, physical: str, part_of: str | None = None, **more: Any) -> dict[str, Any]:
    place: dict[str, Any] = {"resourceType": "Location", "id": id_, "name": id_, **more}
    place["physicalType"] = concept(PHYSICAL, physical)
    if part_of is not None:
        place["partOf"] = {"reference": f"Location/{part_of}"}
    return place


def organization(id_: str, kind: str = "prov", part_of: str | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"resourceType": "Organization", "id": id_, "name": id_}
    found["type"] = [concept(ORGANIZATION, kind)]
    if part_of is not None:
        found["partOf"] = {"reference": f"Organization/{part_of}"}
    return found


PLACES = [
    organization("network", "bus"),
    organization("falls", part_of="network"),
    organization("falls-cardiology", "dept", "falls"),
    organization("falls-medicine", "dept", "falls"),
    organization("lake", part_of="network"),
    organization("rehab"),
    location("falls-site", "si"),
    location("falls-ward", "wa", "falls-site"),
    location("falls-bed-1", "bd", "falls-ward"),
    location("falls-bed-2", "bd", "falls-site"),
    location("lake-bed", "bd", "lake-site"),
    location("lake-site", "si"),
    location("flat-bed-1", "bd", managingOrganization={"reference": "Organization/falls"}),
    location("flat-bed-2", "bd", managingOrganization={"reference": "Organization/falls"}),
    location("flat-bed-3", "bd", managingOrganization={"reference": "Organization/lake"}),
    location("loose-1", "bd"),
    location("loose-2", "bd"),
    location("rehab-bed", "bd", type=[concept(ROLE_CODE, "SNF")]),
]


@pytest.fixture(scope="module")
async def practice(mongod: str) -> AsyncIterator[Listener]:
    async with listening(mongod) as listener:
        for place in PLACES:
            await listener.put(place)
        for slug in STAYS:
            await listener.listen(f"encounter-{slug}")
        yield listener


@pytest.fixture(scope="module")
async def door(mongod: str) -> AsyncIterator[Listener]:
    """A server where nobody listens yet: tests use patients of their own."""
    async with listening(mongod) as listener:
        for place in PLACES:
            await listener.put(place)
        yield listener


def stay(id_: str, text: str, minute: int = 0) -> dict[str, Any] | None:
    """A message: `status class`, then any of these words; `-` deletes. `minute` is when it happened.

    `end` and `expected` record an end that has come or is to come, `home` a disposition, `left` an end with one.
    `still` is the disposition of who has not left. `by:<organization>`, `at:<location>`, `note:<anything>`.
    `until:<location>` is a place that the patient is expected to leave.
    """
    if text == "-":
        return None
    status, class_, *rest = text.split()
    found = encounter(status, class_, id=id_, period={"start": "2026-11-14T07:42:00-06:00"})
    time = f"2026-11-20T08:{minute:02}:00-06:00"
    found["extension"] = [{"url": EVENT_TIME, "valueDateTime": time}]
    for word in rest:
        key, _, value = word.partition(":")
        if key in ("end", "left"):
            found["period"]["end"] = value or "2026-11-19T13:35:00-06:00"
        elif key == "expected":
            found["period"]["end"] = EXPECTED
        if key in ("home", "left"):
            found["hospitalization"] = {"dischargeDisposition": concept(DISPOSITION, "home")}
        elif key == "still":
            found["hospitalization"] = {"dischargeDisposition": concept(NUBC, "30")}
        if key == "by":
            found["serviceProvider"] = {"reference": f"Organization/{value}"}
        elif key == "at":
            found["location"] = [{"location": {"reference": f"Location/{value}"}}]
        elif key == "until":
            found["location"] = [
                {"location": {"reference": f"Location/{value}"}, "period": {"end": EXPECTED}}
            ]
        elif key == "note":
            found["reasonCode"] = [{"text": value}]
    return found


# The steps of each stay, and what each of them tells.
A04, A01, A06 = "admission:A04", "admission:A01", "admission:A06"
A03, MOVED, ROSE = "discharge:A03", "transfer:A02", "transfer:A06"
A11, A13, A07 = "cancelled:A11", "cancelled:A13", "cancelled:A07"
STEPS = [
    pytest.param(
        [("arrived EMER", A04), ("in-progress IMP", f"{A06} {ROSE}"), ("finished IMP end", A03)],
        id="emergency-inpatient-home",
    ),
    pytest.param(
        [("in-progress EMER", A04), ("in-progress OBSENC", A04), ("in-progress IMP", f"{A06} {ROSE}")],
        id="through-observation",
    ),
    pytest.param([("in-progress EMER", A04), ("finished EMER", A03)], id="emergency-and-home"),
    pytest.param(
        [("planned IMP", ""), ("in-progress IMP", A01), ("onleave IMP", ""), ("in-progress IMP", "")],
        id="planned-admission-and-leave",
    ),
    pytest.param([("in-progress AMB", ""), ("finished AMB end", "")], id="office-visit"),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP", ""), ("finished IMP end", A03), ("finished IMP end", "")],
        id="the-same-state-again",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("finished IMP end", A03), ("finished IMP end note:coded", ""),
         ("finished IMP end:2026-11-20T09:00:00Z", "")],
        id="edits-after-the-discharge",
    ),
    pytest.param([("finished IMP end", A03), ("finished IMP end note:late", "")], id="discharge-alone"),
    pytest.param([("in-progress IMP left", A03)], id="admitted-with-its-discharge-recorded"),
    pytest.param(
        [("planned IMP", ""), ("in-progress IMP left", A03), ("finished IMP left", "")],
        id="never-known-as-admitted",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP left", A03), ("finished IMP left", ""),
         ("finished IMP left note:x", "")],
        id="left-first-then-status",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP left", A03), ("in-progress IMP", A13),
         ("finished IMP end", A03)],
        id="leaving-taken-back",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP left", A03), ("in-progress IMP home expected", A13),
         ("finished IMP end", A03)],
        id="leaving-put-off",
    ),
    pytest.param(
        [("in-progress IMP expected", A01), ("in-progress IMP expected note:x", ""), ("finished IMP end", A03)],
        id="expected-end-in-the-first-message",
    ),
    pytest.param(
        [("in-progress EMER", A04), ("in-progress IMP expected", f"{A06} {ROSE}"), ("in-progress IMP", ""),
         ("finished IMP", A03)],
        id="expected-end-comes-and-goes",
    ),
    pytest.param(
        [("in-progress IMP home expected", A01), ("finished IMP left", A03)], id="expected-end-with-disposition"
    ),
    pytest.param([("finished IMP expected", A03)], id="finished-before-the-expected-end"),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP end", ""), ("in-progress IMP", ""), ("finished IMP end", A03)],
        id="an-end-alone-is-no-discharge",
    ),
    pytest.param([("in-progress IMP", A01), ("in-progress IMP home", ""), ("finished IMP left", A03)],
        id="a-disposition-alone-is-no-discharge",
    ),
    pytest.param([("in-progress IMP", A01), ("in-progress IMP still end", ""), ("finished IMP left", A03)],
        id="still-patient-is-no-disposition",
    ),
    pytest.param([("in-progress IMP end", A01)], id="admitted-with-an-end-that-nobody-confirms"),
    pytest.param(
        [("in-progress IMP", A01), ("finished IMP end", A03), ("in-progress IMP", A13),
         ("finished IMP end", A03)],
        id="discharge-taken-back",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("finished IMP end", A03), ("in-progress IMP end", A13),
         ("finished IMP end", A03)],
        id="discharge-taken-back-but-the-end-kept",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("finished IMP left", A03), ("in-progress IMP left", ""),
         ("finished IMP left", "")],
        id="status-alone-taken-back",
    ),
    pytest.param([("in-progress IMP", A01), ("cancelled IMP", A11), ("entered-in-error IMP", "")], id="cancelled"),
    pytest.param([("in-progress IMP", A01), ("entered-in-error IMP", A11)], id="entered-in-error"),
    pytest.param([("planned IMP", ""), ("cancelled IMP", "")], id="cancelled-before-anybody-knew"),
    pytest.param([("cancelled IMP", ""), ("cancelled IMP note:x", "")], id="known-as-cancelled-only"),
    pytest.param(
        [("in-progress IMP", A01), ("cancelled IMP", A11), ("in-progress IMP", A01), ("cancelled IMP", A11)],
        id="cancelled-twice",
    ),
    pytest.param(
        [("in-progress EMER", A04), ("in-progress IMP", f"{A06} {ROSE}"), ("in-progress EMER", A07),
         ("in-progress IMP", f"{A06} {ROSE}")],
        id="class-back-and-forth",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress AMB", A07), ("finished AMB", "")], id="no-inpatient-after-all"
    ),
    pytest.param([("in-progress IMP", A01), ("in-progress ACUTE", ""), ("in-progress SS", "")], id="same-rank"),
    pytest.param([("in-progress IMP", A01), ("-", A11)], id="deleted-while-active"),
    pytest.param([("in-progress IMP", A01), ("finished IMP", A03), ("-", "")], id="deleted-when-over"),
    pytest.param([("planned IMP", ""), ("-", "")], id="deleted-before-anybody-knew"),
    pytest.param([("in-progress IMP", A01), ("cancelled IMP", A11), ("-", "")], id="deleted-when-cancelled"),
    pytest.param(
        [("in-progress IMP at:falls-bed-1", A01), ("in-progress IMP at:falls-bed-2", ""),
         ("in-progress IMP at:lake-bed", MOVED)],
        id="bed-move-then-another-site",
    ),
    pytest.param(
        [("in-progress IMP until:falls-bed-1", A01), ("in-progress IMP until:lake-bed", MOVED)],
        id="places-to-be-left-some-day",
    ),
    pytest.param(
        [("in-progress IMP at:flat-bed-1", A01), ("in-progress IMP at:flat-bed-2", ""),
         ("in-progress IMP at:flat-bed-3", MOVED)],
        id="beds-known-by-their-owner",
    ),
    pytest.param(
        [("in-progress IMP at:loose-1", A01), ("in-progress IMP at:loose-2", ""),
         ("in-progress IMP at:nowhere", "")],
        id="beds-of-which-nothing-is-known",
    ),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP by:falls at:falls-bed-1", "")], id="facility-told-later"
    ),
    pytest.param(
        [("in-progress IMP by:falls", A01), ("in-progress IMP by:lake", MOVED)], id="another-provider"
    ),
    pytest.param(
        [("in-progress IMP by:falls-cardiology", A01), ("in-progress IMP by:falls-medicine", ""),
         ("in-progress IMP by:falls", ""), ("in-progress IMP by:lake", MOVED)],
        id="departments-of-one-hospital",
    ),
    pytest.param(
        [("in-progress IMP by:falls at:flat-bed-1", A01), ("in-progress IMP by:falls at:flat-bed-3", "")],
        id="a-bed-of-another-owner-is-no-other-provider",
    ),
    pytest.param(
        [("in-progress EMER by:falls", A04), ("in-progress IMP by:lake", f"{A06} {ROSE}")],
        id="rise-and-move-are-one-transfer",
    ),
    pytest.param([("finished IMP by:falls", A03), ("finished IMP by:lake", "")], id="no-transfer-when-over"),
    pytest.param(
        [("in-progress NONAC", f"{A01} snf-admission:A01"), ("finished NONAC end", A03)], id="non-acute-class"
    ),
    pytest.param(
        [("in-progress IMP at:rehab-bed", f"{A01} snf-admission:A01")], id="bed-in-a-nursing-facility"
    ),
    pytest.param(
        [("in-progress IMP", A01), ("in-progress IMP at:rehab-bed", "snf-admission:A02"),
         ("in-progress IMP at:rehab-bed note:x", "")],
        id="nursing-facility-told-later",
    ),
    pytest.param(
        [("in-progress AMB at:rehab-bed", ""), ("in-progress IMP left at:rehab-bed", A03)],
        id="nursing-facility-but-no-stay",
    ),
]  # fmt: skip


@pytest.mark.parametrize("steps", STEPS)
async def test_what_a_stay_tells(
    practice: Listener, request: pytest.FixtureRequest, steps: list[tuple[str, str]]
) -> None:
    id_ = request.node.callspec.id
    for minute, (text, expected) in enumerate(steps):
        told = await practice.told(stay(id_, text, minute), f"Encounter/{id_}")
        assert told == sorted(f"encounter-{each}" for each in expected.split()), text


async def test_the_same_message_again_tells_nothing(practice: Listener) -> None:
    """Repeated at once, and once more when the stay has gone on."""
    texts = ("in-progress IMP", "finished IMP end")
    messages = [stay("repeated", text, minute) for minute, text in enumerate(texts)]
    told = [
        await practice.told(messages[number], "Encounter/repeated") for number in (0, 0, 1, 1, 0)
    ]
    assert told == [["encounter-admission:A01"], [], ["encounter-discharge:A03"], [], []]


async def test_a_burst_of_versions_is_judged_in_order(practice: Listener) -> None:
    """Recorded in one batch: the admission is not in the ledger yet when the cancellation is judged."""
    before = len(practice.receiver.events)
    texts = ("in-progress IMP", "cancelled IMP", "in-progress IMP", "finished IMP end")
    async with practice.server.worker._intake._recorder.lock:
        for minute, text in enumerate(texts):
            await practice.put(stay("burst", text, minute) or {})
    await practice.server.worker.drain()
    told = [each.path for each in practice.receiver.events[before:]]
    assert sorted(told) == [
        "/encounter-admission",
        "/encounter-admission",
        "/encounter-cancelled",
        "/encounter-discharge",
    ]


async def test_nobody_is_told_of_a_cancellation_whose_stay_nobody_was_told_of(
    door: Listener,
) -> None:
    await door.listen("encounter-cancelled", "patient=quiet")
    await door.listen("encounter-admission", "patient=somebody-else")
    for minute, text in enumerate(("in-progress IMP", "cancelled IMP")):
        message = {**(stay("quiet", text, minute) or {}), "subject": {"reference": "Patient/quiet"}}
        assert await door.told(message, "Encounter/quiet") == []


@pytest.mark.slow
async def test_notices_that_were_suppressed_are_no_notices(door: Listener) -> None:
    """The only one to be told of the admission wants nothing more: its Subscription is off."""
    await door.listen("encounter-cancelled", "patient=hushed")
    unreachable = topic_based("patient=hushed", endpoint=ENDPOINT)
    answer = await door.client.post("Subscription", json={**unreachable, "status": "off"})
    await door.server.worker.drain()
    read = await door.client.get(f"Subscription/{answer.json()['id']}")
    assert read.json()["status"] == "off"
    for minute, text in enumerate(("in-progress IMP", "cancelled IMP")):
        message = {
            **(stay("hushed", text, minute) or {}),
            "subject": {"reference": "Patient/hushed"},
        }
        assert await door.told(message, "Encounter/hushed") == []


@pytest.mark.slow
async def test_the_filters_of_stays(door: Listener) -> None:
    """A filter on the practice, the kind of facility, the class, the disposition and the trigger."""
    for id_, gp in (("mine", "doctor"), ("other", "somebody")):
        await door.put({"resourceType": "Practitioner", "id": gp})
        await door.put(
            {"resourceType": "Patient", "id": id_,
             "generalPractitioner": [{"reference": f"Practitioner/{gp}"}]}
        )  # fmt: skip
    mine = "general-practitioner=Practitioner/doctor"
    await door.listen("encounter-admission", mine, "class=IMP")
    await door.listen("encounter-discharge", mine, "discharge-disposition=home")
    await door.listen("encounter-transfer", mine, "trigger=A02")
    await door.listen("encounter-snf-admission", mine, "facility-type=snf")
    told = []
    for patient in ("mine", "other"):
        texts = (
            "arrived EMER by:falls",
            "in-progress IMP by:lake at:rehab-bed",
            "finished IMP",
        )
        for minute, text in enumerate(texts):
            version = stay(f"of-{patient}", text, minute)
            assert version is not None
            version["subject"] = {"reference": f"Patient/{patient}"}
            system = "http://terminology.hl7.org/CodeSystem/discharge-disposition"
            version["hospitalization"] = {"dischargeDisposition": concept(system, "home")}
            told.append(await door.told(version, f"Encounter/of-{patient}"))
    assert told == [
        [],
        ["encounter-admission:A06", "encounter-snf-admission:A06"],
        ["encounter-discharge:A03"],
        [],
        [],
        [],
    ]
