"""The command line: what starts, what refuses to, and how it stops."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from app.cli.serve import GRACE_SECONDS, STOP_SECONDS, ServeError, bind, check_exposure
from app.settings import Settings
from tests.builders.transactions import failing, failing_mongod
from tests.processes import carerelay, children, environment, started, wait_for, wait_until_gone


def exposure(**settings: object) -> list[str]:
    said: list[str] = []
    check_exposure(Settings(**settings), said.append)  # type: ignore[arg-type]
    return said


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("auth", [None, "off"])
def test_loopback_needs_no_authorization(host, auth):
    assert exposure(host=host, auth=auth) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", ""])  # noqa: S104 - it is refused
@pytest.mark.parametrize("auth", [None, "off"])
def test_beyond_loopback_is_refused_without_authorization(host, auth):
    with pytest.raises(ServeError, match="CARERELAY_ALLOW_OPEN=1"):
        exposure(host=host, auth=auth)


def test_operator_who_insists_is_warned_loudly():
    [warning] = exposure(host="192.0.2.7", allow_open=True)
    assert "WARNING" in warning
    assert "No authorization" in warning


@pytest.mark.processes
def test_command_refuses_to_open_up():
    done = carerelay("serve", "--host", "0.0.0.0")  # noqa: S104 - it is refused
    assert done.returncode == 1
    assert "loopback only" in done.stdout


@pytest.mark.processes
def test_wrong_setting_is_named():
    done = carerelay("serve", workers="many")
    assert done.returncode == 2
    assert "CARERELAY_WORKERS" in done.stdout


@pytest.mark.processes
def test_port_in_use_is_named_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = carerelay("serve", "--port", str(port), "--data", tmp_path)
    assert done.returncode == 1
    assert f"port {port}: Address already in use" in done.stdout
    assert not (tmp_path / "mongodb").exists()


def test_host_that_is_not_ours_is_named():
    with pytest.raises(ServeError, match=r"Cannot listen on 192\.0\.2\.1"):
        bind("192.0.2.1", 0)
    with pytest.raises(ServeError, match=r"Cannot listen on nowhere\.invalid"):
        bind("nowhere.invalid", 0)


@pytest.mark.processes
def test_database_that_cannot_start_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = carerelay("serve", "--port", "0", "--data", tmp_path / "file")
    assert done.returncode == 1
    assert "Cannot write to" in done.stdout


@pytest.mark.processes
def test_database_that_does_not_answer_is_told_in_a_sentence(tmp_path):
    uri = "mongodb://127.0.0.1:9/?replicaSet=x"
    done = carerelay("serve", "--port", "0", "--data", tmp_path, "--mongodb-uri", uri)
    assert done.returncode == 1
    assert done.stdout == "MongoDB does not answer at the configured address\n"
    assert "Traceback" not in done.stderr


@pytest.mark.processes
@pytest.mark.slow
def test_stops_in_order_and_keeps_its_data(tmp_path):
    for existing, number in ((404, signal.SIGTERM), (200, signal.SIGINT)):
        with started("FHIR base: ", "serve", "--port", "0", "--data", tmp_path) as (process, base):
            url = f"{base}/Patient/p1"
            assert httpx.get(url, timeout=30).status_code == existing
            httpx.put(url, json={"resourceType": "Patient", "id": "p1"}).raise_for_status()
            process.send_signal(number)
            assert process.wait(40) == 0
        log = (tmp_path / "mongodb" / "mongod.log").read_text()
        assert '"msg":"Shutting down","attr":{"exitCode":0}' in log


NEVER_STOPS = """
import asyncio
from app.cli import main, serve
from app.runtime.cluster import Cluster
serve.STOP_SECONDS = 0.2
Cluster.stop = lambda self: asyncio.Event().wait()
main()
"""


@pytest.mark.processes
@pytest.mark.slow
def test_ends_in_time_where_something_does_not_stop(tmp_path):
    command = (sys.executable, "-c", NEVER_STOPS)
    arguments = ("serve", "--port", "0", "--data", tmp_path)
    with started("FHIR base: ", *arguments, command=command) as (process, base):
        assert wait_for(f"{base}/metadata").status_code == 200
        [mongod] = children(process.pid)
        process.terminate()
        assert process.wait(20) == 1
        assert process.stdout is not None
        assert "did not stop in time" in process.stdout.read()
    wait_until_gone(mongod)


@pytest.mark.processes
@pytest.mark.slow
def test_workers_share_the_port_and_end_with_their_supervisor(mongod):
    settings = environment(mongodb_uri=mongod, mongodb_database=f"w{uuid.uuid4().hex[:8]}")
    arguments = ("serve", "--port", "0", "--workers", "2")
    with started("FHIR base: ", *arguments, env=settings) as (process, base):
        assert wait_for(f"{base}/metadata").status_code == 200
        workers = children(process.pid)
        assert len(workers) >= 2
        process.kill()
        process.wait()
    for worker in workers:
        wait_until_gone(worker)


@pytest.mark.processes
def test_version_is_that_of_the_package():
    done = carerelay("--version")
    assert done.stdout.strip() == "0.1.0"


def test_pinned_uv_is_the_same_everywhere():
    root = Path(__file__).parents[2]
    pinned = (root / "uv.lock").read_text().split('name = "uv"\nversion = "')[1].split('"')[0]
    assert f"astral-sh/uv:{pinned} " in (root / "Dockerfile").read_text()


@pytest.mark.chaos
@pytest.mark.processes
@pytest.mark.slow
async def test_ends_in_time_where_its_start_does_not_come_about(tmp_path: Path) -> None:
    """A database that does not answer a write holds the start up; who asks the server to stop is heard."""
    with failing_mongod(tmp_path) as mongo:
        block = failing(mongo.uri, "findAndModify", blockConnection=True, blockTimeMS=600_000)
        async with block as wait_for_failures:
            with ExitStack() as opened:
                starting = [
                    opened.enter_context(
                        started(
                            "FHIR base: ",
                            *("serve", "--port", "0", "--workers", workers),
                            env=environment(mongodb_uri=mongo.uri, mongodb_database=f"w{workers}"),
                        )
                    )[0]
                    for workers in ("1", "2")
                ]
                await wait_for_failures(3)
                for process in starting:
                    process.send_signal(signal.SIGTERM)
                for process in starting:
                    await asyncio.to_thread(process.wait, STOP_SECONDS + GRACE_SECONDS)
            mongo.process.kill()


@pytest.mark.processes
def test_a_key_that_lies_beside_the_data_is_told_at_start(tmp_path):
    (tmp_path / "secret.key").write_text("4hGuCGXZ0WRYg4vuAnH1RQuvbnXbzSBj5iJK2q3DTZ0=")
    uri = "mongodb://127.0.0.1:9/?replicaSet=x"
    done = carerelay("serve", "--port", "0", "--data", tmp_path, "--mongodb-uri", uri)
    assert "secret.key lies beside what it protects" in done.stdout + done.stderr
