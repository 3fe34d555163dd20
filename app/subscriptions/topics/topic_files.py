"""The SubscriptionTopics that lie in files: those of the server, and those of the operator's directory.

docs/topics.md says what operators may write; `topic_reader` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from app.errors import FhirError
from app.fhir import json as fhir_json
from app.fhir.definitions import PROFILES
from app.fhir.json import Resource
from app.settings import Settings
from app.subscriptions.topics.topic_reader import compile_topic
from app.subscriptions.topics.topics import Catalogue, Topic


@cache
def _files(directory: Path) -> Mapping[str, Resource]:
    """The JSON files of a directory by name."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            found[path.name] = fhir_json.decode(path.read_bytes())
        except FhirError as error:
            raise ValueError(f"{path}: {error}") from None
    return found


def load(settings: Settings, directory: Path = PROFILES / "topics") -> Catalogue:
    """The topics of profiles/topics and of the operator's directory; one of his takes the place of ours.

    Raises ValueError, which names the file and the reason, for one that cannot be evaluated.
    """
    topics: dict[str, Topic] = {}
    for each in (directory, settings.topics):
        if each is None or each == Path():  # an empty variable
            continue
        if not each.is_dir():
            raise ValueError(f"{each} is no directory of topics")
        for name, resource in _files(each).items():
            try:
                topic = compile_topic(resource, settings)
            except FhirError as error:
                reasons = "; ".join(
                    f"{' '.join(issue.expression)}: {issue.diagnostics}" for issue in error.issues
                )
                raise ValueError(f"{each / name}: {reasons}") from None
            if resource.get("status") == "active":
                topics[topic.url] = topic
    return Catalogue(topics.values())
