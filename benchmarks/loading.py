"""`load`: `carerelay load` against a short script that POSTs the same files one after another.

Both run as processes of their own, in turn, each on a new database of the same server program: the ratio of their
times is taken within a pair. The files are patients' histories as transactions, as Synthea writes them, with the
practitioners and places that they refer to by identifier.
"""

from __future__ import annotations

import bz2
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from app.runtime.embedded_mongod import EmbeddedMongo
from benchmarks import processes

NAME = "load"
# Of the script's throughput: Bundles one at a time, and four at once.
ONE_BAR, FOUR_BAR = 0.9, 1.5
_PATIENTS, _ENTRIES = 16, 500
_SYNTHEA = Path(os.environ.get("CARERELAY_SHARED", "../shared")) / "data" / "synthea-20"
_HEADERS = {"Content-Type": "application/fhir+json"}

Figures = dict[str, Any]


def measure(say: Callable[[str], Any], *, runs: int) -> Figures:
    """Resources per second of each, and the medians of the pairs' ratios; `_shortfall` is the bar by the ratio."""
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory) / "data") as mongo,
    ):
        files = Path(directory) / "files"
        files.mkdir()
        resources = _unpack(files) if _SYNTHEA.is_dir() else _make(files)
        seconds: dict[str, list[float]] = {"script": [], "one": [], "four": []}
        for run in range(runs):
            for name, times in seconds.items():
                say(f"{NAME}: {name}, run {run + 1}")
                with processes.server_on(mongo.uri, f"load-{run}-{name}") as port:
                    times.append(_timed(name, files, f"http://{processes.LOOPBACK}:{port}/fhir"))
                    _check(port, files)
    figures: Figures = {
        f"{name}_per_second": resources / median(times) for name, times in seconds.items()
    }
    for name, bar in (("one", ONE_BAR), ("four", FOUR_BAR)):
        pairs = zip(seconds["script"], seconds[name], strict=True)
        ratio = median(script / ours for script, ours in pairs)
        figures[f"{name}_ratio"] = ratio
        figures[f"{name}_shortfall"] = bar / ratio
        figures[f"{name}_shortfall_bar"] = 1.0
    return figures


def _timed(name: str, files: Path, base: str) -> float:
    command = [sys.executable, "-m", "benchmarks.loading", str(files), base]
    if name != "script":
        at_once = "1" if name == "one" else "4"
        load = ["load", str(files), "--url", base, "--at-once", at_once]
        command = [sys.executable, "-m", "app.cli", *load]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise processes.BenchmarkError(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - begun


def _check(port: int, files: Path) -> None:
    """Both must have stored all patients, or the times say nothing."""
    expected = sum(not file.name.startswith("0-") for file in files.iterdir())
    answer = httpx.get(f"http://{processes.LOOPBACK}:{port}/fhir/Patient?_summary=count")
    found = answer.json()["total"]
    if found != expected:
        raise processes.BenchmarkError(f"{found} patients instead of {expected}")


def _unpack(files: Path) -> int:
    """Synthea's files, unpacked, so that only the loads are compared; how many resources there are."""
    resources = 0
    for path in sorted(_SYNTHEA.glob("*.json.bz2")):
        content = bz2.decompress(path.read_bytes())
        resources += len(json.loads(content)["entry"])
        (files / path.stem).write_bytes(content)
    return resources


def _make(files: Path) -> int:
    """Histories like Synthea's."""
    practitioner = {
        "resourceType": "Practitioner",
        "identifier": [{"system": "http://hl7.org/fhir/sid/us-npi", "value": "9999999989"}],
    }
    search = "Practitioner?identifier=http://hl7.org/fhir/sid/us-npi|9999999989"
    request = {"method": "POST", "url": "Practitioner", "ifNoneExist": search.partition("?")[2]}
    entry = {"resource": practitioner, "request": request}
    _write(files, "0-practitioners", "batch", [entry])
    for number in range(_PATIENTS):
        patient = f"urn:uuid:{uuid.uuid4()}"
        entries = [_created(patient, {"resourceType": "Patient", "name": [{"family": "Bench"}]})]
        for _ in range(_ENTRIES // 2):
            stay = f"urn:uuid:{uuid.uuid4()}"
            entries += [
                _created(stay, _encounter(patient, search)),
                _created(f"urn:uuid:{uuid.uuid4()}", _observation(patient, stay)),
            ]
        _write(files, f"patient-{number:02}", "transaction", entries)
    return 1 + _PATIENTS * (1 + _ENTRIES // 2 * 2)


def _write(files: Path, name: str, kind: str, entries: list[dict[str, Any]]) -> None:
    bundle = {"resourceType": "Bundle", "type": kind, "entry": entries}
    (files / f"{name}.json").write_text(json.dumps(bundle, indent=1))


def _created(full_url: str, resource: dict[str, Any]) -> dict[str, Any]:
    request = {"method": "POST", "url": resource["resourceType"]}
    return {"fullUrl": full_url, "resource": resource, "request": request}


def _encounter(patient: str, practitioner: str) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "type": [{"coding": [{"system": "http://snomed.info/sct", "code": "185345009"}]}],
        "subject": {"reference": patient},
        "participant": [{"individual": {"reference": practitioner}}],
        "period": {"start": "2020-02-01T08:00:00Z", "end": "2020-02-01T08:30:00Z"},
    }


def _observation(patient: str, encounter: str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "8302-2"}]},
        "subject": {"reference": patient},
        "encounter": {"reference": encounter},
        "effectiveDateTime": "2020-02-01T08:10:00Z",
        "valueQuantity": {
            "value": 173.2,
            "unit": "cm",
            "system": "http://unitsofmeasure.org",
            "code": "cm",
        },
    }


def _post_all(directory: str, base: str) -> None:
    """The script: what anybody would write to load a directory."""
    for file in sorted(Path(directory).iterdir()):
        answer = httpx.post(base, content=file.read_bytes(), headers=_HEADERS, timeout=600)
        answers = answer.raise_for_status().json()["entry"]
        refused = [each for each in answers if each["response"]["status"][0] != "2"]
        if refused:
            sys.exit(f"{file.name}: {refused[0]}")


if __name__ == "__main__":
    _post_all(*sys.argv[1:])
