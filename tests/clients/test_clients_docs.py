"""docs/clients.md names the versions that are tried."""

from __future__ import annotations

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def pinned() -> dict[str, str]:
    """The version of each client, by its name in the table."""
    locked = (ROOT / "uv.lock").read_text()
    python = dict(re.findall(r'^name = "(fhirpy|fhirclient)"\nversion = "(.+)"$', locked, re.M))
    javascript = json.loads((HERE / "node" / "package.json").read_text())["dependencies"]
    java = re.search(r"<hapi.version>(.+)</hapi.version>", (HERE / "java" / "pom.xml").read_text())
    assert java is not None
    return {
        **python,
        "fhir-kit-client": javascript["fhir-kit-client"],
        "fhirclient.js": javascript["fhirclient"],
        "@medplum/core": javascript["@medplum/core"],
        "HAPI FHIR client": java[1],
    }


def test_the_page_names_the_versions_that_are_pinned() -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    assert dict(re.findall(r"^\| \[(.+?)\]\(.+?\) \| \w+ \| ([\d.]+) \|", page, re.M)) == pinned()


def test_the_lock_file_pins_what_is_asked_for_by_hash_and_from_nowhere_in_particular() -> None:
    text = (HERE / "node" / "package-lock.json").read_text()
    packages = json.loads(text)["packages"]
    asked = packages.pop("")["dependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in asked} == asked
    assert all("integrity" in each and "resolved" not in each for each in packages.values())
