"""What a rule of a resource type is: it judges a resource and says what is to be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from app import fhir_json
from app.fhir_json import Resource
from app.mongo import Document

if TYPE_CHECKING:
    from app.context import Context
    from app.versions import Stored


@dataclass(frozen=True, slots=True)
class Prepared:
    """A resource ready to be stored.

    `private` lies beside the current version and is never part of any answer (secrets of a Subscription's channel).
    `echo` replaces parts of the answer to the writer alone.
    """

    resource: Resource
    private: Document | None = None
    echo: Resource | None = None

    def shown(self, stored: Stored) -> Stored:
        """The stored version as its writer may see it."""
        if self.echo is None:
            return stored
        shown = {**stored.resource(), **self.echo}
        return replace(stored, text=fhir_json.encode(shown).decode())


Rule = Callable[["Context", Resource, "Stored | None"], Awaitable[Prepared]]
