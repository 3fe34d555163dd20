"""What is kept of the audit outside of the database, and the audit against the versions of resources."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from typer.testing import CliRunner

from app.audit.kept_head import KeptHead, place
from app.cli.commands import app as command_line
from app.runtime import secrets
from app.runtime.mongo import Mongo
from app.settings import Settings
from tests.conftest import make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Rows = list[dict[str, Any]]
AUDIT = ("audit", "audit_registry")


async def write(settings: Settings, *ids: str) -> None:
    """A server that starts, puts these patients, and stops."""
    async with running(settings) as (_, client):
        for each in ids:
            await put(client, each)


async def put(client: httpx.AsyncClient, id_: str) -> None:
    body = {"resourceType": "Patient", "id": id_}
    assert (await client.put(f"/Patient/{id_}", json=body)).status_code in (200, 201)


@asynccontextmanager
async def database(settings: Settings) -> AsyncIterator[Mongo]:
    mongo = await Mongo.open(settings)
    try:
        yield mongo
    finally:
        await mongo.close()


async def content(settings: Settings, *names: str) -> dict[str, Rows]:
    async with database(settings) as mongo:
        return {name: await mongo.collection(name).find({}).to_list(None) for name in names}


async def put_back(settings: Settings, rows: dict[str, Rows]) -> None:
    """What was there before is all that is there: cut off, or restored from a backup."""
    async with database(settings) as mongo:
        for name, those in rows.items():
            await mongo.collection(name).delete_many({})
            await mongo.collection(name).insert_many(those)


@dataclass
class Operator:
    """Who runs the commands on the machine of the server."""

    settings: Settings

    async def run(self, *command: str | Path, **more: str) -> tuple[int, str]:
        environment = {
            "CARERELAY_MONGODB_URI": self.settings.mongodb_uri,
            "CARERELAY_MONGODB_DATABASE": self.settings.mongodb_database,
            "CARERELAY_AUDIT_HEAD_DIRECTORY": str(self.settings.audit_head_directory),
            **more,
        }
        arguments = ["audit", *map(str, command)]
        done = await asyncio.to_thread(CliRunner().invoke, command_line, arguments, env=environment)
        return done.exit_code, done.output

    @property
    def file(self) -> Path:
        return place(self.settings)


@pytest.fixture
def operator(mongod: str, tmp_path: Path) -> Operator:
    return Operator(make_settings(mongod, audit="required", audit_head_directory=tmp_path))


async def test_audit_and_registry_cut_back_together_are_found(operator: Operator) -> None:
    await write(operator.settings, "p1")
    before = await content(operator.settings, *AUDIT, "versions")
    await write(operator.settings, "p2")
    assert (await operator.run("verify"))[0] == 0
    await put_back(operator.settings, before)
    code, said = await operator.run("verify")
    assert code == 1
    assert f"registry: ends with row {before['audit_registry'][-1]['_id']}, and" in said
    assert "cut back, or the database is a backup of before" in said


async def test_a_server_over_a_shorter_audit_says_so_and_what_it_adds_hides_nothing(
    operator: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    await write(operator.settings, "p1")
    before = await content(operator.settings, *AUDIT)
    await write(operator.settings, "p2")
    kept = operator.file.read_text()
    await put_back(operator.settings, before)
    await write(operator.settings, "p3")
    assert "the audit was cut back" in caplog.text
    assert operator.file.read_text() == kept
    code, said = await operator.run("verify")
    assert code == 1
    assert "is another one than was kept" in said
    assert "Patient/p2/_history/1" in said


async def test_a_restored_backup_is_accepted_by_an_operator_and_on_record(
    operator: Operator,
) -> None:
    await write(operator.settings, "p1")
    before = await content(operator.settings, *AUDIT, "versions", "Patient", "events")
    await write(operator.settings, "p2")
    await put_back(operator.settings, before)
    assert (await operator.run("verify"))[0] == 1
    code, said = await operator.run("accept", "--reason", "backup of the morning")
    assert (code, "goes on from row" in said) == (0, True)
    assert len([each for each in operator.file.parent.glob("*.head.*") if each.is_file()]) == 1
    assert (await operator.run("verify"))[0] == 0
    rows = await content(operator.settings, "audit")
    asked = [entry.get("q", "") for row in rows["audit"] for entry in row["each"]]
    assert "carerelay audit accept --reason backup of the morning" in asked


async def test_a_file_that_is_lost_changed_or_sealed_by_a_lost_key_is_told(
    operator: Operator,
) -> None:
    await write(operator.settings, "p1")
    text = operator.file.read_text()
    assert {stat.S_IMODE(each.stat().st_mode) for each in operator.file.parent.iterdir()} == {0o600}
    hash_ = json.loads(text)["hash"]
    told = json.loads(text)
    operator.file.write_text(json.dumps({**told, "number": told["number"] - 1}))
    assert "was changed: it is not what its seal says" in (await operator.run("verify"))[1]
    operator.file.write_text(text[:-9])
    assert "is damaged" in (await operator.run("verify"))[1]
    operator.file.unlink()
    code, said = await operator.run("verify")
    assert (code, "is not there, so nobody can tell" in said) == (1, True)
    assert (await operator.run("verify", "--expect", hash_))[0] == 0
    operator.file.write_text(text)
    code, said = await operator.run("verify", CARERELAY_SECRET_KEY=Fernet.generate_key().decode())
    assert (code, "sealed with a key that is not among this server's any more" in said) == (1, True)


async def test_two_machines_have_a_file_each_and_either_shows_it(
    operator: Operator, tmp_path: Path
) -> None:
    other = operator.settings.model_copy(update={"audit_head_directory": tmp_path / "other"})
    await write(operator.settings, "p1")
    before = await content(operator.settings, *AUDIT, "versions")
    await write(other, "p2")
    assert (await operator.run("verify", "--head", place(other)))[0] == 0
    await put_back(operator.settings, before)
    assert (await operator.run("verify"))[0] == 0
    code, said = await operator.run("verify", "--head", place(other))
    assert (code, "was cut back" in said) == (1, True)


async def test_each_version_has_its_entry_and_each_entry_its_version(operator: Operator) -> None:
    await write(operator.settings, "p1", "p2")
    async with database(operator.settings) as mongo:
        versions = mongo.collection("versions")
        row = await versions.find_one({"_id.i": "p1"})
        await versions.delete_one({"_id": row["_id"]})
        await versions.insert_one({**row, "_id": {**row["_id"], "i": "p0"}})
    code, said = await operator.run("verify")
    assert code == 1
    assert "tells of Patient/p1/_history/1, which is not there" in said
    assert "Patient/p0/_history/1 of" in said
    assert "has no entry" in said
    assert "p2" not in said


async def test_what_was_written_while_nothing_was_recorded_is_no_finding(
    operator: Operator,
) -> None:
    off = operator.settings.model_copy(update={"audit": "off"})
    await write(off, "before")
    await write(operator.settings, "p1")
    await write(off, "meanwhile")
    await write(operator.settings, "p1")
    code, said = await operator.run("verify")
    assert code == 0, said


async def test_a_late_message_s_version_has_its_entry(operator: Operator) -> None:
    """A version that was never the current one: what a late message said of the past."""
    period = {"start": "2026-05-01T08:00:00Z"}
    stay = {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"reference": "Patient/p1"},
    }
    async with running(operator.settings) as (_, client):
        await put(client, "p1")
        for changes in (
            {"period": period},
            {"subject": {"reference": "Patient/p2"}, "period": period},
        ):
            answer = await client.put("/Encounter/e1", json={**stay, **changes})
            assert answer.status_code in (200, 201, 202)
    rows = await content(operator.settings, "versions")
    assert [row["_id"]["v"] for row in rows["versions"] if row["_id"]["i"] == "e1"] == [1, 2, 3]
    code, said = await operator.run("verify")
    assert code == 0, said


async def test_a_syslog_hears_how_far_the_audit_has_come(operator: Operator) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as log:
        log.bind(("127.0.0.1", 0))
        log.settimeout(10)
        address = f"127.0.0.1:{log.getsockname()[1]}"
        await write(operator.settings.model_copy(update={"audit_syslog": address}), "p1")
        heard = log.recv(2_000).decode()
    head = KeptHead(operator.file, secrets.of_settings(operator.settings)).read()
    assert head is not None
    assert f"carerelay: audit row={head.number} hash={head.hash}" in heard
