"""Servers in processes of their own, as clients of others meet them: one with authorization, and one without."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey

from tests.builders.smart import form, signed
from tests.processes import carerelay, environment, started, wait_for

SYSTEM = "http://carerelay.example/sid/test"
CLASS = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
CLIENT = "flows"


@contextmanager
def serving(*options: str, **settings: str) -> Iterator[str]:
    """The FHIR base of a server that answers."""
    command = ("serve", "--port", "0", *options)
    with started("FHIR base: ", *command, env=environment(**settings)) as (_, address):
        wait_for(f"{address}/metadata")
        yield address


@pytest.fixture(scope="package")
def base(mongod: str) -> Iterator[str]:
    """The FHIR base of a server without authorization."""
    with serving(mongodb_uri=mongod, mongodb_database=f"t{uuid.uuid4().hex[:12]}") as address:
        yield address


@dataclass(frozen=True)
class Smart:
    """A server with authorization, and a client that it knows."""

    base: str
    key_file: Path
    client: str = CLIENT

    @property
    def token_url(self) -> str:
        told = httpx.get(f"{self.base}/.well-known/smart-configuration").json()
        return str(told["token_endpoint"])

    def assertion(self) -> str:
        claims = {
            "iss": self.client,
            "sub": self.client,
            "aud": self.token_url,
            "exp": int(time.time()) + 240,
            "jti": uuid.uuid4().hex,
        }
        return signed(claims, ECKey.import_key(json.loads(self.key_file.read_text())))

    def token(self) -> str:
        """An access token for all that the client may."""
        wanted = form(self.assertion(), scope="system/*.cruds")
        return str(httpx.post(self.token_url, data=wanted).json()["access_token"])


@pytest.fixture(scope="package")
def smart(mongod: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smart]:
    """A server with authorization."""
    data = tmp_path_factory.mktemp("smart")
    settings = {
        "mongodb_uri": mongod,
        "mongodb_database": f"t{uuid.uuid4().hex[:12]}",
        "data": str(data),
    }
    about = ("--id", CLIENT, "--name", "Flows", "--role", "administrator")
    key = data / "flows.jwk"
    rights = ("--scopes", "system/*.cruds", "--new-key", str(key))
    added = carerelay("clients", "add", *about, *rights, **settings)
    assert added.returncode == 0, added.stderr
    with serving("--auth", "smart", **settings) as address:
        yield Smart(address, key)


@pytest.fixture
def batch() -> str:
    """An identifier for what one test creates."""
    return uuid.uuid4().hex


def patient(batch: str, family: str, **more: Any) -> dict[str, Any]:
    return {
        "identifier": [{"system": SYSTEM, "value": batch}],
        "name": [{"family": family, "given": ["Test"]}],
        **more,
    }
