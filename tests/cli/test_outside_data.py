"""What others send must load: a published care plan for chronic conditions, and published ADT messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.load.load import load
from app.cli.load.mending import mend
from app.cli.load.outcome import LoadReport
from app.fhir import json as fhir_json
from tests.conftest import JSON, make_settings, running
from tests.shared_data import SHARED

CARE_PLANS = SHARED / "data" / "careplan-mcc"
ALERTS = SHARED / "data" / "davinci-alerts"
COMMENTED = 13  # files that carry comments of DSTU2


def present(directory: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not directory.is_dir(), reason=f"no outside data at {directory}")


async def loaded(mongod: str, *paths: Path) -> tuple[LoadReport, dict[str, Any]]:
    """The report of a load into a server of its own, and what its care plan and messages look like there."""
    async with running(make_settings(mongod)) as (_, client):
        transport = client._transport
        report = await load(paths, str(client.base_url), lambda _: None, transport)
        found = {}
        for query in ("CarePlan?", "Bundle?type=message", "Encounter?", "Patient?"):
            answer = await client.get(f"/{query}&_count=1000")
            bundle = fhir_json.decode(answer.content)
            found[query] = [each["resource"] for each in bundle.get("entry", ())]
    return report, found


@pytest.mark.slow
@pytest.mark.mongo
@present(CARE_PLANS)
async def test_every_file_of_the_chronic_care_plan_loads(mongod: str) -> None:
    report, found = await loaded(mongod, CARE_PLANS)
    assert report.refusals == []
    assert report.total > len(list(CARE_PLANS.rglob("*.json")))  # one is a collection
    commented = [
        each.file for each in report.mended if any("fhir_comments" in note for note in each.notes)
    ]
    assert len(commented) == COMMENTED
    (odd,) = [each for each in report.mended if each.file.endswith("-mccCarePlan.json")]
    assert any("_targetProfile" in note for note in odd.notes)
    assert len(found["CarePlan?"]) > 1


@pytest.mark.slow
@pytest.mark.mongo
@present(ALERTS)
async def test_every_published_message_and_profile_loads(mongod: str) -> None:
    report, found = await loaded(mongod, ALERTS)
    assert (
        report.refusals == []
    )  # whatever their files are called, they go in the order of their times
    examples = {path.stem: published(path) for path in ALERTS.glob("examples/*.json")}
    kept = {each["identifier"]["value"]: each for each in found["Bundle?type=message"]}
    assert kept.keys() == {each["id"] for each in examples.values()}
    for each in examples.values():
        assert kept[each["id"]]["entry"] == each["entry"]
    # All six tell of one stay of one patient: it is stored once, and its references lead to what is stored.
    (stay,) = found["Encounter?"]
    (patient,) = found["Patient?"]
    assert stay["subject"]["reference"] == f"Patient/{patient['id']}"


def published(path: Path) -> dict[str, Any]:
    return fhir_json.decode(path.read_bytes())


def misfits() -> list[Any]:
    """The files that are not R4."""
    paths = sorted((*CARE_PLANS.rglob("*.json"), *ALERTS.rglob("*.json")))
    found = [each for each in paths if mend(published(each))[1]]
    return [pytest.param(each, id=each.stem) for each in found] or [
        pytest.param(None, marks=present(CARE_PLANS), id="absent")
    ]


@pytest.mark.parametrize("path", misfits())
async def test_the_server_itself_goes_on_refusing_what_is_not_r4(
    client: httpx.AsyncClient, path: Path
) -> None:
    resource = published(path)
    url = f"/{resource['resourceType']}/{resource['id']}"
    sent = await client.put(url, content=fhir_json.encode(resource), headers=JSON)
    assert sent.status_code == 400


# What is put right


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        pytest.param(
            {"fhir_comments": ["x"], "status": "active"},
            {"status": "active"},
            "left out fhir_comments",
            id="comment",
        ),
        pytest.param(
            {"status": "active", "_status": {"fhir_comments": ["x"]}},
            {"status": "active"},
            "left out fhir_comments",
            id="comment-on-a-primitive",
        ),
        pytest.param(
            {"line": ["a", "b"], "_line": [{"fhir_comments": ["x"]}, {"id": "b"}]},
            {"line": ["a", "b"], "_line": [None, {"id": "b"}]},
            "left out fhir_comments",
            id="comment-in-a-list-of-primitives",
        ),
        pytest.param(
            {"line": ["a"], "_line": [{"fhir_comments": ["x"]}]},
            {"line": ["a"]},
            "left out fhir_comments",
            id="comment-alone-in-such-a-list",
        ),
        pytest.param(
            {"line": ["a", "b"], "_line": [{"id": "a"}]},
            {"line": ["a", "b"], "_line": [{"id": "a"}, None]},
            "completed _line",
            id="extensions-without-their-nulls",
        ),
        pytest.param({"a": "", "b": "c"}, {"b": "c"}, "left out a", id="empty"),
    ],
)
def test_what_is_put_right_is_said(
    before: dict[str, Any], after: dict[str, Any], note: str
) -> None:
    mended, notes = mend({"resourceType": "Basic", "x": [before]})
    assert mended == {"resourceType": "Basic", "x": [after]}
    assert len(notes) == 1
    assert notes[0].startswith(note)


@pytest.mark.parametrize(
    "resource",
    [
        pytest.param({"a": {}}, id="empty-object"),
        pytest.param({"a": []}, id="empty-list"),
        pytest.param({"a": None}, id="null"),
        pytest.param({"a": ["", "b"]}, id="empty-among-others"),
        pytest.param({"a": ["b"], "_a": [None, {"id": "c"}]}, id="extension-of-no-value"),
        pytest.param({"a": ["b"], "_a": [{"id": "c"}]}, id="in-order"),
    ],
)
def test_what_is_not_certain_is_left_to_the_server(resource: dict[str, Any]) -> None:
    assert mend(resource) == (resource, [])
