"""Work out the units that R4 names as common: `python -m profiles.units FROM [TO]`.

FROM holds `hl7.fhir.r4.core.tgz` and `valueset-expansions.json.gz`. Written to TO, by default `ucum.json` beside this
file: for each UCUM code its base unit, the factor and the offset, or null where it can be compared with no other unit.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

from app.search.units import UCUM, Unit, work_out
from profiles.reduce import package, write

COMMON = "http://hl7.org/fhir/ValueSet/ucum-common"
SAMPLE = "http://hl7.org/fhir/ValueSet/ucum-units"


def codes(directory: Path) -> set[str]:
    found: set[str] = set()
    for resource in package(directory / "hl7.fhir.r4.core.tgz"):
        if resource.get("url") == COMMON:
            for include in resource["compose"]["include"]:
                found |= {concept["code"] for concept in include["concept"]}
    with gzip.open(directory / "valueset-expansions.json.gz") as file:
        for entry in json.load(file)["entry"]:
            if entry["resource"]["url"] == SAMPLE:
                contains = entry["resource"]["expansion"]["contains"]
                found |= {each["code"] for each in contains if each["system"] == UCUM}
    return found


def reduced(unit: Unit | None) -> list[Any] | None:
    if unit is None:
        return None
    return [unit.base, str(unit.factor)] + ([str(unit.offset)] if unit.offset else [])


def main(directory: Path, out: Path = Path(__file__).parent / "ucum.json") -> None:
    write(out, {code: reduced(work_out(code)) for code in sorted(codes(directory))})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
