"""Parameters that narrow nothing: left out of reads, searches, histories and operations, and reported.

https://hl7.org/fhir/R4/search.html#errors lets a server leave out what it does not know. A filter that is left out
widens what is disclosed, so that only these few names are: what clients add against caches, and hints of other servers.
Writes and conditional interactions know none of them (docs/decisions/0034-what-is-not-understood.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from app.errors import Issue
from app.search import query
from app.search.search_parameters import extracted
from app.settings import Settings

Pairs = list[tuple[str, str]]

# `_totalMethod` is what fhirpy adds to count; the others make addresses that no cache has seen.
NAMES = frozenset({"_totalMethod", "_", "_t", "_dc"})
_HISTORY = frozenset({"_since", "_at"})


@cache
def _names(listed: str) -> frozenset[str]:
    return NAMES | {name for each in listed.split(",") if (name := each.strip())}


def is_left_out(name: str, settings: Settings) -> bool:
    """Whether a parameter of this name is left out where nothing here has a meaning for it."""
    return name in _names(settings.ignored_parameters)


def without(
    parameters: Pairs, settings: Settings, types: Iterable[str] = ()
) -> tuple[Pairs, list[Issue]]:
    """The parameters of a request without those that are left out, and the warnings that report these.

    A name that has a meaning in searches of the `types` or in histories keeps it.
    """
    found = {name for name, _ in parameters if is_left_out(name, settings)}
    found -= {name for name in found - NAMES if _has_meaning(name, types)}
    if not found:
        return parameters, []
    kept = [pair for pair in parameters if pair[0] not in found]
    return kept, [_warning(name) for name in sorted(found)]


def _has_meaning(name: str, types: Iterable[str]) -> bool:
    return (
        name in _HISTORY or query.is_general(name) or any(name in extracted(each) for each in types)
    )


def _warning(name: str) -> Issue:
    return Issue(
        "not-supported",
        f"Parameter '{name}' narrows nothing here and was left out",
        (f"http.{name}",),
        severity="warning",
    )
