"""`carerelay clients` and `carerelay keys`, and the README's three commands, as somebody would type them."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import pymongo
import pytest

from app.authentication.clients import ROLES
from app.cli.serve import ServeError, check_exposure, with_authorization
from app.settings import Settings
from tests.builders.smart import ec_key, key_set
from tests.processes import carerelay, environment

pytestmark = [pytest.mark.mongo, pytest.mark.processes, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
ADD = ("clients", "add", "--name", "A practice", "--role", "practice", "--scopes", "system/*.rs")
OURS = (*ADD, "--organization", "Organization/p")


@pytest.fixture
def database(mongod: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Settings of a database of its own."""
    return {
        "mongodb_uri": mongod,
        "mongodb_database": f"cli{abs(hash(request.node.name)) % 10**9}",
        "data": str(tmp_path / "data"),
    }


def test_the_commands_of_the_readme_work_as_they_are_written(tmp_path):
    readme = (ROOT / "README.md").read_text()
    section = readme.split("\n## Security\n")[1]
    block = re.search(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert block is not None
    commands = block[1].strip().splitlines()
    assert len(commands) == 3
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    # Another port, as 8080 may be taken; and the server ends with the script.
    unknown = "curl -s -o answer -w '%{http_code}' http://127.0.0.1:8080/fhir/Patient > code"
    script = "\n".join([*commands, unknown, "kill %1", "wait"]).replace("8080", port)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(port=port),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert '"resourceType":"Bundle"' in done.stdout.replace(" ", ""), done.stdout + done.stderr
    assert (tmp_path / "code").read_text() == "401", "who shows no token is not let in"
    key = tmp_path / "practice.jwk"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert json.loads(key.read_text())["d"] not in done.stdout + done.stderr


def at(port: str) -> str:
    return f"http://127.0.0.1:{port}/fhir"


def test_clients_are_added_listed_changed_and_shut_out(tmp_path, database):
    key = ec_key("first")
    (tmp_path / "set.json").write_text(json.dumps(key_set(key)))
    done = carerelay(*OURS, "--jwks", tmp_path / "set.json", **database)
    assert done.returncode == 0, done.stdout + done.stderr
    client = done.stdout.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", client)
    published = carerelay(*OURS, "--id", "b", "--jwks-url", "https://b.example/jwks", **database)
    assert published.stdout.strip() == "b"
    listed = carerelay("clients", "list", **database).stdout
    assert client in listed
    assert "first" in listed
    assert "https://b.example/jwks" in listed

    rotated = carerelay("clients", "rotate", "b", "--new-key", tmp_path / "b.jwk", **database)
    assert rotated.returncode == 0, rotated.stdout
    made = json.loads((tmp_path / "b.jwk").read_text())
    assert (made["crv"], made["alg"]) == ("P-384", "ES384")
    assert carerelay("clients", "disable", client, **database).returncode == 0
    listed = carerelay("clients", "list", **database).stdout
    assert made["kid"][:20] in listed
    assert "https://b.example/jwks" not in listed
    assert made["d"] not in listed
    assert "disabled" in listed
    assert carerelay("clients", "enable", client, **database).returncode == 0
    assert "disabled" not in carerelay("clients", "list", **database).stdout


def test_scopes_are_replaced_and_that_is_on_record(database):
    recorded = {**database, "audit": "required"}
    assert carerelay(*OURS, "--id", "c", **recorded).returncode == 0
    scopes = ("system/Patient.rs", "system/Encounter.r?status=finished")
    done = carerelay("clients", "scopes", "c", *scopes, **recorded)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip() == f"c may ask for {' '.join(scopes)}"
    listed = carerelay("clients", "list", **recorded).stdout
    assert "system/Patient.rs" in listed
    assert "system/*.rs" not in listed
    mongo: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(database["mongodb_uri"])
    with mongo:
        rows = mongo[database["mongodb_database"]]["audit"].find().sort("at", 1)
        said = [entry["q"] for row in rows for entry in row["each"]]
    assert said == [
        "carerelay clients add",
        f"carerelay clients scopes c {' '.join(scopes)}",
    ]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        pytest.param((*ADD, "--role", "server"), "role is one of", id="role"),
        pytest.param((*ADD,), "organisation", id="organisation"),
        pytest.param((*OURS, "--scopes", "user/*.rs"), "scope", id="scopes"),
        pytest.param((*OURS, "--jwks", "/nowhere"), "cannot be read", id="no-file"),
        pytest.param((*OURS, "--jwks", "/dev/null"), "cannot be read", id="no-json"),
        pytest.param((*OURS, "--jwks-url", "http://b.example"), "https", id="without-tls"),
        pytest.param((*OURS, "--new-key", "/dev/null"), "exists already", id="file-that-exists"),
        pytest.param((*OURS, "--new-key", "/nowhere/key"), "No such file", id="no-directory"),
        pytest.param(
            (*OURS, "--new-key", "k", "--jwks-url", "https://b.example"), "one of", id="two-keys"
        ),
        pytest.param(("clients", "disable", "nobody"), "no client", id="unknown"),
        pytest.param(("clients", "rotate", "nobody"), "new keys", id="no-keys"),
        pytest.param(("clients", "scopes", "nobody", "system/*.rs"), "no client", id="whose"),
        pytest.param(("clients", "scopes", "c", "system/*.sr"), "in this order", id="no-scope"),
    ],
)
def test_what_makes_no_sense_is_said(database, arguments, word):
    done = carerelay(*arguments, **database)
    assert done.returncode == 1, done.stdout
    assert word in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_key_is_not_left_behind_where_the_client_is_refused(tmp_path, database):
    file = tmp_path / "key.jwk"
    assert carerelay(*OURS, "--scopes", "nonsense", "--new-key", file, **database).returncode == 1
    assert not file.exists()


def test_the_servers_keys_are_listed_and_replaced(database):
    first = carerelay("keys", "rotate", **database).stdout.split()[0]
    second = carerelay("keys", "rotate", **database).stdout.split()[0]
    lines = [line for line in carerelay("keys", "list", **database).stdout.splitlines() if line]
    (signs,) = [line for line in lines if "signs" in line]
    assert second in signs
    (verifies,) = [line for line in lines if "verifies until" in line]
    assert first in verifies


def test_a_token_is_asked_for_where_there_is_none_to_be_had(tmp_path):
    done = carerelay("clients", "token", "x", "--key", tmp_path / "none", "--url", "nonsense")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr


def decided(**settings: object) -> str | None:
    return with_authorization(Settings(**settings)).auth  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "auth"),
    [
        pytest.param({"host": "127.0.0.1"}, "off", id="loopback"),
        pytest.param({"host": "127.0.0.1", "auth": "smart"}, "smart", id="loopback-if-asked"),
        pytest.param({"host": "0.0.0.0"}, "smart", id="beyond"),  # noqa: S104 - not listened on
        pytest.param({"host": "192.0.2.1", "auth": "off"}, "off", id="beyond-and-off"),
        pytest.param({"host": "192.0.2.1", "allow_open": True}, "off", id="open-by-order"),
    ],
)
def test_beyond_loopback_authorization_is_the_default(settings, auth):
    assert decided(**settings) == auth


def test_beyond_loopback_the_server_has_to_know_its_name():
    settings = Settings(host="192.0.2.1", auth="smart", trusted_proxy="192.0.2.9")
    with pytest.raises(ServeError, match="CARERELAY_BASE_URL"):
        check_exposure(settings, lambda _: None)
    check_exposure(
        settings.model_copy(update={"base_url": "https://fhir.example.org/fhir"}), lambda _: None
    )


def test_an_issuer_needs_an_audience(monkeypatch):
    monkeypatch.setenv("CARERELAY_OIDC_ISSUER", "https://login.example.org")
    with pytest.raises(ValueError, match="oidc_audience"):
        Settings()


def test_the_documentation_names_every_role():
    text = (ROOT / "docs" / "smart.md").read_text()
    assert [role for role in ROLES if f"`{role}`" not in text] == []
