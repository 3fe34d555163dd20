"""Reference parameters. https://hl7.org/fhir/R4/search.html#reference

`id` (of any type the parameter may point to), `Type/id`, an absolute URL (the server's own base included), and either
with `/_history/version`. Modifiers: `:Type` with an id, `:identifier` with a token for logical references.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from app.fhir import definitions
from app.fhir.full_urls import RELATIVE
from app.fhir.ids import is_id
from app.search.escaping import split, unescape
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.parameters import token, uri
from app.search.terms import Terms, any_of, escape, shorten

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:\S+")


def _reference(element: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    url = element.get("reference")
    if url and not url.startswith("#"):
        found.append("=" + shorten(escape(url)))
        current, versioned, _ = url.partition("/_history/")
        if versioned:
            found.append("=" + shorten(escape(current)))
    identifier = element.get("identifier")
    if identifier:
        endings = token.VALUES["Identifier"](identifier)
        found += [":identifier" + ending for ending in endings if ending[0] == "="]
    return found


def _resource(element: Mapping[str, Any]) -> list[str]:
    """A resource inside a Bundle, where a parameter speaks of it as if it were referred to."""
    return [f"={element['resourceType']}/{element['id']}"] if "id" in element else []


VALUES: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "Reference": _reference,
    "Resource": _resource,
    "canonical": uri.canonical,
    "uri": uri.VALUES["uri"],
}


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier == "identifier":
        return any_of(token.code(parameter, text, ":identifier") for text in texts)
    if modifier is None:
        return any_of(_one(parameter, text, scope) for text in texts)
    if modifier in definitions.SUPPORTED_TYPES and (
        not parameter.targets or modifier in parameter.targets
    ):
        return any_of(_typed(parameter, modifier, unescape(text), scope) for text in texts)
    raise parameter.unknown_modifier(modifier)


def _typed(parameter: Parameter, resource_type: str, text: str, scope: SearchScope) -> Terms:
    text = text.removeprefix(resource_type + "/")
    if not is_id(text):
        raise parameter.malformed(f"an id of a {resource_type}")
    return local(parameter, [f"{resource_type}/{text}"], scope)


def _one(parameter: Parameter, text: str, scope: SearchScope) -> Terms:
    if "canonical" in parameter.types and len(split(text, "|")) == 2:
        url, version = (unescape(part) for part in split(text, "|"))
        return Terms(equal=(parameter.key + uri.canonical(f"{url}|{version}")[-1],))
    text = unescape(text)
    if scope.base_url and text.startswith(scope.base_url + "/"):
        text = text.removeprefix(scope.base_url + "/")
    if is_id(text):
        targets = parameter.targets or definitions.SUPPORTED_TYPES
        return local(parameter, [f"{target}/{text}" for target in targets], scope)
    if RELATIVE.fullmatch(text):
        return local(parameter, [text], scope)
    if _ABSOLUTE.fullmatch(text):
        return Terms(equal=(_term(parameter, text),))
    raise parameter.malformed("an id, Type/id or a URL")


def local(parameter: Parameter, references: Sequence[str], scope: SearchScope) -> Terms:
    """References on this server (`Type/id`), which resources may hold relative or under the server's own base."""
    found = [_term(parameter, reference) for reference in references]
    if scope.base_url:
        found += [_term(parameter, f"{scope.base_url}/{reference}") for reference in references]
    return Terms(equal=tuple(found))


def targets(parameter: Parameter, terms: Iterable[str], base_url: str) -> Iterator[tuple[str, str]]:
    """Type and id of what stored terms refer to on this server by the parameter."""
    keys = (
        (parameter.key + "=", parameter.shared + "=") if parameter.shared else parameter.key + "="
    )
    for term in terms:
        if term.startswith(keys):
            written = term.partition("=")[2]
            near = written.removeprefix(f"{base_url}/") if base_url else written
            found = RELATIVE.fullmatch(near)
            if found and found[1] in (parameter.targets or definitions.SUPPORTED_TYPES):
                yield found[1], found[2]


def _term(parameter: Parameter, reference: str) -> str:
    key = parameter.key
    if parameter.shared and reference.startswith(parameter.targets[0] + "/"):
        key = parameter.shared
    return f"{key}={shorten(escape(reference))}"
