"""`_text` and `_content`: words of the narrative, and of all text of a resource, as terms of the one index.

https://hl7.org/fhir/R4/search.html#_text - MongoDB allows one text index per collection and cannot tell fields apart,
so the words are ours: without case and accents, each once, a word of the narrative not again as one of the content.
Text is what R4 types as string, markdown or narrative; codes, ids, dates, addresses of the web and files are not.

A search finds resources that have all its words; a word may end in `*`. The terms are a third to two thirds of all that
a resource has (an Encounter: 11 of 28, its part of the index grows from 0.3 to 0.55 kB), so `CARERELAY_SEARCH_WORDS`
may leave them out; these parameters are refused then.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from app.errors import BadRequest
from app.fhir import definitions
from app.fhir.definitions import Element
from app.search import cost
from app.search.escaping import split, unescape
from app.search.parameter import AllOf, AnyOf, Condition, SearchScope
from app.search.parameters.string import normalise
from app.search.search_state import current
from app.search.terms import Terms

NAMES = frozenset({"_text", "_content"})
_WORD = re.compile(r"[^\W_]{2,}")
_TAG = re.compile(r"<[^>]*>|&#?\w+;")
# A document has at most so many words of each kind, and of each word so many letters.
_MOST, _LONGEST = 200, 32
_TEXT = frozenset({"string", "markdown"})
# What a resource's own text is not.
_PASSED = frozenset({"meta", "text", "div"})


def terms(resource_type: str, resource: Mapping[str, Any]) -> list[str]:
    """The terms of a resource's words."""
    if not current().has_words:
        return []
    narrative = resource.get("text")
    found: dict[str, None] = {}
    if type(narrative) is dict:
        found = _words([_TAG.sub(" ", narrative.get("div", ""))], {})
    content = _words(_texts(resource, _keys(resource_type)), found)
    return [f"_text={word}" for word in found] + [f"_content={word}" for word in content]


def condition(resource_type: str, name: str, text: str, scope: SearchScope) -> Condition:
    """What any of the values asks for. Raises BadRequest."""
    if not current().has_words:
        raise _refused(name, f"'{name}' is switched off on this server", "not-supported")
    if name not in definitions.search_parameters(resource_type):
        raise _refused(name, f"'{name}' does not apply to {resource_type}", "not-supported")
    found = tuple(_all_words(name, unescape(each), scope) for each in split(text, ","))
    return found[0] if len(found) == 1 else AnyOf(found)


def _all_words(name: str, text: str, scope: SearchScope) -> Condition:
    keys = ("_text",) if name == "_text" else ("_content", "_text")
    wanted = normalise(text)
    conditions: list[Condition] = []
    for match in _WORD.finditer(wanted):
        scope.budget.spend(cost.WORD, name)
        word = match.group()[:_LONGEST]
        whole = tuple(f"{key}={word}" for key in keys)
        is_beginning = wanted[match.end() : match.end() + 1] == "*"
        conditions.append(Terms(prefixes=whole) if is_beginning else Terms(equal=whole))
    if not conditions:
        raise _refused(name, f"'{name}' needs words of two letters or more", "value")
    return conditions[0] if len(conditions) == 1 else AllOf(tuple(conditions))


def _refused(name: str, diagnostics: str, code: str) -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name}")


def _words(texts: Iterable[str], known: Mapping[str, None]) -> dict[str, None]:
    """The distinct words of texts, in order, without those known already."""
    found: dict[str, None] = {}
    for text in texts:
        for word in _WORD.findall(text.lower() if text.isascii() else normalise(text)):
            if word not in known:
                found[word if len(word) <= _LONGEST else word[:_LONGEST]] = None
                if len(found) == _MOST:
                    return found
    return found


def _texts(resource: Mapping[str, Any], keys: frozenset[str]) -> Iterable[str]:
    """Every string under one of the keys, contained resources included."""
    ahead: list[Any] = [value for key, value in resource.items() if key not in _PASSED]
    for key, value in resource.items():
        if key in keys and type(value) is str:
            yield value
    while ahead:
        value = ahead.pop()
        if type(value) is list:
            ahead += value
        elif type(value) is dict:
            for key, child in value.items():
                if type(child) is str:
                    if key in keys:
                        yield child
                elif type(child) is list and key in keys:
                    for each in child:
                        if type(each) is str:
                            yield each
                        else:
                            ahead.append(each)
                elif key != "div":
                    ahead.append(child)


@cache
def _keys(resource_type: str) -> frozenset[str]:
    """The JSON keys that hold text anywhere inside a type; a name that also holds codes counts as well."""
    found: set[str] = set()
    seen: set[str] = set()

    def add(elements: Mapping[str, Element]) -> None:
        for name, element in elements.items():
            for type_name in element.types:
                if type_name in _TEXT:
                    key = definitions.json_name(name, type_name) if element.choice else name
                    found.add(key)
                elif type_name not in seen and type_name[0].isupper() and type_name != "Resource":
                    seen.add(type_name)
                    add(definitions.structure(type_name).elements)
            add(element.elements)

    add(definitions.structure(resource_type).elements)
    # `data` is base64, but for that of SampledData, which is numbers.
    return frozenset(found - {"id", "url", "reference", "versionId", "xhtml", "data"})
