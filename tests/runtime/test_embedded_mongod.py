"""The embedded MongoDB: data persist, one server per directory, and nothing outlives its parent."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient

from app.runtime import embedded_mongod
from app.runtime.embedded_mongod import EmbeddedMongo, EmbeddedMongoError, find_mongod
from tests.processes import is_running, wait_until_gone

pytestmark = [pytest.mark.processes, pytest.mark.slow]

PARENT = """
import sys, threading
from pathlib import Path
from pymongo import MongoClient
from app.runtime.embedded_mongod import EmbeddedMongo

with EmbeddedMongo(Path(sys.argv[1])) as mongo, MongoClient(mongo.uri) as client:
    client.test.things.insert_one({"_id": 1})
    print(mongo.process.pid, flush=True)
    threading.Event().wait()
"""


@pytest.fixture(scope="module")
def mongo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedMongo]:
    with EmbeddedMongo(tmp_path_factory.mktemp("embedded")) as running:
        yield running


def connect(mongo: EmbeddedMongo) -> MongoClient[dict[str, Any]]:
    return MongoClient(mongo.uri)


def test_is_a_replica_set_of_one_on_loopback(mongo):
    with connect(mongo) as client:
        hello = client.admin.command("hello")
        options = client.admin.command("getCmdLineOpts")["parsed"]
    assert hello["setName"] == "carerelay"
    assert hello["hosts"] == [f"127.0.0.1:{mongo.port}"]
    assert "compression" not in hello
    assert options["net"]["bindIp"] == "127.0.0.1"


def test_commits_transactions(mongo):
    with connect(mongo) as client, client.start_session() as session:
        session.with_transaction(lambda s: client.test.pairs.insert_one({"_id": 1}, session=s))
        assert client.test.pairs.count_documents({}) == 1


def test_raises_the_limit_of_open_files(mongo):
    limits = Path(f"/proc/{mongo.process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard or int(soft) >= 64_000


def test_data_stay_when_it_stops_and_starts_on_another_port(tmp_path):
    ports = set()
    for run in range(1, 3):
        with EmbeddedMongo(tmp_path) as mongo, connect(mongo) as client:
            client.test.runs.insert_one({"_id": run})
            assert client.test.runs.count_documents({}) == run
            ports.add(mongo.port)
            pid = mongo.process.pid
        assert not is_running(pid)
    assert len(ports) == 2


def test_second_server_on_the_same_directory_is_told_who_has_it(mongo, monkeypatch):
    monkeypatch.setattr(embedded_mongod, "LOCK_SECONDS", 0.1)
    with pytest.raises(
        EmbeddedMongoError, match=r"in use by another server \(process \d+\).*--data"
    ):
        EmbeddedMongo(mongo.files.parent).start()
    with connect(mongo) as client:
        client.admin.command("ping")


def test_killed_parent_takes_mongod_along_and_its_data_are_recovered(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        mongod = int(parent.stdout.readline())
        assert is_running(mongod)
        parent.kill()
        # No pause: the next start must cope with a mongod that is just dying.
        with EmbeddedMongo(tmp_path) as mongo, connect(mongo) as client:
            assert client.test.things.find_one() == {"_id": 1}
    wait_until_gone(mongod)


def test_terminal_interrupt_does_not_reach_mongod(mongo):
    """Ctrl-C goes to the terminal's process group; mongod must stay up until the server is done."""
    stat = Path(f"/proc/{mongo.process.pid}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[3]) == mongo.process.pid  # field 6 of proc(5): the session it leads


def test_port_taken_in_between_is_replaced(tmp_path, monkeypatch, mongo):
    free_port = embedded_mongod._free_port
    ports = iter([mongo.port])
    monkeypatch.setattr(embedded_mongod, "_free_port", lambda: next(ports, None) or free_port())
    with EmbeddedMongo(tmp_path) as second:
        assert second.port != mongo.port


def test_missing_libraries_are_named_with_the_command_that_installs_them(tmp_path, monkeypatch):
    mongod = script(tmp_path, "echo libcurl.so.4: cannot open shared object file >&2; exit 127")
    monkeypatch.setattr(
        embedded_mongod, "missing_libraries", lambda _: ["libcurl.so.4", "libssl.so.3"]
    )
    with pytest.raises(EmbeddedMongoError, match="apt-get install libcurl4 libssl3"):
        EmbeddedMongo(tmp_path, mongod=mongod).start()


def test_missing_libraries_are_read_from_ldd(tmp_path, monkeypatch):
    lines = r"\tlibcurl.so.4 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"
    script(tmp_path, f"printf '{lines}'", name="ldd")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert embedded_mongod.missing_libraries(tmp_path / "mongod") == ["libcurl.so.4"]


def test_failed_start_tells_the_reason_and_frees_the_directory(tmp_path):
    complaint = '{"s":"F","msg":"Wrong file format","attr":{"error":"too new"}}'
    mongod = script(tmp_path, f"echo '{complaint}'; exit 62")
    with pytest.raises(
        EmbeddedMongoError, match=r"code 62: Wrong file format too new .*mongod\.log"
    ):
        EmbeddedMongo(tmp_path, mongod=mongod).start()
    with EmbeddedMongo(tmp_path):
        pass


def test_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedMongoError, match="Cannot write to"):
        EmbeddedMongo(tmp_path / "file").start()


def test_mongod_on_path_comes_first(tmp_path, monkeypatch):
    mongod = script(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mongod() == mongod


def test_binary_of_the_wheel_gets_its_run_bit_back(tmp_path, monkeypatch):
    binary = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    binary.touch(mode=0o644)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_mongod() == binary
    assert binary.stat().st_mode & 0o111 == 0o111


def test_no_mongod_at_all_names_the_ways_out(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EmbeddedMongoError, match=r"carerelay\[embedded\].*--mongodb-uri"):
        find_mongod()


def test_starts_from_the_main_thread_only(tmp_path):
    """The kernel ends the child with the thread that forked it, not with the process."""
    raised: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedMongo(tmp_path).start()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(raised[0])


def test_stop_kills_a_mongod_that_ignores_the_request(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded_mongod, "STOP_SECONDS", 0.1)
    mongo = EmbeddedMongo(tmp_path)
    mongo.start()
    process = mongo.process
    process.send_signal(signal.SIGSTOP)
    mongo.stop()
    assert process.returncode == -signal.SIGKILL


def script(directory: Path, body: str, *, name: str = "mongod") -> Path:
    path = directory / name
    path.write_text(f"#!{shutil.which('sh')}\n{body}\n")
    path.chmod(0o755)
    return path
