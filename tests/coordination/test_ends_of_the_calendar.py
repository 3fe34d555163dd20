"""Dates at the ends of the calendar are valid R4. A record that has one is one record's matter: nobody else's answer
fails, and no reaction to it does.
"""

from __future__ import annotations

from typing import Any

import pytest

from app.fhir import code_lists
from app.fhir.codes import WORKLIST_QUESTION
from tests.builders.members import CODES, HRA, concept
from tests.conftest import make_settings, running

pytestmark = pytest.mark.mongo

ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
QUESTIONS = [each["code"] for each in code_lists.code_systems()[WORKLIST_QUESTION]["concept"]]
ENDS = (
    "0001-01-01",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-12:00",
)


def records(number: int, when: str) -> list[dict[str, Any]]:
    """A member of whom everything has happened then."""
    name = f"m{number}"
    subject, period = {"reference": f"Patient/{name}"}, {"start": when, "end": when}

    def stay(id_: str, code: str, status: str, **more: Any) -> dict[str, Any]:
        class_ = {"system": ACT_CODE, "code": code}
        own = {"resourceType": "Encounter", "id": f"{name}{id_}", "status": status}
        return {**own, "class": class_, "subject": subject, "period": more}

    return [
        {"resourceType": "Patient", "id": name, "birthDate": when[:10]},
        stay("stay", "IMP", "finished", **period),
        stay("open", "IMP", "in-progress", start=when),
        stay("visit", "AMB", "finished", end=when),
        {
            "resourceType": "CarePlan",
            "id": name,
            "status": "active",
            "intent": "plan",
            "subject": subject,
            "period": period,
            "created": when,
        },
        {
            "resourceType": "QuestionnaireResponse",
            "id": name,
            "status": "completed",
            "questionnaire": HRA,
            "subject": subject,
            "authored": when,
        },
        {
            "resourceType": "EpisodeOfCare",
            "id": name,
            "status": "active",
            "patient": subject,
            "period": {"start": when},
            "type": [concept(f"{CODES}episode-type", "case-management")],
        },
    ]


@pytest.mark.parametrize("zone", ["America/Los_Angeles", "Asia/Tokyo"])
async def test_a_date_at_an_end_of_the_calendar_fails_nobodys_answer(
    mongod: str, zone: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_settings(mongod, time_zone=zone)) as (server, client):
        for number, when in enumerate(ENDS):
            for each in records(number, when):
                answer = await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
                assert answer.status_code == 201, answer.text
        await server.engine.drain()
        assert [each.getMessage() for each in caplog.records if each.levelname != "INFO"] == []
        questions = [f"/Patient/$worklist?question={each}" for each in QUESTIONS]
        asked = [*questions, "/Patient/$utilization?_outputFormat=csv"]
        asked += [f"{each}&start=2999-12-30&end=2999-12-31" for each in asked]
        asked += [f"/Patient/m{number}/$care-plan-summary" for number in range(len(ENDS))]
        answers = {url: await client.get(url) for url in asked}
        assert {url for url, each in answers.items() if each.status_code >= 500} == set()
        in_hospital = answers["/Patient/$worklist?question=in-hospital"].json()
        assert in_hospital["total"] == len(ENDS)
