"""Bundles as JSON, joined from the texts of what is in them.

https://hl7.org/fhir/R4/bundle.html and https://hl7.org/fhir/R4/http.html#paging

Entries are lists of pieces: each entry begins with a comma, and stored texts are pieces of their own, so that they are
copied only once, when all is joined.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, quote_plus, urlencode

import msgspec

from app.errors import Issue, operation_outcome
from app.fhir import json as fhir_json

Pairs = Sequence[tuple[str, str]]
Link = dict[str, str]

# The parameter of a `next` link that says where its page begins.
CURSOR = "_cursor"
_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Quoting:
    """How a link writes its query: `plain` matches what needs none."""

    plain: re.Pattern[str]
    via: Callable[..., str]
    safe: str = ""

    def query(self, pairs: Pairs) -> str:
        # Most need no quoting, and urlencode takes ten times as long to find out.
        if self.plain.fullmatch("".join([name + value for name, value in pairs])):
            return "&".join([f"{name}={value}" for name, value in pairs])
        return urlencode(pairs, quote_via=self.via, safe=self.safe)


# As forms are sent; searches keep what dates and references are made of, for people read their links. The bar of tokens
# has no place in a URI (https://www.rfc-editor.org/rfc/rfc3986#section-3.4): Java's URI refuses the whole link.
FORM = Quoting(re.compile(r"[A-Za-z0-9_.~\-]*"), quote_plus)
SEARCH = Quoting(re.compile(r"[A-Za-z0-9_.~:/,$\-]*"), quote, ":/,$")


class Shown(Protocol):
    """A resource as it is stored."""

    @property
    def type(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def text(self) -> str: ...


def next_link(url: str, pairs: Pairs) -> Link:
    """The link to the page that these parameters make, where it has no token."""
    return {"relation": "next", "url": f"{url}?{FORM.query(pairs)}"}


def self_link(url: str, used: Pairs, quoting: Quoting = FORM) -> Link:
    """The link of a page to itself, by the parameters that took effect."""
    query = quoting.query(used)
    return {"relation": "self", "url": f"{url}?{query}" if query else url}


def found_entries(base_url: str, shown: Iterable[Shown], mode: str = "match") -> list[str]:
    """The entries of a searchset for resources of this server."""
    base = _json.encode(base_url)[:-1].decode()
    ending = f',"search":{{"mode":"{mode}"}}}}'
    pieces: list[str] = []
    for each in shown:
        pieces += (f',{{"fullUrl":{base}/{each.type}/{each.id}","resource":', each.text, ending)
    return pieces


def outcome_entry(issues: Iterable[Issue]) -> list[str]:
    """The entry of a searchset that tells of the search itself."""
    outcome = fhir_json.encode(operation_outcome(issues)).decode()
    return [f',{{"resource":{outcome},"search":{{"mode":"outcome"}}}}']


def written_entries(entries: Iterable[str]) -> list[str]:
    """Entries that are written already."""
    return [piece for each in entries for piece in (",", each)]


def write_bundle(head: Mapping[str, Any], links: Sequence[Link], entries: list[str]) -> bytes:
    """The Bundle: what its `head` says in this order, the links if there are any, and the entries, which it uses up."""
    start = {"resourceType": "Bundle", **head}
    if links:
        start["link"] = links
    opening = fhir_json.encode(start)
    if not entries:
        return opening
    entries[0] = f'{opening[:-1].decode()},"entry":[{entries[0][1:]}'
    entries.append("]}")
    return "".join(entries).encode()
