"""Secrets at rest: sealed with keys that never reach the database."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet

from app.runtime import secrets
from app.runtime.secrets import SecretsError
from app.settings import Settings
from tests.builders.receiver import receiving
from tests.builders.subscriptions import topic_based
from tests.conftest import Server

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()


def keyed(*keys: str) -> secrets.Secrets:
    return secrets.of_settings(Settings(secret_key=",".join(keys)))


def test_what_is_sealed_opens_with_the_same_key_and_tells_nothing() -> None:
    sealed = keyed(OLD).seal("Authorization: Bearer s3cret")
    assert "s3cret" not in sealed
    assert keyed(OLD).open(sealed) == "Authorization: Bearer s3cret"


def test_keys_rotate_by_putting_a_new_one_in_front() -> None:
    sealed = keyed(OLD).seal("x")
    both = keyed(NEW, OLD)
    assert both.open(sealed) == "x"
    assert keyed(NEW).open(both.seal("y")) == "y"
    with pytest.raises(SecretsError):
        keyed(NEW).open(sealed)


def test_what_was_never_sealed_opens_as_it_is() -> None:
    assert keyed(NEW).open("X-Key: 7") == "X-Key: 7"


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(SecretsError, match="32 bytes"):
        keyed("password")


def test_without_a_key_one_is_made_for_its_owner_alone_and_apart_from_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    settings = Settings(data=tmp_path / "data")
    sealed = secrets.of_settings(settings).seal("x")
    file = tmp_path / "config" / "carerelay" / "secret.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert keyed(file.read_text()).open(sealed) == "x"
    assert [each.name for each in file.parent.iterdir()] == ["secret.key"]
    assert not settings.data.exists()


def test_a_key_beside_the_data_goes_on_to_be_used_until_it_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    beside = tmp_path / "secret.key"
    beside.write_text(OLD)
    settings = Settings(data=tmp_path)
    assert secrets.of_settings(settings).open(keyed(OLD).seal("x")) == "x"
    apart = tmp_path / "config" / "carerelay" / "secret.key"
    apart.parent.mkdir(parents=True)
    apart.write_text(f"{NEW}\n{OLD}\n")
    beside.unlink()
    moved = secrets.of_settings(settings)
    assert moved.open(keyed(OLD).seal("x")) == "x"
    assert keyed(NEW).open(moved.seal("y")) == "y"


def test_where_no_key_can_be_made_the_ways_out_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(SecretsError, match="CARERELAY_SECRET_KEY_FILE"):
        secrets.of_settings(Settings(data=tmp_path))


def test_a_key_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    named = tmp_path / "keys"
    with pytest.raises(SecretsError, match="keys"):
        secrets.of_settings(Settings(secret_key_file=named))
    named.write_text(f"{NEW}\n{OLD}\n")
    assert secrets.of_settings(Settings(secret_key_file=named)).open(keyed(OLD).seal("x")) == "x"


@pytest.mark.mongo
async def test_a_subscription_s_headers_lie_sealed_in_the_database(
    server: Server, client: httpx.AsyncClient
) -> None:
    async with receiving() as receiver:
        subscription = topic_based(
            "patient=Patient/sealed", endpoint=receiver.url, header=["Authorization: Bearer s3cret"]
        )
        response = await client.post("/Subscription", json=subscription)
        assert response.json()["channel"]["header"] == ["Authorization: Bearer s3cret"]
        (handshake,) = await receiver.wait(1, events=False)
        assert handshake.headers["authorization"] == "Bearer s3cret"
        id_ = response.json()["id"]
        document = await server.mongo.collection("Subscription").find_one({"_id": id_})
        assert "s3cret" not in str(document)
        assert "s3cret" not in (await client.get(f"/Subscription/{id_}")).text
        await client.delete(f"/Subscription/{id_}")
