"""Corrections of a visit: what counts at once, what does not, and how its sender notices (docs/encounters.md).

A `PUT` without a stated event time is a whole Encounter. Only a step back of its status may be an old message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from app.fhir.codes import EVENT_TIME
from app.fhir.encounter_status import phase
from app.fhir.ids import new_id
from tests.builders.receiver import Received
from tests.builders.subscriptions import encounter
from tests.builders.topic_listener import Listener, label, listening
from tests.builders.visit_messages import Message, deliveries, visits
from tests.conftest import make_settings, running

APPLIED = "CareRelay-Applied"
TOPICS = ("admission", "discharge", "transfer", "cancelled")
HOME = {"dischargeDisposition": {"text": "home"}}
_NOW = datetime.now(UTC).replace(microsecond=0)
_DAY = (_NOW - timedelta(days=3)).date().isoformat()

Send = Callable[[httpx.AsyncClient, Message], Awaitable[httpx.Response]]


@pytest.fixture(scope="module")
async def practice(mongod: str) -> AsyncIterator[Listener]:
    """A practice that is told of everything that happens to stays."""
    async with listening(mongod) as listener:
        await listener.put({"resourceType": "Patient", "id": "p1"})
        for slug in TOPICS:
            await listener.listen(f"encounter-{slug}")
        yield listener


def ahead(**distance: float) -> str:
    """A time that is so far ahead of the server's clock."""
    return (datetime.now(UTC) + timedelta(**distance)).isoformat(timespec="seconds")


def plain(
    id_: str, status: str, start: str | None = None, end: str | None = None, **more: Any
) -> Message:
    """A whole Encounter. Hours are of a day three days ago: `08:00`, or a whole text."""
    times = {"start": start, "end": end}
    period = {name: at(text) for name, text in times.items() if text}
    found = encounter(status, "IMP", id=id_, patient="p1", **more)
    return {**found, "period": period} if period else found


def at(text: str) -> str:
    return f"{_DAY}T{text}:00Z" if len(text) == 5 else text


def stating(text: str) -> Message:
    return {"extension": [{"url": EVENT_TIME, "valueDateTime": at(text)}]}


async def put(client: httpx.AsyncClient, sent: Message) -> httpx.Response:
    return await client.put(f"/Encounter/{sent['id']}", json=sent)


async def current(practice: Listener, id_: str) -> Message:
    found: Message = (await practice.client.get(f"/Encounter/{id_}")).json()
    return {key: value for key, value in found.items() if key != "meta"}


async def told(practice: Listener, id_: str) -> list[str]:
    """What was told of a visit, by the order of its versions: notices of several Subscriptions may cross."""
    await practice.server.worker.drain()
    mine = [each for each in practice.receiver.events if each.focus.endswith(f"Encounter/{id_}")]
    return [label(each).removeprefix("encounter-") for each in sorted(mine, key=version_of)]


def version_of(notice: Received) -> int:
    etag: str = notice.json["entry"][1]["response"]["etag"]
    return int(etag.removeprefix('W/"').removesuffix('"'))


async def asked(practice: Listener, id_: str) -> list[str]:
    """The reasons for which a person is asked to look at a visit's messages."""
    await practice.server.engine.drain()
    found = await practice.client.get("/Task", params={"focus": f"Encounter/{id_}"})
    codes = [
        entry["resource"]["code"]["coding"][0]["code"] for entry in found.json().get("entry", ())
    ]
    return sorted(code for code in codes if code in ("late-admission", "unapplied-message"))


PLACES = [{"location": {"display": "ward"}, "period": {"start": at("10:00")}}]
CORRECTIONS = [
    pytest.param([("in-progress", "08:00"), ("in-progress", "07:00")], id="start-earlier"),
    pytest.param([("in-progress", "08:00"), ("in-progress", "09:00")], id="start-later"),
    pytest.param([("in-progress", "08:00"), ("in-progress",)], id="start-removed"),
    pytest.param([("in-progress", "08:00"), ("in-progress", _DAY)], id="start-of-a-day"),
    pytest.param([("in-progress", "08:00"), ("in-progress", _DAY[:7])], id="start-of-a-month"),
    pytest.param([("in-progress", "08:00"), ("in-progress", _DAY[:4])], id="start-of-a-year"),
    pytest.param(
        [("in-progress", "08:00"), ("in-progress", f"{_DAY}T09:00:00+02:00")], id="start-in-another-zone"
    ),
    pytest.param([("in-progress", "08:00"), ("finished", "06:00", "07:00")], id="over-before-it-began"),
    pytest.param([("in-progress", "08:00"), ("finished", _DAY, _DAY)], id="over-on-a-day"),
    pytest.param([("in-progress", "08:00"), ("finished", "2026-01")], id="over-without-an-end"),
    pytest.param([("finished", "08:00", "12:00"), ("finished", "08:00", "11:00")], id="end-earlier"),
    pytest.param([("finished", "08:00", "12:00"), ("finished", "08:00", "13:00")], id="end-later"),
    pytest.param([("finished", "08:00", "12:00"), ("finished", "08:00")], id="end-removed"),
    pytest.param([("finished", "08:00", "12:00"), ("cancelled", "08:00", "09:00")], id="cancelled-after-all"),
    pytest.param([("cancelled", "08:00"), ("finished", "08:00", "11:00")], id="not-cancelled-after-all"),
    pytest.param([("planned", "08:00"), ("arrived", "07:00")], id="arrived-before-the-plan"),
    pytest.param([("in-progress", "08:00"), ("arrived", "07:00")], id="only-arrived"),
    pytest.param([("onleave", "08:00"), ("in-progress", "08:00")], id="back-from-leave"),
    pytest.param([("in-progress", "08:00"), ("entered-in-error", "07:00")], id="in-error"),
]  # fmt: skip


@pytest.mark.parametrize("steps", CORRECTIONS)
async def test_a_correction_counts(
    practice: Listener, steps: list[tuple[str, ...]], request: pytest.FixtureRequest
) -> None:
    id_ = request.node.callspec.id
    for status, *times in steps:
        more: Message = {"location": PLACES} if (status, *times) == steps[0] else {}
        sent = plain(id_, status, *times, **more)
        answer = await put(practice.client, sent)
        assert answer.status_code in (200, 201)
        assert answer.headers.get(APPLIED, "all") == "all"
        assert await current(practice, id_) == sent
    assert await asked(practice, id_) == []


async def test_a_discharge_whose_end_lies_before_the_arrival_of_the_expected_one_is_told(
    practice: Listener,
) -> None:
    """Hospitals send the expected date of discharge with the admission."""
    for sent in (
        plain("early", "in-progress", "08:00", ahead(days=2)),
        plain("early", "finished", "08:00", "15:00", hospitalization=HOME),
    ):
        assert (await put(practice.client, sent)).is_success
        assert await current(practice, "early") == sent
    assert await told(practice, "early") == ["admission:A01", "discharge:A03"]


@pytest.mark.slow
async def test_an_expected_end_that_passes_is_no_discharge(practice: Listener) -> None:
    soon = (datetime.now(UTC) + timedelta(milliseconds=400)).isoformat(timespec="milliseconds")
    sent = plain("passes", "in-progress", "08:00", soon, hospitalization=HOME)
    await put(practice.client, sent)
    while datetime.now(UTC) < datetime.fromisoformat(soon):  # nothing tells that time has passed
        await practice.server.worker.drain()
    await put(practice.client, {**sent, "reasonCode": [{"text": "falls"}]})
    assert await told(practice, "passes") == ["admission:A01"]
    await put(practice.client, {**sent, "status": "finished"})
    assert await told(practice, "passes") == ["admission:A01", "discharge:A03"]


OVERLAPPING = [
    pytest.param("09:00", _DAY, id="day"),
    pytest.param("09:00", _DAY[:7], id="month"),
    pytest.param("09:00", _DAY[:4], id="year"),
    pytest.param(f"{_DAY}T09:00:25Z", f"{_DAY}T09:00:00Z", id="minute"),
    pytest.param(f"{_DAY}T09:00:25.500Z", f"{_DAY}T09:00:25Z", id="second"),
    pytest.param(f"{_DAY}T09:00:25.500Z", f"{_DAY}T05:00:25.5-04:00", id="tenth-in-another-zone"),
]


@pytest.mark.parametrize(("fine", "coarse"), OVERLAPPING)
async def test_where_times_overlap_arrival_decides(
    practice: Listener, fine: str, coarse: str, request: pytest.FixtureRequest
) -> None:
    id_ = f"overlap-{request.node.callspec.id}"
    await put(practice.client, plain(id_, "in-progress", "07:00", **stating(fine)))
    answer = await put(practice.client, plain(id_, "finished", end="12:00", **stating(coarse)))
    assert (answer.status_code, answer.headers[APPLIED]) == (200, "all")
    assert (await current(practice, id_))["status"] == "finished"
    assert await told(practice, id_) == ["admission:A01", "discharge:A03"]


async def test_what_is_older_than_a_message_that_came_before_a_coarse_one_stays_older(
    practice: Listener,
) -> None:
    """A01 at nine, A03 on that day, A02 at eight: the transfer was before the admission and changes nothing."""
    for sent in (
        plain("coarse", "in-progress", "07:00", **stating("09:00")),
        plain("coarse", "finished", end="12:00", **stating(_DAY)),
        plain("coarse", "in-progress", **stating("08:00")),
    ):
        await put(practice.client, sent)
    assert (await current(practice, "coarse"))["status"] == "finished"


async def plain_put(client: httpx.AsyncClient, sent: Message) -> httpx.Response:
    return await put(client, sent)


async def conditional_put(client: httpx.AsyncClient, sent: Message) -> httpx.Response:
    number = sent["identifier"][0]["value"]
    body = {key: value for key, value in sent.items() if key != "id"}
    return await client.put("/Encounter", params={"identifier": f"urn:visits|{number}"}, json=body)


async def in_transaction(client: httpx.AsyncClient, sent: Message) -> httpx.Response:
    return await client.post("", json=bundle("transaction", sent))


async def in_batch(client: httpx.AsyncClient, sent: Message) -> httpx.Response:
    return await client.post("", json=bundle("batch", sent))


def bundle(kind: str, sent: Message) -> Message:
    request = {"method": "PUT", "url": f"Encounter/{sent['id']}"}
    return {
        "resourceType": "Bundle",
        "type": kind,
        "entry": [{"request": request, "resource": sent}],
    }


def answered(answer: httpx.Response) -> tuple[int, list[str]]:
    """The status and the severities of the outcome, of a request alone or the entry of a Bundle."""
    body = answer.json()
    if body["resourceType"] == "Bundle":
        (entry,) = body["entry"]
        status, outcome = int(entry["response"]["status"]), entry["response"]["outcome"]
    else:
        status, outcome = answer.status_code, body
    assert outcome["resourceType"] == "OperationOutcome"
    return status, [issue["severity"] for issue in outcome["issue"]]


@pytest.mark.parametrize("send", [plain_put, conditional_put, in_transaction, in_batch])
async def test_a_step_back_with_nothing_newer_to_show_is_kept_and_looked_at(
    practice: Listener, send: Send
) -> None:
    """It looks like the admission that came late, and may be a discharge taken back: a person decides."""
    id_ = f"back-{send.__name__}".replace("_", "-")
    number: Message = {"identifier": [{"system": "urn:visits", "value": id_}]}
    for sent in (
        plain(id_, "in-progress", "08:00", **number),
        plain(id_, "finished", "08:00", "12:00", **number),
    ):
        await put(practice.client, sent)
    before = await current(practice, id_)
    back = plain(id_, "in-progress", "07:00", **number)
    for _ in range(2):  # its repetition is answered alike, and makes nothing more
        assert answered(await send(practice.client, back)) == (202, ["information", "warning"])
        assert await current(practice, id_) == before
        assert await asked(practice, id_) == ["unapplied-message"]
    history = (await practice.client.get(f"/Encounter/{id_}/_history")).json()
    statuses = [entry["resource"]["status"] for entry in history["entry"]]
    assert statuses == ["finished", "in-progress", "finished", "in-progress"]
    assert await told(practice, id_) == ["admission:A01", "discharge:A03"]


async def test_what_counted_before_the_discharge_and_is_sent_again_is_looked_at(
    practice: Listener,
) -> None:
    """Somebody takes the discharge back by what was there before, or an engine sends the admission again."""
    first = plain("again", "in-progress", "08:00")
    for sent in (first, plain("again", "finished", "08:00", "12:00")):
        await put(practice.client, sent)
    for _ in range(2):
        assert answered(await put(practice.client, first)) == (202, ["information", "warning"])
        assert await asked(practice, "again") == ["unapplied-message"]


async def test_with_return_minimal_the_status_says_that_it_was_not_applied(
    practice: Listener,
) -> None:
    await put(practice.client, plain("minimal", "finished", "08:00", "12:00"))
    answer = await practice.client.put(
        "/Encounter/minimal",
        json=plain("minimal", "in-progress", "08:00"),
        headers={"Prefer": "return=minimal"},
    )
    assert (answer.status_code, answer.content) == (202, b"")
    assert answer.headers[APPLIED] == "history-only"
    assert await asked(practice, "minimal") == ["late-admission"]


async def test_a_late_admission_without_event_time_fills_what_is_unknown_and_is_looked_at(
    practice: Listener,
) -> None:
    await put(practice.client, plain("fills", "finished", end="12:00"))
    answer = await put(practice.client, plain("fills", "in-progress", "08:00"))
    assert answered(answer) == (202, ["information", "warning"])
    assert await current(practice, "fills") == plain("fills", "finished", "08:00", "12:00")
    assert await asked(practice, "fills") == ["late-admission"]
    assert await told(practice, "fills") == ["discharge:A03"]


STEPS_BACK = [
    pytest.param("finished", "planned", {}, False, id="finished-planned"),
    pytest.param("cancelled", "in-progress", {}, False, id="cancelled-active"),
    pytest.param("entered-in-error", "arrived", {}, False, id="in-error-active"),
    pytest.param("in-progress", "planned", {}, False, id="active-planned"),
    pytest.param("finished", "unknown", {}, False, id="finished-unknown"),
    pytest.param(
        "finished",
        "in-progress",
        {"statusHistory": [{"status": "finished", "period": {"start": at("12:00")}}]},
        True,
        id="knows-of-the-discharge",
    ),
    pytest.param("finished", "in-progress", {"location": [{
        "location": {"display": "icu"}, "period": {"start": at("13:00")}}]}, True, id="shows-a-later-place"),
    pytest.param("finished", "in-progress", stating("12:30"), True, id="states-a-later-time"),
    pytest.param("finished", "in-progress", stating("11:00"), False, id="states-an-earlier-time"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "more", "counts"), STEPS_BACK)
async def test_a_step_back_counts_where_it_shows_that_it_is_newer(
    practice: Listener,
    before: str,
    after: str,
    more: Message,
    counts: bool,
    request: pytest.FixtureRequest,
) -> None:
    id_ = f"step-{request.node.callspec.id}"
    end = None if before == "in-progress" else "12:00"
    await put(practice.client, plain(id_, before, "08:00", end))
    answer = await put(practice.client, plain(id_, after, "08:00", **more))
    assert answer.status_code == (200 if counts else 202)
    assert (await current(practice, id_))["status"] == (after if counts else before)
    assert bool(await asked(practice, id_)) is not counts


async def test_a_late_discharge_that_does_not_count_is_looked_at(practice: Listener) -> None:
    """A discharge that was taken back before it was heard of is in order, or its year is a mistake."""
    for sent in (
        plain("late-a03", "in-progress", "08:00", **stating("08:00")),
        plain("late-a03", "in-progress", **stating("12:00")),
    ):
        await put(practice.client, sent)
    late = plain("late-a03", "finished", end="11:00", **stating("11:00"))
    assert answered(await put(practice.client, late)) == (202, ["information", "warning"])
    assert (await current(practice, "late-a03"))["status"] == "in-progress"
    assert await asked(practice, "late-a03") == ["unapplied-message"]


CANCELS = [
    pytest.param({"start": 5}, {}, id="no-times"),
    pytest.param({"start": 5}, {"stated": -1}, id="cancel-states-its-time"),
    pytest.param({"start": 5, "stated": 5}, {"stated": 0}, id="admission-stated-ahead"),
    pytest.param({"start": 5, "stated": 5}, {"stated": 5}, id="both-ahead"),
    pytest.param({"start": 5, "stated": 5}, {}, id="cancel-without"),
    pytest.param({"start": 59, "stated": 59}, {"stated": -9}, id="nearly-an-hour"),
    pytest.param({"start": 90, "stated": 90}, {"stated": 0}, id="an-hour-and-a-half"),
    pytest.param({"start": 9000, "stated": 9000}, {"stated": 9001}, id="far-ahead"),
]


@pytest.mark.parametrize(("admission", "cancel"), CANCELS)
async def test_a_cancel_counts_though_the_admission_is_ahead_of_the_servers_clock(
    practice: Listener,
    admission: dict[str, int],
    cancel: dict[str, int],
    request: pytest.FixtureRequest,
) -> None:
    id_ = f"cancel-{request.node.callspec.id}"
    start = ahead(minutes=admission["start"])
    for status, each in (("in-progress", admission), ("cancelled", cancel)):
        more = stating(ahead(minutes=each["stated"])) if "stated" in each else {}
        answer = await put(practice.client, plain(id_, status, start, **more))
        assert answer.status_code in (200, 201), answer.text
    assert (await current(practice, id_))["status"] == "cancelled"
    assert await told(practice, id_) == ["admission:A01", "cancelled:A11"]


async def test_two_messages_of_a_sender_whose_clock_is_ahead_keep_their_order(
    practice: Listener,
) -> None:
    first, second = (ahead(minutes=each) for each in (5, 6))
    await put(practice.client, plain("fast", "finished", end=second, **stating(second)))
    answer = await put(practice.client, plain("fast", "in-progress", first, **stating(first)))
    assert answer.headers[APPLIED] == "filled"
    assert (await current(practice, "fast"))["status"] == "finished"


@pytest.mark.slow
async def test_a_correction_counts_in_whichever_process(mongod: str) -> None:
    shared = make_settings(mongod)
    async with running(shared) as (_, one), running(shared) as (_, other):
        for client, sent in (
            (one, plain("both", "in-progress", "08:00", ahead(days=1))),
            (other, plain("both", "in-progress", "07:00")),
            (one, plain("both", "finished", "06:00", "06:30")),
        ):
            answer = await put(client, sent)
            assert answer.status_code in (200, 201)
            assert answer.json()["status"] == sent["status"]
        assert (await put(other, plain("both", "in-progress", "08:00"))).status_code == 202
        assert (await one.get("/Encounter/both")).json()["status"] == "finished"


@pytest.mark.parametrize("verb", ["patch", "if-match"])
async def test_who_has_seen_what_they_replace_takes_a_discharge_back(
    practice: Listener, verb: str
) -> None:
    id_ = f"seen-{verb}"
    for sent in (plain(id_, "in-progress", "08:00"), plain(id_, "finished", "08:00", "12:00")):
        answer = await put(practice.client, sent)
    if verb == "patch":
        patch = (
            '[{"op": "replace", "path": "/status", "value": "in-progress"},'
            ' {"op": "remove", "path": "/period/end"}]'
        )
        headers = {"Content-Type": "application/json-patch+json"}
        answer = await practice.client.patch(f"/Encounter/{id_}", content=patch, headers=headers)
    else:
        headers = {"If-Match": answer.headers["ETag"]}
        body = plain(id_, "in-progress", "08:00")
        answer = await practice.client.put(f"/Encounter/{id_}", json=body, headers=headers)
    assert (answer.status_code, answer.json()["status"]) == (200, "in-progress")
    assert await told(practice, id_) == ["admission:A01", "discharge:A03", "cancelled:A13"]


_EXPECTED = (_NOW + timedelta(days=9)).isoformat()
_WHOLE = st.builds(
    lambda status, times, text: {
        "status": status,
        "period": {name: at(each) for name, each in zip(("start", "end"), times, strict=False)},
        "reasonCode": [{"text": text}],
    },
    st.sampled_from(["planned", "arrived", "in-progress", "onleave", "finished", "cancelled"]),
    st.sampled_from(
        [
            ("06:00",),
            ("08:00",),
            (_DAY,),
            (_DAY[:7],),
            ("06:00", "07:00"),
            ("08:00", "12:00"),
            (_DAY, _DAY),
            ("08:00", _EXPECTED),
        ]
    ),
    st.sampled_from(["falls", "cough"]),
)
_OFTEN = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@pytest.mark.slow
@given(st.lists(_WHOLE, min_size=2, max_size=6))
@settings(max_examples=15, **_OFTEN)  # type: ignore[arg-type]
async def test_of_whole_encounters_each_counts_or_is_answered_as_one_that_does_not(
    practice: Listener, sent: list[Message]
) -> None:
    """And one that does not takes the status back."""
    id_ = new_id()
    before: Message = {}
    for each in sent:
        message = {**plain(id_, each["status"]), **each}
        answer = await put(practice.client, message)
        assert answer.is_success
        now = await current(practice, id_)
        if answer.status_code == 202:
            assert phase(message) < phase(before)
            assert now["status"] == before["status"]
            assert len(await asked(practice, id_)) > 0
        else:
            assert now == message
        before = now


@pytest.mark.slow
@given(visits(), st.data())
@settings(max_examples=15, **_OFTEN)  # type: ignore[arg-type]
async def test_what_was_told_last_is_how_the_visit_is_in_whatever_order_its_messages_came(
    practice: Listener, visit: list[Message], data: st.DataObject
) -> None:
    arrived = data.draw(deliveries(visit))
    id_ = new_id()  # of its own also where an example is tried again
    for each in arrived:
        sent = {**each, "id": id_, "subject": {"reference": "Patient/p1"}}
        assert (await put(practice.client, sent)).is_success
        await practice.server.worker.drain()
    status = (await current(practice, id_))["status"]
    known = [each for each in visit if each["status"] != "unknown"]
    assert status == (known or visit)[-1]["status"]
    heard = [each for each in await told(practice, id_) if not each.startswith("transfer")]
    ends = [each for each in heard if each in ("discharge:A03", "cancelled:A13", "cancelled:A11")]
    if status == "finished":
        assert ends[-1] == "discharge:A03"
    elif status == "cancelled":
        assert not heard or ends[-1] == "cancelled:A11"
    else:
        assert not ends or ends[-1] == "cancelled:A13"
