"""Escapes in search values: `\\,` `\\|` `\\$` and `\\\\`. https://hl7.org/fhir/R4/search.html#escaping"""

from __future__ import annotations

import re


def split(text: str, separator: str, maximum: int = -1) -> list[str]:
    """The parts between unescaped separators, escapes left in; at most `maximum` splits."""
    if "\\" not in text:
        return text.split(separator, maximum)
    parts: list[str] = []
    start = position = 0
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        if text[position] == separator and maximum != len(parts):
            parts.append(text[start:position])
            start = position + 1
        position += 1
    parts.append(text[start:])
    return parts


def escape(text: str) -> str:
    """The text as a value, of which nothing is a separator."""
    return re.sub(r"([\\,|$])", r"\\\1", text)


def unescape(text: str) -> str:
    """The text meant; a backslash before any other character stands for itself."""
    if "\\" not in text:
        return text
    result: list[str] = []
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            result.append(following if following and following in ",|$\\" else "\\" + following)
        else:
            result.append(character)
    return "".join(result)
