"""The rule of a resource type: it checks a resource and returns what is to be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from app.errors import Issue
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.runtime.mongo import Document

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import Guard, LateMessage, ResourceVersion


@dataclass(frozen=True, slots=True)
class Prepared:
    """A resource ready to be stored.

    `private` is stored beside the current version and never part of a response (secrets of a Subscription's channel).
    `echo` replaces parts of the response to the writer alone; `issues` and `headers` report the effect of the write.
    """

    resource: Resource
    private: Document | None = None
    echo: Resource | None = None
    # `private` is about the resource's past: where the resource is unchanged there is nothing to write.
    is_memory: bool = False
    # There is nothing to write, whatever the setting for identical updates.
    repeats: bool = False
    late: LateMessage | None = None
    # A version that comes before (Change.withdrawn).
    withdrawn: Resource | None = None
    # What was sent is stored and not in force, which is answered 202.
    only_kept: bool = False
    # What was counted to allow the write, and may not have changed until it is committed.
    guards: tuple[Guard, ...] = ()
    issues: tuple[Issue, ...] = ()
    # What R4's definitions find doubtful, for a writer who asks for an outcome.
    warnings: tuple[Issue, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    def shown(self, stored: ResourceVersion) -> ResourceVersion:
        """The stored version as its writer may see it."""
        if self.echo is None:
            return stored
        shown = {**stored.resource(), **self.echo}
        return replace(stored, text=fhir_json.encode(shown).decode())


Rule = Callable[["Context", Resource, "ResourceVersion | None"], Awaitable[Prepared]]
