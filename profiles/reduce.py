"""Reduce HL7's R4 definitions to the facts the server works with: `python profiles/reduce.py FROM [TO]`.

FROM holds `hl7.fhir.r4.core.tgz`, the FHIR package of R4 4.0.1, `valueset-expansions.json.gz`, US Core 6.1.0 as
`us-core/us_core_610.tgz`, and the Subscriptions R5 Backport guide as `subscriptions-backport/compiled-r4-json`. Written
to TO, by default `r4/` beside this file, and to `us-core/` beside TO: names, paths, types, cardinalities, targets,
codes and the FHIRPath of invariants; no prose.
https://hl7.org/fhir/R4/structuredefinition.html
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
OUT = Path(__file__).parent / "r4"
BASE = "http://hl7.org/fhir/StructureDefinition/"
REGEX = BASE + "regex"
FHIR_TYPE = BASE + "structuredefinition-fhir-type"
# The operations of R4 that the server has.
OPERATIONS = {
    "Patient-everything",
    "Resource-meta",
    "Resource-meta-add",
    "Resource-meta-delete",
    "Resource-validate",
}
# Those of the Subscriptions R5 Backport guide, and where one is newer than the guide's 1.1.
BACKPORT_OPERATIONS = {
    "backport-subscription-events": "",
    "backport-subscription-get-ws-binding-token": "",
    "backport-subscription-resend": "Of 1.2.0-ballot of the guide; 1.1 does not have it.",
    "backport-subscription-status": "",
}
_OPERATION = (
    "resourceType id url version name status kind affectsState code resource system type instance"
)
_PARAMETER = "name use min max type targetProfile searchType part"
ENDLESS = {  # the published expansions of these are samples
    "http://hl7.org/fhir/ValueSet/mimetypes",
    "http://hl7.org/fhir/ValueSet/ucum-units",
}
# The package also carries parameters of guides that were published with R4; only R4's own are served.
STANDARD_PARAMETER = re.compile(
    r"([A-Z][A-Za-z]+|clinical|conformance|individual|medications)-[a-z_A-Z]"
)


def package(path: Path) -> Iterator[Json]:
    """Every resource of a FHIR package."""
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".json") and "/." not in member.name:
                content = archive.extractfile(member)
                if content is not None:
                    yield json.load(content)


def by_type(resources: Iterable[Json]) -> dict[str, list[Json]]:
    """Resources grouped by type, each group in the order of the canonical urls."""
    groups: dict[str, list[Json]] = {}
    for resource in resources:
        groups.setdefault(resource.get("resourceType", ""), []).append(resource)
    for group in groups.values():
        group.sort(key=lambda resource: str(resource.get("url")))
    return groups


def last(canonical: str) -> str:
    return canonical.rsplit("/", 1)[-1]


def unversioned(canonical: str) -> str:
    return canonical.split("|")[0]


def type_code(path: str, entry: Json, *, is_resource: bool) -> str:
    """The FHIR type of one ElementDefinition.type.

    R4 writes `System.String` and an extension for the ids; it calls a resource's id a string there, but
    https://hl7.org/fhir/R4/resource.html#id says it is an id.
    """
    if not entry["code"].startswith("http://hl7.org/fhirpath/"):
        return str(entry["code"])
    if is_resource and re.fullmatch(r"\w+\.id", path):
        return "id"
    return str(next(e["valueUrl"] for e in entry["extension"] if e["url"] == FHIR_TYPE))


def element(definition: Json, *, is_resource: bool) -> Json:
    """One element, without its children."""
    path = definition["path"]
    reduced: Json = {}
    if "contentReference" in definition:
        reduced["ref"] = definition["contentReference"].lstrip("#")
    types = [
        type_code(path, entry, is_resource=is_resource) for entry in definition.get("type", ())
    ]
    if types:
        reduced["types"] = list(dict.fromkeys(types))
    if definition["min"]:
        reduced["min"] = definition["min"]
    if definition["max"] != "1":
        reduced["max"] = None if definition["max"] == "*" else int(definition["max"])
    if path.endswith("[x]"):
        reduced["choice"] = True
    if definition.get("isSummary"):
        reduced["summary"] = True
    targets = [
        last(target)
        for entry in definition.get("type", ())
        if entry["code"] == "Reference"
        for target in entry.get("targetProfile", ())
    ]
    if targets and targets != ["Resource"]:
        reduced["targets"] = targets
    binding = definition.get("binding", {})
    if binding.get("strength") == "required" and "valueSet" in binding:
        reduced["binding"] = unversioned(binding["valueSet"])
    return reduced


def primitive(definitions: list[Json]) -> Json:
    """The lexical form of a primitive type, from the type of its `value`."""
    value = next(d for d in definitions if d["path"].endswith(".value"))
    facts: Json = {}
    for extension in value["type"][0].get("extension", ()):
        if extension["url"] == REGEX:
            facts["regex"] = extension["valueString"]
    if "maxLength" in value:
        facts["max_length"] = value["maxLength"]
    return facts


def structure(definition: Json) -> Json:
    is_resource = definition["kind"] == "resource"
    reduced: Json = {"kind": definition["kind"]}
    if definition.get("abstract"):
        reduced["abstract"] = True
    if "baseDefinition" in definition:
        reduced["base"] = last(definition["baseDefinition"])
    elements = definition["snapshot"]["element"]
    if definition["kind"] == "primitive-type":
        return {**reduced, **primitive(elements)}
    root: Json = {"elements": {}}
    nodes = {elements[0]["path"]: root}
    for entry in elements[1:]:
        parent, _, name = entry["path"].rpartition(".")
        node = element(entry, is_resource=is_resource)
        nodes[entry["path"]] = node
        nodes[parent].setdefault("elements", {})[name.removesuffix("[x]")] = node
    return {**reduced, **root}


def structures(definitions: list[Json]) -> Json:
    return {
        definition["name"]: structure(definition)
        for definition in sorted(definitions, key=lambda d: str(d["name"]))
        if definition["kind"] != "logical" and definition.get("derivation") != "constraint"
    }


def invariants(definitions: list[Json]) -> list[Json]:
    """The invariants of R4's types, each where it is stated: what derives from a type has those of the type, too.

    A quantity that is a SimpleQuantity has those of that profile, the only one that R4's own types refer to so.
    """
    by_name = {definition["name"]: definition for definition in definitions}
    simple = by_name["SimpleQuantity"]
    rows = []
    for name in sorted(by_name):
        definition = by_name[name]
        if definition["kind"] == "logical" or definition.get("derivation") == "constraint":
            continue
        for entry in definition["differential"]["element"]:
            stated = list(entry.get("constraint", ()))
            if any(simple["url"] in each.get("profile", ()) for each in entry.get("type", ())):
                stated += simple["differential"]["element"][0]["constraint"]
            rows += [invariant(entry["path"], constraint) for constraint in stated]
    return rows


def invariant(path: str, constraint: Json) -> Json:
    return {"path": path.removesuffix("[x]")} | {
        name: constraint[name] for name in ("key", "severity", "expression")
    }


def search_parameters(definitions: list[Json]) -> list[Json]:
    reduced = []
    for definition in definitions:
        entry: Json = {
            key: definition[key]
            for key in ("code", "url", "base", "type", "expression", "target", "modifier")
            if key in definition
        }
        if "component" in definition:
            entry["component"] = [
                {key: component[key] for key in ("definition", "expression")}
                for component in definition["component"]
            ]
        reduced.append(entry)
    return reduced


def concepts(nested: Iterable[Json]) -> Iterator[str]:
    for concept in nested:
        yield concept["code"]
        yield from concepts(concept.get("concept", ()))


def compose(value_set: Json, systems: dict[str, Json]) -> dict[str, list[str]] | None:
    """The codes of a value set by system, or None where it cannot be enumerated from the package."""
    codes: dict[str, list[str]] = {}
    rules = value_set.get("compose", {})
    if rules.get("exclude"):
        return None
    for include in rules.get("include", ()):
        system = include.get("system")
        if system is None or include.get("filter") or include.get("valueSet"):
            return None
        if "concept" in include:
            found = [concept["code"] for concept in include["concept"]]
        elif systems.get(system, {}).get("content") == "complete":
            found = list(concepts(systems[system].get("concept", ())))
        else:
            return None
        codes.setdefault(system, []).extend(found)
    return {system: sorted(set(found)) for system, found in sorted(codes.items())} or None


def required_bindings(reduced: Json) -> set[str]:
    """The canonical of every value set that some element of the reduced structures is bound to."""
    found = {reduced["binding"]} if isinstance(reduced.get("binding"), str) else set()
    for child in reduced.values():
        if isinstance(child, dict):
            found |= required_bindings(child)
    return found


def expansion(value_set: Json) -> dict[str, list[str]]:
    codes: dict[str, set[str]] = {}
    for entry in value_set["expansion"].get("contains", ()):
        codes.setdefault(entry["system"], set()).add(entry["code"])
    return {system: sorted(found) for system, found in sorted(codes.items())}


def value_sets(wanted: set[str], resources: dict[str, list[Json]], expansions: list[Json]) -> Json:
    """Codes of the wanted value sets; what the sources cannot enumerate is left out."""
    by_url = {value_set["url"]: value_set for value_set in resources["ValueSet"]}
    systems = {system["url"]: system for system in resources["CodeSystem"]}
    expanded = {value_set["url"]: value_set for value_set in expansions}
    reduced: Json = {}
    for canonical in sorted(wanted):
        codes = compose(by_url.get(canonical, {}), systems)
        if codes is None and canonical not in ENDLESS and canonical in expanded:
            codes = expansion(expanded[canonical])
        if codes:
            reduced[canonical] = codes
    return reduced


def compartments(definitions: list[Json]) -> Json:
    return {
        definition["code"]: {
            entry["code"]: entry["param"] for entry in definition["resource"] if entry.get("param")
        }
        for definition in sorted(definitions, key=lambda d: str(d["code"]))
        if not definition["url"].endswith("/example")
    }


def operation(definition: Json) -> Json:
    """An OperationDefinition without its prose."""
    reduced = {name: definition[name] for name in _OPERATION.split() if name in definition}
    reduced["parameter"] = [operation_parameter(each) for each in definition.get("parameter", ())]
    return reduced


def operation_parameter(parameter: Json) -> Json:
    reduced = {name: parameter[name] for name in _PARAMETER.split() if name in parameter}
    if "part" in reduced:
        reduced["part"] = [operation_parameter(part) for part in reduced["part"]]
    return reduced


def write(path: Path, content: Any) -> None:
    """One entry a line, so that a change of the definitions can be read as a difference."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    opening, closing = ("{", "}") if isinstance(content, dict) else ("[", "]")
    lines = []
    for key, value in items:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
        lines.append(f"{json.dumps(key)}:{text}" if isinstance(content, dict) else text)
    path.write_text(f"{opening}\n" + ",\n".join(lines) + f"\n{closing}\n", encoding="utf-8")


def write_operation(directory: Path, definition: Json) -> None:
    text = json.dumps(definition, indent=2, ensure_ascii=False)
    (directory / f"{definition['id']}.json").write_text(text + "\n", encoding="utf-8")


def main(directory: Path, out: Path = OUT) -> None:
    resources = by_type(package(directory / "hl7.fhir.r4.core.tgz"))
    with gzip.open(directory / "valueset-expansions.json.gz") as file:
        expansions = [entry["resource"] for entry in json.load(file)["entry"]]
    out.mkdir(parents=True, exist_ok=True)
    reduced = structures(resources["StructureDefinition"])
    write(out / "structures.json", reduced)
    write(out / "invariants.json", invariants(resources["StructureDefinition"]))
    standard = [d for d in resources["SearchParameter"] if STANDARD_PARAMETER.match(last(d["url"]))]
    write(out / "search-parameters.json", search_parameters(standard))
    us_core = by_type(package(directory / "us-core" / "us_core_610.tgz"))["SearchParameter"]
    (out.parent / "us-core").mkdir(exist_ok=True)
    # The guide repeats R4's own parameters; what derives from none of them is new.
    new = [definition for definition in us_core if "derivedFrom" not in definition]
    write(out.parent / "us-core" / "search-parameters.json", search_parameters(new))
    codes = value_sets(required_bindings(reduced), resources, expansions)
    write(out / "value-sets.json", codes)
    write(out / "compartments.json", compartments(resources["CompartmentDefinition"]))
    (out.parent / "operations").mkdir(exist_ok=True)
    for definition in resources["OperationDefinition"]:
        if definition["id"] in OPERATIONS:
            write_operation(out.parent / "operations", operation(definition))
    for name, comment in BACKPORT_OPERATIONS.items():
        path = directory / "subscriptions-backport" / "compiled-r4-json"
        definition = json.loads((path / f"OperationDefinition-{name}.json").read_bytes())
        remark = {"comment": comment} if comment else {}
        write_operation(out.parent / "operations", operation(definition) | remark)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
