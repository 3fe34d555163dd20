"""Comparisons with terms that only `_filter` knows: unequal, ends with, and parts of codes and URIs.

They are regular expressions that MongoDB and Python read alike; the parameter's name in front lets the index serve.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from app.search.escaping import unescape
from app.search.parameter import Condition, Fields, Filter, Parameter
from app.search.parameters import string, token
from app.search.terms import Terms, escape, escape_pattern

# The end of a term: `$` would also match before a line break.
_END = r"(?![\s\S])"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A document matches with any term in which one of the patterns is found; each begins with `^`."""

    patterns: tuple[str, ...]

    def filter(self) -> Filter:
        found: list[Filter] = [{"terms": {"$regex": pattern}} for pattern in self.patterns]
        return found[0] if len(found) == 1 else {"$or": found}

    def matches(self, fields: Fields) -> bool:
        return any(re.search(each, term) for each in self.patterns for term in fields["terms"])


def equal_text(parameter: Parameter, text: str) -> Terms:
    """Strings that are the text, normalised."""
    term = f"{parameter.key}={_text(parameter, text)}"
    return Terms(equal=(term,), prefixes=(term + "\t",))


def ends_with(parameter: Parameter, text: str) -> Pattern:
    """Strings that end with the text, normalised."""
    key, wanted = escape_pattern(parameter.key), escape_pattern(_text(parameter, text))
    return Pattern((f"^{key}=[^\\t]*{wanted}(?:\\t|{_END})",))


def part_of_code(parameter: Parameter, operator: str, text: str) -> Pattern:
    """Codes, identifiers and URIs that contain (co), begin (sw) or end with (ew) the text, in any system."""
    wanted = escape_pattern(escape(unescape(text)))
    if not wanted:
        raise parameter.malformed("some text")
    before = "" if operator == "sw" else "[^|]*"
    after = _END if operator == "ew" else f"[^|]*{_END}"
    return Pattern((f"^{escape_pattern(parameter.key)}={before}{wanted}{after}",))


def other(
    parameter: Parameter, same: Condition, *, is_text: bool = False, is_qualified: bool = False
) -> Pattern:
    """Values of the parameter that are not among the `same`; an element without any value is not unequal.

    A coded value has a term with its system and one without: `is_qualified` says which of them is compared.
    """
    assert isinstance(same, Terms)  # noqa: S101 - what plain conditions of these types are
    end = f"(?:\\t|{_END})" if is_text else _END
    beginnings = [f"{parameter.key}="]
    if parameter.shared:
        beginnings.append(f"{parameter.shared}={parameter.targets[0]}/")
    form = "[\\s\\S]"
    if parameter.type == "token":
        with_system = is_qualified and not parameter.types <= token.SIMPLE
        form = r"[^|]*\|[\s\S]" if with_system else rf"[^|]+{_END}"
    return Pattern(tuple(f"^{escape_pattern(b)}{_unlike(b, same, end)}{form}" for b in beginnings))


def _unlike(beginning: str, same: Terms, end: str) -> str:
    wholes = [*_rests(beginning, same.equal)]
    starts = [*_rests(beginning, same.prefixes)]
    alternatives = [each + end for each in wholes] + starts
    return f"(?!{'|'.join(alternatives)})" if alternatives else ""


def _rests(beginning: str, terms: Iterable[str]) -> Iterable[str]:
    for term in terms:
        if term.startswith(beginning):
            yield escape_pattern(term.removeprefix(beginning))


def _text(parameter: Parameter, text: str) -> str:
    wanted = string.normalise(unescape(text))
    if not wanted:
        raise parameter.malformed("some text")
    return wanted
