"""Continuity of care: a new member's earlier plan of care is honoured for 90 days, or until a new plan replaces it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import httpx
import pytest

from app.coordination.continuity.continuity_days import (
    EarlierPlan,
    Enrolment,
    continuity,
    new_enrolments,
)
from tests.builders.consents import label
from tests.builders.members import Member, Resource, codes
from tests.conftest import Server, make_settings, running

PLAN = {"reference": "Organization/evergrove"}


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server of its own, because its calendar is put forward."""
    payors = "Organization/evergrove, Organization/meadowlark"
    async with running(make_settings(mongod, continuity_payors=payors)) as pair:
        yield pair


@pytest.fixture
async def member(hub: tuple[Server, httpx.AsyncClient]) -> Member:
    return await Member.new(*hub)


async def insure(member: Member, name: str = "coverage", **changes: Any) -> Resource:
    """A Coverage of the plan, from today where not said otherwise."""
    return await member.put(
        {
            "resourceType": "Coverage",
            "status": "active",
            "beneficiary": member.patient,
            "payor": [PLAN],
            "period": {"start": member.day()},
            **changes,
        },
        name,
    )


async def plan(member: Member, name: str = "earlier", days: int = -100, **changes: Any) -> Resource:
    """A plan of care that began so many days ago."""
    return await member.put(
        {
            "resourceType": "CarePlan",
            "status": "active",
            "intent": "plan",
            "subject": member.patient,
            "period": {"start": member.day(days)},
            **changes,
        },
        name,
    )


async def replace_earlier(member: Member, **changes: Any) -> Resource:
    earlier = {"reference": f"CarePlan/{member.id}-earlier"}
    return await plan(member, "new", 0, replaces=[earlier], **changes)


async def flags(member: Member) -> list[Resource]:
    return await member.found("Flag")


async def tasks(member: Member) -> list[Resource]:
    return await member.tasks("task-code", "continuity-of-care-end")


async def test_a_new_member_with_an_earlier_plan_keeps_it_for_90_days(member: Member) -> None:
    earlier = await plan(member)
    await insure(member)
    (flag,) = await flags(member)
    assert flag["status"] == "active"
    assert codes(flag["code"]) == codes(flag["category"]) == ["continuity-of-care"]
    assert flag["subject"] == member.patient
    assert flag["period"] == {"start": member.day(), "end": member.day(90)}
    (task,) = await tasks(member)
    assert (task["status"], task["focus"]["reference"]) == (
        "requested",
        f"CarePlan/{earlier['id']}",
    )
    assert task["restriction"]["period"]["end"] == member.day(90)


async def test_an_earlier_plan_that_arrives_after_the_enrolment_counts_too(member: Member) -> None:
    await insure(member)
    assert await flags(member) == []
    await plan(member)
    assert [flag["status"] for flag in await flags(member)] == ["active"]


@pytest.mark.slow
async def test_after_90_days_the_flag_ends_and_the_task_is_overdue(member: Member) -> None:
    await plan(member)
    await insure(member)
    end = member.day(90)
    await member.days_pass(90)
    assert [flag["status"] for flag in await flags(member)] == ["active"]
    await member.days_pass(2)
    (flag,), (task,) = await flags(member), await tasks(member)
    assert (flag["status"], flag["period"]["end"]) == ("inactive", end)
    assert (task["status"], task["priority"]) == ("requested", "urgent")
    assert codes(task["businessStatus"]) == ["overdue"]
    await replace_earlier(member)
    (flag,), (task,) = await flags(member), await tasks(member)
    assert (task["status"], flag["period"]["end"]) == ("completed", end)


@pytest.mark.slow
async def test_a_new_plan_that_replaces_the_earlier_one_ends_it_at_once(member: Member) -> None:
    await plan(member)
    await insure(member)
    await member.days_pass(30)
    await replace_earlier(member)
    (flag,), (task,) = await flags(member), await tasks(member)
    assert (flag["status"], flag["period"]["end"]) == ("inactive", member.day())
    assert (task["status"], codes(task["statusReason"])) == ("completed", ["plan-replaced"])


@pytest.mark.parametrize("status", ["draft", "entered-in-error"])
async def test_a_new_plan_that_is_not_in_force_ends_nothing(member: Member, status: str) -> None:
    await plan(member)
    await insure(member)
    await replace_earlier(member, status=status)
    assert [flag["status"] for flag in await flags(member)] == ["active"]


async def test_a_new_plan_retracted_brings_continuity_back(member: Member) -> None:
    await plan(member)
    await insure(member)
    await replace_earlier(member)
    await replace_earlier(member, status="entered-in-error")
    (flag,), (task,) = await flags(member), await tasks(member)
    assert (flag["status"], flag["period"]["end"]) == ("active", member.day(90))
    assert (task["status"], "statusReason" in task) == ("requested", False)


async def test_an_earlier_plan_that_runs_out_before_ends_it_sooner(member: Member) -> None:
    await plan(member, period={"start": member.day(-100), "end": member.day(20)})
    await insure(member)
    (flag,) = await flags(member)
    assert flag["period"]["end"] == member.day(20)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"payor": [{"reference": "Organization/state"}]}, id="another-payor"),
        pytest.param({"status": "draft"}, id="draft"),
        pytest.param({"period": {}}, id="no-start"),
    ],
)
async def test_what_is_no_enrolment_on_the_plan_brings_none(
    member: Member, changes: dict[str, Any]
) -> None:
    await plan(member)
    if changes.get("period") == {}:
        changes = {"period": {"end": member.day(300)}}
    await insure(member, **changes)
    assert await flags(member) == []


async def test_a_renewal_is_no_new_enrolment(member: Member) -> None:
    await insure(member, "last-year", period={"start": member.day(-365), "end": member.day(-1)})
    await plan(member)
    await insure(member)
    assert await flags(member) == []


async def test_an_enrolment_of_long_ago_brings_none(member: Member) -> None:
    await plan(member, days=-400)
    await insure(member, period={"start": member.day(-120)})
    assert await flags(member) == await tasks(member) == []


@pytest.mark.slow
async def test_a_coverage_that_ends_takes_continuity_with_it(member: Member) -> None:
    await plan(member)
    await insure(member)
    await insure(member, period={"start": member.day(), "end": member.day(10)})
    (flag,) = await flags(member)
    assert (flag["status"], flag["period"]["end"]) == ("active", member.day(10))
    await member.days_pass(12)
    (flag,), (task,) = await flags(member), await tasks(member)
    assert (flag["status"], task["status"]) == ("inactive", "cancelled")
    assert codes(task["statusReason"]) == ["enrolment-ended"]


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("cancelled", "inactive"),
        ("entered-in-error", "entered-in-error"),
        ("deleted", "entered-in-error"),
    ],
)
async def test_an_enrolment_that_is_withdrawn_takes_it_back(
    member: Member, how: str, status: str
) -> None:
    await plan(member)
    coverage = await insure(member)
    if how == "deleted":
        await member.delete(coverage)
    else:
        await insure(member, status=how)
    (flag,), (task,) = await flags(member), await tasks(member)
    assert (flag["status"], task["status"]) == (status, "cancelled")


@pytest.mark.slow
async def test_told_again_nothing_changes(member: Member) -> None:
    earlier = await plan(member)
    coverage = await insure(member)
    before = (await flags(member), await tasks(member))
    for resource, name in ((earlier, "earlier"), (coverage, "coverage")):
        body = {key: value for key, value in resource.items() if key not in ("id", "meta")}
        await member.put({**body, "language": "en"}, name)
    await member.days_pass(1)
    assert (await flags(member), await tasks(member)) == before


async def test_two_coverages_of_one_day_are_one_enrolment(member: Member) -> None:
    await plan(member)
    await insure(member)
    await insure(member, "drugs", payor=[{"reference": "Organization/meadowlark"}])
    assert len(await flags(member)) == len(await tasks(member)) == 1


START = date(2026, 5, 1)


def a_plan(name: str, began: date, status: str = "active", **more: Any) -> EarlierPlan:
    given = {"ends": None, "replaces": frozenset(), "written": began, **more}
    return EarlierPlan(f"CarePlan/{name}", status, began, **given)


@pytest.mark.parametrize(
    ("plans", "expected"),
    [
        pytest.param([], None, id="no-plan"),
        pytest.param([a_plan("a", START)], None, id="begun-with-the-enrolment"),
        pytest.param([a_plan("a", date(2026, 1, 1))], (date(2026, 7, 30), "expires"), id="one"),
        pytest.param(
            [a_plan("a", date(2026, 1, 1), ends=date(2026, 4, 30))], None, id="over-the-day-before"
        ),
        pytest.param(
            [
                a_plan("a", date(2026, 1, 1)),
                a_plan("b", date(2026, 2, 1)),
                a_plan("c", date(2026, 6, 1), replaces=frozenset({"CarePlan/a"})),
            ],
            (date(2026, 7, 30), "expires"),
            id="one-of-two-replaced",
        ),
        pytest.param(
            [
                a_plan("a", date(2026, 1, 1), "completed"),
                a_plan("b", date(2026, 2, 1)),
                a_plan("c", date(2026, 6, 1), replaces=frozenset({"CarePlan/a"})),
                a_plan("d", date(2026, 6, 9), replaces=frozenset({"CarePlan/b"})),
            ],
            (date(2026, 6, 9), "replaced"),
            id="both-replaced",
        ),
        pytest.param(
            [
                a_plan("a", date(2026, 1, 1)),
                a_plan("b", date(2026, 2, 1), replaces=frozenset({"CarePlan/a"})),
            ],
            (date(2026, 7, 30), "expires"),
            id="replaced-before-the-enrolment",
        ),
        pytest.param(
            [a_plan("a", date(2026, 1, 1), "revoked", written=date(2026, 5, 20))],
            (date(2026, 5, 20), "stopped"),
            id="revoked",
        ),
        pytest.param(
            [a_plan("a", date(2026, 1, 1), "revoked", written=date(2026, 3, 1))],
            None,
            id="revoked-before",
        ),
    ],
)
def test_how_long_earlier_plans_are_honoured(
    plans: list[EarlierPlan], expected: tuple[date, str] | None
) -> None:
    found = continuity(Enrolment(START, None), plans, 90)
    assert (found and (found.end, found.outcome)) == expected


def test_a_coverage_goes_on_with_the_next_one_of_its_payor() -> None:
    def coverage(name: str, start: str, end: str | None) -> Resource:
        period = {"start": start, **({"end": end} if end else {})}
        return {"id": name, "status": "active", "payor": [PLAN], "period": period}

    coverages = [coverage("a", "2026-11-01", "2026-12-31"), coverage("b", "2027-01-01", None)]
    assert new_enrolments(coverages, frozenset()) == [Enrolment(date(2026, 11, 1), None)]
    assert new_enrolments([coverage("a", "2026-11-01", "2026-12")], frozenset()) == [
        Enrolment(date(2026, 11, 1), date(2026, 12, 31))
    ]


async def test_flag_and_task_bear_the_labels_that_the_earlier_plan_has_now(member: Member) -> None:
    """From the beginning, given later, taken away, and where the enrolment is gone."""

    async def borne() -> list[Any]:
        made = [*await flags(member), *await tasks(member)]
        return [[label["code"] for label in each["meta"].get("security", ())] for each in made]

    psy, hiv = [{"security": label(each)} for each in ("PSY", "HIV")]
    earlier = await plan(member, meta=psy)
    await insure(member)
    assert await borne() == [["PSY"]] * 2
    given = {
        "resourceType": "Parameters",
        "parameter": [{"name": "meta", "valueMeta": psy}],
    }
    place = f"/CarePlan/{earlier['id']}/$meta-delete"
    assert (await member.client.post(place, json=given)).status_code == 200
    await member.server.engine.drain()
    assert await borne() == [[]] * 2
    await plan(member, meta=hiv)
    assert await borne() == [["HIV"]] * 2
    await insure(member, status="cancelled")
    await plan(member, meta=psy)
    assert {each["status"] for each in await flags(member)} == {"inactive"}
    assert await borne() == [["PSY", "HIV"]] * 2
