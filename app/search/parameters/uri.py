"""Uri parameters: exact, or by path with `:below` and `:above`. https://hl7.org/fhir/R4/search.html#uri

A canonical is found with its version (`url|version`) and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.search.escaping import unescape
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.terms import Terms, any_of, escape, shorten


def _uri(element: str) -> list[str]:
    return ["=" + shorten(escape(element))]


def canonical(element: str) -> list[str]:
    """The endings of the terms of a canonical: without its version, and with it."""
    url, bar, version = element.partition("|")
    if not bar:
        return ["=" + shorten(escape(url))]
    return ["=" + shorten(escape(url)), "=" + shorten(f"{escape(url)}|{escape(version)}")]


VALUES: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "uri": _uri,
    "url": _uri,
    "canonical": canonical,
}


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier not in (None, "below", "above"):
        raise parameter.unknown_modifier(modifier)
    return any_of(_one(parameter, modifier, unescape(text)) for text in texts)


def _one(parameter: Parameter, modifier: str | None, text: str) -> Terms:
    beginning = parameter.key + "="
    if not text or text != text.strip():
        raise parameter.malformed("a URI")
    if modifier is None:
        read = canonical if "canonical" in parameter.types else _uri
        return Terms(equal=(parameter.key + read(text)[-1],))
    if "://" not in text:
        raise parameter.malformed(
            f"a URL after the modifier ':{modifier}', which has no meaning for others"
        )
    stem = text.rstrip("/")
    if modifier == "below":
        path = beginning + escape(stem)
        return Terms(equal=(beginning + shorten(escape(stem)),), prefixes=(path + "/",))
    return Terms(equal=tuple(beginning + shorten(escape(each)) for each in _above(stem)))


def _above(url: str) -> list[str]:
    """The URL and all that lie above it in its path, with and without a slash at the end."""
    scheme, _, rest = url.partition("://")
    segments = rest.split("/")
    found: list[str] = []
    for end in range(len(segments), 0, -1):
        stem = f"{scheme}://{'/'.join(segments[:end])}"
        found += [stem, stem + "/"]
    return found
