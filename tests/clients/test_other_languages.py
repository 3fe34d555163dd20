"""Clients in JavaScript and Java, run by their own test runners: `make clients`.

`npm` and `mvn` fetch what `node/package-lock.json` and `java/pom.xml` pin, from where this machine has them fetch it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import Smart

pytestmark = [pytest.mark.clients, pytest.mark.processes, pytest.mark.timeout(1200)]

HERE = Path(__file__).parent
NODE = HERE / "node"
JAVA = HERE / "java"
JAVASCRIPT = ("fhir-kit-client", "fhirclient", "medplum")


def run(folder: Path, *command: str, **variables: str) -> str:
    """What a program prints that has to end well."""
    program = shutil.which(command[0])
    assert program, f"{command[0]} is missing: docs/clients.md says what make clients needs"
    done = subprocess.run(
        [program, *command[1:]],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="package")
def installed() -> None:
    """The packages of the lock file."""
    run(NODE, "npm", "ci", "--no-audit", "--no-fund")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("client", JAVASCRIPT)
def test_javascript(client: str, base: str, smart: Smart) -> None:
    told = {
        "CARERELAY_BASE": base,
        "CARERELAY_SMART_BASE": smart.base,
        "CARERELAY_CLIENT": smart.client,
        "CARERELAY_KEY": str(smart.key_file),
    }
    said = run(NODE, "node", "--test", "--test-reporter=spec", f"{client}.test.mjs", **told)
    assert "fail 0" in said
    assert "skipped 0" in said


def test_every_javascript_file_is_run() -> None:
    assert {path.name for path in NODE.glob("*.test.mjs")} == {f"{n}.test.mjs" for n in JAVASCRIPT}


def test_java(base: str, smart: Smart) -> None:
    said = run(
        JAVA,
        "mvn",
        "--batch-mode",
        "--no-transfer-progress",
        "test",
        CARERELAY_BASE=base,
        CARERELAY_SMART_BASE=smart.base,
        CARERELAY_TOKEN=smart.token(),
    )
    assert "Failures: 0, Errors: 0, Skipped: 0" in said
