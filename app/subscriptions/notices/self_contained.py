"""Resources that refer to each other and to nothing else, as a message needs them.

https://hl7.org/fhir/R4/bundle.html#references
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from app.fhir.json import Resource
from app.subscriptions.notices.required_names import key_of

DATA_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
# What stands where a value must be and is not known here.
ABSENT: Resource = {"extension": [{"url": DATA_ABSENT, "valueCode": "unknown"}]}


class Closure:
    """`urls` maps what is at hand (`Patient/p1`) to its fullUrl; of what is `hidden` not even the display is told."""

    def __init__(
        self, base_url: str, urls: Mapping[str, str], hidden: Collection[str] = ()
    ) -> None:
        self._base_url = base_url
        self._urls = urls
        self._hidden = hidden

    def close(self, value: Any) -> Any:
        """A copy in which every reference leads to a fullUrl, or is none: display, identifier or a stated absence."""
        if isinstance(value, list):
            return [self.close(each) for each in value]
        if not isinstance(value, dict):
            return value
        closed = {name: self.close(each) for name, each in value.items()}
        if not isinstance(value.get("reference"), str) or value["reference"].startswith("#"):
            return closed
        key = key_of(value, self._base_url)
        if key in self._urls:
            return {**closed, "reference": self._urls[key]}
        return self._told_apart(closed, is_hidden=key in self._hidden)

    def _told_apart(self, reference: Resource, *, is_hidden: bool) -> Resource:
        without = {"reference", "_reference"} | ({"display", "identifier"} if is_hidden else set())
        rest = {name: each for name, each in reference.items() if name not in without}
        if not {"display", "identifier"} & rest.keys():
            rest["extension"] = [*rest.get("extension", ()), *ABSENT["extension"]]
        return rest


def reachable(
    resources: Mapping[str, Resource], start: Iterable[str], also: Iterable[str] = ()
) -> list[str]:
    """The fullUrls that references lead to from `start`, nearest first, then from `also`; each once.

    `resources` are closed, by fullUrl.
    """
    found: dict[str, None] = {}
    for urls in (start, also):
        waiting = list(urls)
        while waiting:
            url = waiting.pop(0)
            if url in resources and url not in found:
                found[url] = None
                waiting += _references(resources[url])
    return list(found)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        for each in value.values():
            yield from _references(each)
