"""Terms: the strings under the one multikey index, and conditions on them.

A term is `<code>=<value>` or `<code>:<form>=<value>`, where `code` is the search parameter's:

    status=finished                        a code, whatever its system
    class=http://.../v3-ActCode|IMP        a code in a system; `class=|IMP` says that there is none
    identifier:of-type=<system>|<code>|<value>
    subject=Patient/1                      a reference;  subject:identifier=<system>|<value>  a logical one
    family=muller<TAB>Müller               a normalised string, the original behind a tab where it differs
    code:text=sodium                       the text of a coded value, normalised
    subject=                               there is an element, but no value that could be searched
    *                                      every live document
    _sender=Organization/1                 an organization that wrote it; no search asks for that

Values from resources cannot forge a separator: `|` and `%` inside a part are percent-encoded. Long values are cut and
end in `%#` and a digest, which no encoded value can contain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from app.search.parameter import Fields, Filter

EVERY = "*"
SENDER = "_sender="
_LONGEST, _KEPT = 256, 200


def escape(part: str) -> str:
    """A part of a term, unable to be read as a separator."""
    if "%" in part or "|" in part:
        return part.replace("%", "%25").replace("|", "%7C")
    return part


def unescape(part: str) -> str:
    """What `escape` was given."""
    return part.replace("%7C", "|").replace("%25", "%")


def shorten(value: str) -> str:
    """The value, or its beginning and a digest where it is long. Prefix searches work up to 200 characters."""
    if len(value) <= _LONGEST:
        return value
    return f"{value[:_KEPT]}%#{digest(value)}"


def digest(value: str) -> str:
    return sha256(value.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def successor(prefix: str) -> str:
    """The smallest string above all that begin with the prefix, in UTF-8 order."""
    stem, last = prefix[:-1], ord(prefix[-1])
    if last == 0x10FFFF:
        return successor(stem)
    return stem + chr(0xE000 if last == 0xD7FF else last + 1)


@dataclass(frozen=True, slots=True)
class Terms:
    """A document matches with any term that is one of `equal`, begins with one of `prefixes`, or contains a text.

    `contained` holds pairs of a term's beginning and the text wanted between it and a tab.
    """

    equal: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    contained: tuple[tuple[str, str], ...] = ()

    def filter(self) -> Filter:
        alternatives: list[Filter] = []
        if len(self.equal) == 1:
            alternatives.append({"terms": self.equal[0]})
        elif self.equal or not (self.prefixes or self.contained):
            alternatives.append({"terms": {"$in": list(self.equal)}})
        for prefix in self.prefixes:
            bounds = {"$gte": prefix, "$lt": successor(prefix)}
            alternatives.append({"terms": {"$elemMatch": bounds}})
        for beginning, text in self.contained:
            pattern = f"^{escape_pattern(beginning)}[^\t]*{escape_pattern(text)}"
            alternatives.append({"terms": {"$regex": pattern}})
        return alternatives[0] if len(alternatives) == 1 else {"$or": alternatives}

    def matches(self, fields: Fields) -> bool:
        terms: list[str] = fields["terms"]
        if any(term in terms for term in self.equal):
            return True
        if self.prefixes and any(term.startswith(self.prefixes) for term in terms):
            return True
        return any(
            term.startswith(beginning) and text in term[len(beginning) :].partition("\t")[0]
            for beginning, text in self.contained
            for term in terms
        )


def senders(organizations: Iterable[str]) -> list[str]:
    """The terms of what organizations (`Organization/1`) wrote."""
    return [SENDER + each for each in organizations]


def any_of(conditions: Iterable[Terms]) -> Terms:
    """One condition for several alternatives."""
    found = list(conditions)
    return Terms(
        tuple(dict.fromkeys(term for each in found for term in each.equal)),
        tuple(dict.fromkeys(prefix for each in found for prefix in each.prefixes)),
        tuple(dict.fromkeys(pair for each in found for pair in each.contained)),
    )


def escape_pattern(text: str) -> str:
    """The text as a pattern of a regular expression that matches nothing else."""
    return re.sub(r"([\\^$.|?*+()\[\]{}])", r"\\\1", text)
