"""The embedded MongoDB: data persist, one server per directory, and nothing outlives its parent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.runtime import embedded_mongod
from app.runtime.embedded_mongod import (
    EmbeddedMongo,
    EmbeddedMongoError,
    find_mongod,
    running_uri,
)
from app.runtime.mongod_log import without_values
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


def test_is_a_replica_set_of_one_on_a_socket(mongo):
    with connect(mongo) as client:
        hello = client.admin.command("hello")
    assert hello["setName"] == "carerelay"
    assert hello["hosts"] == [str(mongo.socket)]
    assert "compression" not in hello


def test_nobody_else_reaches_it_or_reads_its_files(mongo):
    assert listens(mongo.process.pid) == {str(mongo.socket)}
    assert modes(mongo.files) == {0o700, 0o600}


def test_a_directory_that_others_could_read_is_closed_to_them(tmp_path):
    files = tmp_path / "mongodb"
    files.mkdir(mode=0o755)
    (files / "mongod.log").touch(mode=0o644)
    with EmbeddedMongo(tmp_path):
        assert modes(files) == {0o700, 0o600}
        assert (files / "mongod.log.1").exists()


def test_a_directory_of_a_server_that_listened_on_a_port_is_started(tmp_path):
    with (
        EmbeddedMongo(tmp_path) as mongo,
        MongoClient[dict[str, Any]](mongo.uri, retryWrites=False) as client,
    ):
        client.test.things.insert_one({"_id": 1})
        member = {"members.0.host": "127.0.0.1:27999"}
        client.local["system.replset"].update_one({}, {"$set": member, "$inc": {"version": 1}})
    with EmbeddedMongo(tmp_path) as mongo, connect(mongo) as client:
        assert client.test.things.find_one() == {"_id": 1}
        assert client.admin.command("hello")["hosts"] == [str(mongo.socket)]


@pytest.mark.parametrize("name", ["Data", "a,b:c d", "x" * 100])
def test_where_the_path_is_no_place_for_a_socket_it_lies_in_a_directory_made_for_it(
    tmp_path, monkeypatch, name
):
    short = tempfile.mkdtemp(prefix="made-for-sockets-")
    monkeypatch.setenv("XDG_RUNTIME_DIR", short)
    with EmbeddedMongo(tmp_path / name) as mongo, connect(mongo) as client:
        assert mongo.socket.parent.parent == Path(short)
        assert modes(mongo.socket.parent) == {0o700, 0o600}
        assert running_uri(tmp_path / name) == mongo.uri
        client.test.things.insert_one({"_id": 1})
    os.rmdir(short)  # nothing is left in it


SOUGHT = "Thistlewick"


def test_what_is_asked_and_stored_is_in_no_log(mongo):
    """Whether it takes long, is broken off, fails, or breaks a unique index: mongod logs such commands whole."""
    slowly = {
        "$function": {"body": "function(){sleep(150); return true}", "args": [], "lang": "js"}
    }
    sought = {"name": SOUGHT, "$expr": slowly}
    with connect(mongo) as client:
        people = client.test.people
        people.create_index("name", unique=True)
        people.insert_one({"name": SOUGHT})
        assert people.count_documents(sought) == 1
        for refused in (
            lambda: list(people.find(sought).max_time_ms(50)),
            lambda: people.insert_one({"name": SOUGHT}),
            lambda: list(people.find({"$expr": {"$divide": [{"$strLenCP": "$name"}, 0]}})),
            lambda: list(people.aggregate([{"$set": {"x": {"$toInt": f"{SOUGHT}"}}}])),
        ):
            with pytest.raises(PyMongoError):
                refused()
    logs = [each.read_text() for each in mongo.files.glob("*.log*") if each.is_file()]
    assert any("Plan executor error" in each or "executor error" in each for each in logs)
    assert not [each for each in logs if SOUGHT in each]


def test_a_line_of_the_log_keeps_what_happened(tmp_path):
    told = {
        "t": {},
        "s": "E",
        "c": "STORAGE",
        "id": 1,
        "ctx": "x",
        "msg": "m",
        "attr": {"error": "full"},
    }
    asked = {**told, "c": "COMMAND", "attr": {"command": {"filter": {"name": SOUGHT}}}}
    assert json.loads(without_values(json.dumps(told).encode())) == told
    del told["attr"]
    assert json.loads(without_values(json.dumps(asked).encode())) == {**told, "c": "COMMAND"}
    assert SOUGHT.encode() not in without_values(f"*** {SOUGHT}".encode())


def test_commits_transactions(mongo):
    with connect(mongo) as client, client.start_session() as session:
        session.with_transaction(lambda s: client.test.pairs.insert_one({"_id": 1}, session=s))
        assert client.test.pairs.count_documents({}) == 1


def test_raises_the_limit_of_open_files(mongo):
    limits = Path(f"/proc/{mongo.process.pid}/limits").read_text()
    [line] = [line for line in limits.splitlines() if line.startswith("Max open files")]
    soft, hard = line.split()[3:5]
    assert soft == hard or int(soft) >= 64_000


def test_data_stay_when_it_stops_and_starts_again(tmp_path):
    for run in range(1, 3):
        with EmbeddedMongo(tmp_path) as mongo, connect(mongo) as client:
            client.test.runs.insert_one({"_id": run})
            assert client.test.runs.count_documents({}) == run
            pid = mongo.process.pid
        assert not is_running(pid)


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


def listens(pid: int) -> set[str]:
    """Where a process listens, by the kernel's tables of TCP and Unix sockets."""
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # one of a file that was just closed
            links.append(os.readlink(each))
    sockets = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in sockets and fields[3] == "0A":
                found.add(fields[1])
    for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[6] in sockets and int(fields[3], 16) & 0x10000 and len(fields) > 7:
            found.add(fields[7])
    return found


def modes(directory: Path) -> set[int]:
    """The rights of a directory and of all that is in it."""
    return {stat.S_IMODE(each.stat().st_mode) for each in (directory, *directory.rglob("*"))}


def script(directory: Path, body: str, *, name: str = "mongod") -> Path:
    path = directory / name
    path.write_text(f"#!{shutil.which('sh')}\n{body}\n")
    path.chmod(0o755)
    return path
