"""The reader of a SubscriptionTopic's elements, which notes every issue at its element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.errors import Issue
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource

# The base of our own extensions.
EXTENSIONS = "http://carerelay.example/StructureDefinition/"
TRIGGER_EXTENSION = EXTENSIONS + "topic-trigger"
FUNCTION_EXTENSION = EXTENSIONS + "topic-trigger-function"
BESIDE_EXTENSION = EXTENSIONS + "topic-trigger-beside"
REPEATED = frozenset({FUNCTION_EXTENSION})
_CORE = "http://hl7.org/fhir/StructureDefinition/"
# Elements that are evaluated, or that have no effect on what fires.
_KNOWN: Mapping[str, frozenset[str]] = {
    "": frozenset(
        [
            "resourceType",
            "id",
            "meta",
            "implicitRules",
            "language",
            "text",
            "url",
            "identifier",
            "version",
            "versionAlgorithmString",
            "name",
            "title",
            "derivedFrom",
            "status",
            "experimental",
            "date",
            "publisher",
            "contact",
            "description",
            "useContext",
            "jurisdiction",
            "purpose",
            "copyright",
            "copyrightLabel",
            "approvalDate",
            "lastReviewDate",
            "effectivePeriod",
            "resourceTrigger",
            "canFilterBy",
            "notificationShape",
        ]
    ),
    "resourceTrigger": frozenset(
        [
            "id",
            "extension",
            "description",
            "resource",
            "supportedInteraction",
            "queryCriteria",
            "fhirPathCriteria",
        ]
    ),
    "queryCriteria": frozenset(
        ["previous", "resultForCreate", "current", "resultForDelete", "requireBoth"]
    ),
    "canFilterBy": frozenset(
        [
            "id",
            "extension",
            "description",
            "resource",
            "filterParameter",
            "filterDefinition",
            "comparator",
            "modifier",
        ]
    ),
    "notificationShape": frozenset(["id", "resource", "include", "revInclude"]),
}


class Elements:
    """The issues of a topic so far. An element that is not evaluated is refused, never ignored."""

    def __init__(self) -> None:
        self.issues: list[Issue] = []

    def refuse(self, path: str, diagnostics: str, code: str = "not-supported") -> None:
        self.issues.append(Issue(code, diagnostics, (f"SubscriptionTopic{path}",)))

    def entries(self, resource: Resource, name: str) -> list[dict[str, Any]]:
        entries = resource.get(name, [])
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            self.refuse(f".{name}", "Not a list of objects", "structure")
            return []
        for index, entry in enumerate(entries):
            self.check_known(entry, name, f".{name}[{index}]")
        return entries

    def check_known(self, entry: Mapping[str, Any], kind: str, path: str) -> None:
        for name in sorted(entry.keys() - _KNOWN[kind]):
            self.refuse(f"{path}.{name}", "This server does not evaluate this element")

    def type_of(self, entry: Mapping[str, Any], path: str) -> str:
        name = str(entry.get("resource", "")).removeprefix(_CORE)
        if name not in SUPPORTED_TYPES or name == "Subscription":
            self.refuse(f"{path}.resource", "Not a resource type that can be watched")
            return ""
        return name

    def extensions(
        self, entry: Mapping[str, Any], path: str, known: Mapping[str, str]
    ) -> dict[str, Any]:
        """The values of our extensions by URL; each once, but `REPEATED` ones, which are lists."""
        found: dict[str, Any] = {}
        for index, extension in enumerate(entry.get("extension", ())):
            url = extension.get("url")
            value = extension.get(known.get(url, ""))
            if value is not None and url in REPEATED:
                found.setdefault(url, []).append(value)
            elif value is None or url in found:
                self.refuse(f"{path}.extension[{index}]", "Unknown extension, or one too many")
            else:
                found[url] = value
        return found
