"""Data that an earlier version wrote: a server of today over them answers as that version did.

`make_format_1.py` makes them, here with the server of this checkout; it says how an earlier one does.
FORMAT_1_DATA=DIRECTORY lets this test look at a copy of such a directory instead.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from app.runtime.embedded_mongod import EmbeddedMongo
from app.store import format
from tests.store import make_format_1 as made

pytestmark = [pytest.mark.mongo, pytest.mark.slow, pytest.mark.processes]

# `carerelay` of a next version, whose step counts its runs.
NEXT_VERSION = """
from app.store import format

async def step(mongo, settings):
    await mongo.collection("step").update_one({"_id": "runs"}, {"$inc": {"n": 1}}, upsert=True)

format.FORMAT += 1
format.STEPS = (*format.STEPS, format.Step("of the next version", step))
from app.cli import main
main()
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made") / "data"
    earlier = os.environ.get("FORMAT_1_DATA")
    if earlier:
        shutil.copytree(earlier, directory)
    else:
        made.make(directory)
    return directory


def stored(directory: Path, collection: str) -> list[dict[str, Any]]:
    """The rows of a collection while no server runs."""
    with EmbeddedMongo(directory) as mongo, MongoClient[dict[str, Any]](mongo.uri) as client:
        return list(client["carerelay"][collection].find({}))


def marker(directory: Path) -> dict[str, Any]:
    [row] = [row for row in stored(directory, "settings") if row["_id"] == "format"]
    return row


def test_todays_server_reads_and_goes_on_with_what_was_written_then(directory: Path) -> None:
    then = json.loads((directory / made.MANIFEST).read_text())
    with made.serving(directory) as client:
        now = made.answers(client, list(then["answers"]))
        for question, answer in then["answers"].items():
            assert now[question] == answer, question
        assert made.deliveries(client) == then["deliveries"]
        # Numbers and versions go on where they were.
        stay = client.get("Encounter/stay").json()
        again = client.put("Encounter/stay", json={**stay, "status": "cancelled"})
        assert again.headers["etag"] == f'W/"{int(stay["meta"]["versionId"]) + 1}"'
        found = client.get("Encounter", params={"patient": "anna", "status": "cancelled"})
        assert len(found.json()["entry"]) == 1
    # What was recorded then is as it was, and is where it was.
    made.audit(directory, "--expect", then["audit"])
    row = marker(directory)
    assert row["format"] == format.FORMAT
    assert row["steps"] == [step.name for step in format.STEPS]


def test_a_next_version_takes_its_step_once_and_reads_the_same(directory: Path) -> None:
    then = json.loads((directory / made.MANIFEST).read_text())
    questions = [each for each in then["answers"] if "Encounter" not in each]
    for _ in range(2):
        with made.serving(directory, program=("-c", NEXT_VERSION)) as client:
            now = made.answers(client, questions)
            assert now == {each: then["answers"][each] for each in questions}
    row = marker(directory)
    assert row["format"] == format.FORMAT + 1
    assert row["steps"] == [*(step.name for step in format.STEPS), "of the next version"]
    assert stored(directory, "step") == [{"_id": "runs", "n": 1}]
    # Today's server may go on with it: that is a rolling upgrade, or a step back.
    with made.serving(directory) as client:
        assert client.get("Patient/anna").status_code == 200
