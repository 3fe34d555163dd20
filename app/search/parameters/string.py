"""String parameters: normalised text, matched from its beginning. https://hl7.org/fhir/R4/search.html#string

Normalised means: no case, no accents, and white space at the ends or doubled does not count. The modifiers are
`:exact` (the original text) and `:contains` (anywhere, normalised).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.search.escaping import unescape
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.terms import Terms, any_of, digest

# Longer texts are searchable by this much of their beginning.
_LONGEST = 2000
_NAME_PARTS = ("text", "family", "given", "prefix", "suffix")
_ADDRESS_PARTS = ("text", "line", "city", "district", "state", "postalCode", "country")


def normalise(text: str) -> str:
    """The text without case, accents and superfluous white space."""
    if not text.isascii():
        # İ and ß change under case folding, and folding can uncover marks: fold, then decompose, then drop marks.
        decomposed = unicodedata.normalize("NFKD", text.casefold())
        text = "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
    return " ".join(text.lower().split())


def term(text: str) -> str:
    """A term's value: the text normalised, and behind a tab the original where it differs."""
    plain = normalise(text)
    if len(plain) > _LONGEST:
        return f"{plain[:_LONGEST]}\t%#{digest(text)}"
    return plain if plain == text else f"{plain}\t{text}"


def _text(element: str) -> list[str]:
    return ["=" + term(element)]


def _parts(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], list[str]]:
    def read(element: Mapping[str, Any]) -> list[str]:
        found: list[str] = []
        for name in names:
            part = element.get(name)
            if type(part) is str:
                found.append("=" + term(part))
            elif part:
                found += ["=" + term(each) for each in part if each is not None]
        return found

    return read


VALUES: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "string": _text,
    "markdown": _text,
    "HumanName": _parts(_NAME_PARTS),
    "Address": _parts(_ADDRESS_PARTS),
}


def starts_with(beginning: str, text: str) -> Terms:
    """Terms whose normalised value begins with a text; `beginning` is the part of the term before the value."""
    return Terms(prefixes=(beginning + normalise(text)[:_LONGEST],))


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier not in (None, "exact", "contains"):
        raise parameter.unknown_modifier(modifier)
    return any_of(_one(parameter, modifier, unescape(text)) for text in texts)


def _one(parameter: Parameter, modifier: str | None, text: str) -> Terms:
    beginning = parameter.key + "="
    if modifier == "exact":
        return Terms(equal=(beginning + term(text),))
    if not normalise(text):
        raise parameter.malformed("some text")
    if modifier == "contains":
        return Terms(contained=((beginning, normalise(text)),))
    return starts_with(beginning, text)
