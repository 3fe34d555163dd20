"""A referral to case management that is not taken up: who has referred hears of it, once and with the reason."""

from __future__ import annotations

import httpx
import pytest

from app.fhir.codes import CONSENT_CATEGORY, LETTER_KIND
from app.fhir.validation.models import model_issues
from tests.builders.members import Member, Resource, codes, concept
from tests.builders.practices import practitioner, put, ref
from tests.conftest import Server
from tests.outcomes import errors_in

pytestmark = pytest.mark.mongo

REFERRER: Resource = {"requester": {"reference": "Practitioner/referrer", "display": "Dr Referrer"}}


@pytest.fixture
async def member(server: Server, client: httpx.AsyncClient) -> Member:
    await put(client, practitioner("referrer"))
    return await Member.new(server, client)


async def answers(member: Member) -> list[Resource]:
    found = await member.found("Communication", category=f"{LETTER_KIND}|referral-answer")
    for each in found:
        assert errors_in(each) == []
        assert model_issues(each) == []
    return sorted(found, key=lambda each: each["about"][0]["reference"])


async def close(member: Member, status: str, **more: Resource) -> None:
    """A person closes the open review."""
    (task,) = [each for each in await member.reviews() if each["status"] == "requested"]
    answer = await member.client.put(f"/Task/{task['id']}", json={**task, "status": status, **more})
    assert answer.is_success, answer.text
    await member.server.engine.drain()


async def test_who_has_referred_hears_that_a_person_has_refused_it_and_why(member: Member) -> None:
    request = await member.refer(**REFERRER)
    (task,) = await member.reviews()
    assert codes(task["reasonCode"]) == ["referred"]
    assert await answers(member) == []
    await close(member, "rejected", statusReason={"text": "Has another coverage"})
    (letter,) = await answers(member)
    assert letter["status"] == "preparation"
    assert letter["recipient"] == [REFERRER["requester"]]
    assert letter["about"] == [ref(f"ServiceRequest/{request['id']}")]
    assert codes(letter["reasonCode"]) == ["not-taken-up"]
    assert letter["reasonCode"][1] == {"text": "Has another coverage"}
    assert letter["payload"][0]["contentString"].endswith("was not taken up.")


async def test_what_is_taken_up_needs_no_such_answer(member: Member) -> None:
    await member.refer(**REFERRER)
    await close(member, "completed")
    assert await answers(member) == []


async def test_of_two_referrals_both_have_the_answer_to_the_one_review(member: Member) -> None:
    await member.refer("first", **REFERRER)
    await member.refer("second", **REFERRER)
    await close(member, "rejected")
    told = [each["about"][0]["reference"].rpartition("-")[2] for each in await answers(member)]
    assert told == ["first", "second"]


async def test_each_referral_is_answered_once(member: Member) -> None:
    await member.refer(**REFERRER)
    await close(member, "rejected")
    (letter,) = await answers(member)
    sent = {**letter, "status": "completed", "sent": "2026-01-01T00:00:00Z"}
    await member.client.put(f"/Communication/{letter['id']}", json=sent)
    (task,) = await member.reviews()
    for status in ("requested", "rejected"):
        await member.client.put(f"/Task/{task['id']}", json={**task, "status": status})
        await member.server.engine.drain()
    assert [each["status"] for each in await answers(member)] == ["completed"]


@pytest.mark.parametrize(
    ("why", "code"),
    [
        pytest.param("enrolled", "already-enrolled", id="enrolled"),
        pytest.param("dead", "deceased", id="dead"),
        # Who refuses case management refuses that providers hear of it: that it is not taken up, and no more.
        pytest.param("declined", "not-taken-up", id="declined"),
    ],
)
async def test_what_nobody_is_asked_about_is_answered_at_once(
    member: Member, why: str, code: str
) -> None:
    match why:
        case "enrolled":
            await member.enrol()
        case "dead":
            dead = {"resourceType": "Patient", "deceasedDateTime": member.day(-1)}
            await member.put(dead, member.id)
        case "declined":
            await member.decide("active", "deny")
    await member.refer(**REFERRER)
    assert await member.reviews() == []
    (letter,) = await answers(member)
    assert (letter["status"], codes(letter["reasonCode"])) == ("preparation", [code])


async def test_a_referral_of_long_ago_is_history(member: Member) -> None:
    """Whoever loads old records writes to nobody about them."""
    await member.enrol()
    await member.refer(**REFERRER, authoredOn="2020-01-01")
    assert await answers(member) == []


async def test_a_referral_that_says_no_name_is_on_record_as_unanswered(member: Member) -> None:
    await member.enrol()
    await member.refer()
    (letter,) = await answers(member)
    assert (letter["status"], codes(letter["statusReason"])) == (
        "not-done",
        ["recipient-unavailable"],
    )
    assert "payload" not in letter


async def test_who_refuses_that_the_referrer_hears_of_anything_is_heeded(member: Member) -> None:
    await member.enrol()
    refusal = {
        "resourceType": "Consent",
        "status": "active",
        "scope": concept("http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy"),
        "category": [{"coding": [{"system": CONSENT_CATEGORY, "code": "provider-access"}]}],
        "patient": member.patient,
        "dateTime": member.day(),
        "policyRule": {"text": "Plan policy"},
        "provision": {"type": "deny"},
    }
    await member.put(refusal, "privacy")
    await member.refer(**REFERRER)
    (letter,) = await answers(member)
    assert (letter["status"], codes(letter["statusReason"])) == ("not-done", ["patient-objection"])
    assert "reasonCode" not in letter
