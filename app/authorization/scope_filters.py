"""The queries of restricted scopes, as filters of MongoDB and as tests in memory.

http://hl7.org/fhir/smart-app-launch/scopes-and-launch-context.html#finer-grained-resource-constraints-using-search-parameters

Only conditions on the resource's own elements restrict; a scope with any other query grants nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import parse_qsl

from app.authentication.scopes import Action, Scopes
from app.errors import FhirError
from app.search import query
from app.search.parameter import Condition, Fields, Filter
from app.search.resolution import is_resolved
from app.settings import Settings

# One of these must hold, with all of its conditions.
Alternatives = Sequence[Sequence[Condition]]


class Restrictions:
    """The restrictions of one caller's scopes, each compiled when it is first needed."""

    def __init__(self, scopes: Scopes, settings: Settings) -> None:
        self._scopes = scopes
        self._settings = settings
        self._known: dict[tuple[str, Action], Alternatives | None] = {}

    def of(self, resource_type: str, action: Action) -> Alternatives | None:
        """The alternatives, empty where nothing restricts; None where nothing is granted."""
        key = (resource_type, action)
        if key not in self._known:
            self._known[key] = self._compile(resource_type, action)
        return self._known[key]

    def filters(self, resource_type: str, action: Action) -> list[Filter]:
        """The restriction as a list of one filter, empty without one. Only for an action that is granted."""
        found = [
            {"$and": [condition.filter() for condition in each]}
            for each in self.of(resource_type, action) or ()
        ]
        if not found:
            return []
        return found if len(found) == 1 else [{"$or": found}]

    def match(self, resource_type: str, action: Action, fields: Fields) -> bool:
        """Whether a resource with these fields (`extract`) is within the scopes."""
        alternatives = self.of(resource_type, action)
        if alternatives is None:
            return False
        return not alternatives or any(
            all(condition.matches(fields) for condition in each) for each in alternatives
        )

    def _compile(self, resource_type: str, action: Action) -> Alternatives | None:
        queries = self._scopes.restrictions(resource_type, action)
        if queries is None:
            return None
        if not queries:
            return ()
        found = [self._read(resource_type, each) for each in queries]
        understood = [each for each in found if each]
        return understood or None

    def _read(self, resource_type: str, text: str) -> list[Condition]:
        """The conditions of a restriction; empty where the server does not understand all of it."""
        parameters = parse_qsl(text, keep_blank_values=True)
        conditions: list[Condition] = []
        for each in parameters:
            try:
                parsed = query.parse(resource_type, [each], lenient=False, settings=self._settings)
            except FhirError:
                return []
            if len(parsed.conditions) != 1 or not is_resolved(parsed.conditions[0]):
                return []
            conditions += parsed.conditions
        return conditions
