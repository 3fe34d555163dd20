"""Token parameters: codes and identifiers. https://hl7.org/fhir/R4/search.html#token

`code` is that code in any system, `system|code` in this one, `|code` in none, `system|` any code of the system.
Modifiers: `:not` (also finds resources without a value), `:text` (beginning of the text or display), `:of-type`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.fhir import definitions
from app.search.escaping import split, unescape
from app.search.parameter import Condition, Not, Parameter, SearchScope
from app.search.parameters import string
from app.search.terms import Terms, any_of, escape, shorten

# Data types without a system of their own: a code's is implied by its value set, the others have none.
SIMPLE = frozenset({"code", "boolean", "id", "string", "uri"})


def qualified(system: str | None, code: str) -> str:
    return shorten(f"{escape(system or '')}|{escape(code)}")


def plain(code: str) -> str:
    return shorten(escape(code))


def _pair(system: str | None, code: str | None) -> list[str]:
    if code:
        return ["=" + plain(code), "=" + qualified(system, code)]
    return ["=" + qualified(system, "")] if system else []


def _coding(element: Mapping[str, Any]) -> list[str]:
    found = _pair(element.get("system"), element.get("code"))
    display = element.get("display")
    if display:
        found.append(":text=" + string.normalise(display))
    return found


def _codeable_concept(element: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for coding in element.get("coding", ()):
        found += _coding(coding)
    text = element.get("text")
    if text:
        found.append(":text=" + string.normalise(text))
    return found


def _identifier(element: Mapping[str, Any]) -> list[str]:
    value = element.get("value")
    found = _pair(element.get("system"), value)
    kind = element.get("type")
    if kind:
        if value:
            found += [
                ":of-type=" + of_type(coding.get("system"), coding["code"], value)
                for coding in kind.get("coding", ())
                if coding.get("code")
            ]
        text = kind.get("text")
        if text:
            found.append(":text=" + string.normalise(text))
    return found


def of_type(system: str | None, code: str, value: str) -> str:
    return shorten(f"{escape(system or '')}|{escape(code)}|{escape(value)}")


def _contact_point(element: Mapping[str, Any]) -> list[str]:
    # The specification lets ContactPoint.use stand for the system.
    return _pair(element.get("use"), element.get("value"))


def _simple(element: str) -> list[str]:
    return ["=" + plain(element)]


def _boolean(element: bool) -> list[str]:
    return ["=true" if element else "=false"]


VALUES: Mapping[str, Callable[[Any], Sequence[str]]] = {
    "Coding": _coding,
    "CodeableConcept": _codeable_concept,
    "Identifier": _identifier,
    "ContactPoint": _contact_point,
    "boolean": _boolean,
    "code": _simple,
    "id": _simple,
    "string": _simple,
    "uri": _simple,
}


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    match modifier:
        case None:
            return any_of(code(parameter, text) for text in texts)
        case "not":
            return Not(any_of(code(parameter, text) for text in texts))
        case "text":
            return any_of(_text(parameter, text) for text in texts)
        case "of-type" if "Identifier" in parameter.types:
            return any_of(_of_type(parameter, text) for text in texts)
    raise parameter.unknown_modifier(modifier)


def code(parameter: Parameter, text: str, form: str = "") -> Terms:
    """`code`, `system|code`, `|code` or `system|`; with `form`, of the parameter's other terms (`:identifier`)."""
    beginning = f"{parameter.key}{form}="
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) > 2 or not any(parts):
        raise parameter.malformed("code, system|code, |code or system|")
    if len(parts) == 1:
        return Terms(equal=(beginning + plain(parts[0]),))
    return coded(parameter, parts[0], parts[1], form)


def coded(parameter: Parameter, system: str, wanted: str, form: str = "") -> Terms:
    """A code of a system; with an empty code all of the system, with an empty system those in none."""
    beginning = f"{parameter.key}{form}="
    simple = () if form else _in_simple_types(parameter, beginning, system, wanted)
    if not form and parameter.types <= SIMPLE:
        return Terms(equal=simple)
    if not wanted:
        prefix = f"{beginning}{escape(system)}|"
        return Terms(equal=simple, prefixes=(prefix,))
    return Terms(equal=(*simple, beginning + qualified(system, wanted)))


def _in_simple_types(
    parameter: Parameter, beginning: str, system: str, wanted: str
) -> tuple[str, ...]:
    """The terms of elements that have no system of their own and belong to the one asked for."""
    if not system:
        # In a mixed parameter the same term may come from a Coding with a system, so it cannot serve here.
        return (beginning + plain(wanted),) if parameter.types <= SIMPLE else ()
    codes: set[str] = set()
    for path in parameter.paths:
        if path.binding and path.type == "code":
            members = (definitions.required_codes(path.binding) or {}).get(system, frozenset())
            codes |= members & {wanted} if wanted else members
    return tuple(beginning + plain(each) for each in sorted(codes))


def _text(parameter: Parameter, text: str) -> Terms:
    text = unescape(text)
    if not string.normalise(text):
        raise parameter.malformed("some text")
    return string.starts_with(f"{parameter.key}:text=", text)


def _of_type(parameter: Parameter, text: str) -> Terms:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise parameter.malformed("system|code|value after the modifier ':of-type'")
    return Terms(equal=(f"{parameter.key}:of-type={of_type(*parts)}",))
