"""`carerelay run`: the demonstration that the README begins with."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.demo import practices
from app.cli.demo.practices import Practice, ReceivedNotice
from app.cli.demo.server import DemoError
from tests.log_watch import WATCH
from tests.processes import carerelay, children, environment, started, wait_until_gone

pytestmark = pytest.mark.slow

ARRIVED = "4 notices arrived, 1 was withheld; the two other practices received none of them."
EXPECTED = {
    "encounter admission A04, Encounter/agnes": 1,
    "encounter admission A06, Encounter/agnes": 1,
    "encounter discharge A03, Encounter/agnes": 1,
    "careplan change goals, CarePlan/agnes": 1,
    "encounter admission A04, Encounter/walter": 1,
    "ms after the commit": 4,
    "Goal added: Home from Quillport before the new year": 1,
    "not sent; the ledger says: Withheld: consent-pcp-notification Consent/walter-": 1,
    ARRIVED: 1,
}


@pytest.mark.processes
def test_once_shows_the_notices_and_exits_0(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        done = carerelay("run", "--once", "--port", str(taken), "--data", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Port {taken} is in use" in done.stdout
    assert "14 copies of first care plans" in done.stdout
    assert {said: done.stdout.count(said) for said in EXPECTED} == EXPECTED

    # The same story again on the same data.
    with serving("--data", tmp_path) as (process, _, said):
        assert "The members are here from last time." in said
        assert {each: said.count(each) for each in EXPECTED} == EXPECTED
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
    WATCH.look((tmp_path / "server.log").read_text())


ADMISSION = ("encounter-admission", "A04")


@pytest.mark.parametrize(
    ("came", "expected", "said"),
    [
        pytest.param([], [ADMISSION], "Not within .*: encounter-admission A04", id="missing"),
        pytest.param(["A04", "A06"], [ADMISSION], "unexpected .*A06, Encounter/e1", id="more"),
        pytest.param(["A06"], [ADMISSION], "unexpected .*A06, Encounter/e1", id="another"),
        pytest.param(["A04", "A04"], [ADMISSION], "unexpected .*A04, Encounter/e1", id="twice"),
    ],
)
def test_a_practice_that_gets_other_than_the_story_says_fails_it(monkeypatch, came, expected, said):
    monkeypatch.setattr(practices, "PATIENCE_SECONDS", 0.3)
    with practices.practice() as practice:
        for trigger in came:
            httpx.post(practice.url, json=notice(trigger))
        with pytest.raises(DemoError, match=said):
            take(practice, expected)


def take(practice: Practice, expected: list[tuple[str, str]]) -> list[ReceivedNotice]:
    """Exactly these."""
    told = practice.next(expected)
    practice.expect_nothing_more()
    return told


def test_a_practice_that_gets_what_the_story_says():
    with practices.practice() as practice:
        httpx.post(practice.url, json=notice("A04"))
        [told] = take(practice, [ADMISSION])
    assert told.focus == "Encounter/e1"
    assert told.milliseconds > 0


def notice(trigger: str) -> dict[str, Any]:
    """A notification as the Backport guide has it, as far as a practice reads it."""
    url = "http://carerelay.test/fhir/Encounter/e1"
    event = [
        {"name": "event-number", "valueString": "1"},
        {"name": "focus", "valueReference": {"reference": url}},
        {"name": "trigger", "valueCoding": {"code": trigger}},
    ]
    topic = "http://carerelay.example/SubscriptionTopic/encounter-admission"
    parameters = [
        {"name": "topic", "valueCanonical": topic},
        {"name": "type", "valueCode": "event-notification"},
        {"name": "notification-event", "part": event},
    ]
    encounter = {
        "resourceType": "Encounter",
        "id": "e1",
        "meta": {"lastUpdated": "2026-11-14T07:42:00-06:00"},
    }
    status = {"resourceType": "Parameters", "parameter": parameters}
    return {
        "resourceType": "Bundle",
        "type": "history",
        "entry": [
            {"fullUrl": "urn:uuid:1", "resource": status},
            {"fullUrl": url, "resource": encounter},
        ],
    }


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_leaves_nothing_behind(tmp_path, number):
    with serving(env={**environment(), "TMPDIR": str(tmp_path)}) as (process, base, _):
        stay = httpx.get(f"{base}/Encounter/agnes-thistlewick-stay").json()
        assert stay["status"] == "finished"
        [server] = children(process.pid)
        [mongod] = children(server)
        process.send_signal(number)
        assert process.wait(40) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_until_gone(server)
        wait_until_gone(mongod)
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []


@contextmanager
def serving(
    *arguments: str | Path, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`carerelay run` when all notices have arrived, its FHIR base, and what it has said."""
    command = ("run", "--port", "0", *arguments)
    with started("server are up: ", *command, is_log=False, **options) as (process, base):
        assert process.stdout is not None
        said = "".join(iter(process.stdout.readline, "Ctrl-C stops everything.\n"))
        assert ARRIVED in said
        yield process, base, said


@pytest.mark.processes
def test_server_that_does_not_start_is_shown_with_its_reason(tmp_path):
    (tmp_path / "mongodb").touch()
    done = carerelay("run", "--once", "--port", "0", "--data", tmp_path)
    assert done.returncode == 1
    assert "Cannot write to" in done.stdout
