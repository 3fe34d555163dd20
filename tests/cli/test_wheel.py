"""The wheel works where nothing of the checkout is: its profiles and examples travel inside."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.processes import environment, started, wait_for

pytestmark = [pytest.mark.processes, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dist")
    uv = Path(sys.executable).parent / "uv"
    subprocess.run(
        [uv, "build", "--wheel", "--quiet", "--out-dir", directory, ROOT], check=True, timeout=100
    )
    [built] = directory.glob("carerelay-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the programs of a new environment with the wheel in it.

    The dependencies are those of this environment, by a .pth file: installing them again would
    prove nothing more. The checkout itself is not among them.
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, symlinks=True, with_pip=False)
    python = home / "bin" / "python"
    uv = Path(sys.executable).parent / "uv"
    subprocess.run(
        [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel],
        check=True,
        timeout=100,
    )
    [packages] = home.glob("lib/python*/site-packages")
    # Read as a plain path: a .pth in the other directory (the editable install) is not followed.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return home / "bin"


def test_holds_the_definitions_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "app/profiles/r4/structures.json" in names
    assert "app/examples/stay/story.json" in names
    assert {name.split("/")[0] for name in names} == {
        "app",
        f"carerelay-{wheel.name.split('-')[1]}.dist-info",
    }


def test_serves_from_an_empty_directory(installed, tmp_path):
    command = [installed / "carerelay"]
    path = {**environment(), "PATH": f"{installed}:{os.environ['PATH']}"}
    with started(
        "FHIR base: ", "serve", "--port", "0", command=command, cwd=tmp_path, env=path
    ) as (_, base):
        health = wait_for(base.replace("/fhir", "/healthz"))
        assert health.json() == {"status": "ok"}
        metadata = httpx.get(f"{base}/metadata").json()
    assert metadata["resourceType"] == "CapabilityStatement"
    where = "import app; print(app.__file__)"
    told = subprocess.run(
        [installed / "python", "-c", where], capture_output=True, text=True, cwd=tmp_path
    )
    assert str(installed.parent) in told.stdout
    assert (tmp_path / "data" / "mongodb").is_dir()
