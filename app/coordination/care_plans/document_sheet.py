"""What a document says, before it is put into any form: blocks of lines, in parts, behind a summary of one page.

The Composition's narrative, the page and the PDF are made from the same sheet, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# A section's emptyReason, https://hl7.org/fhir/R4/valueset-list-empty-reason.html
UNAVAILABLE, NOT_ASKED, WITHHELD = "unavailable", "notasked", "withheld"


@dataclass(frozen=True, slots=True)
class Block:
    """Under a heading: facts with a label each, a list of lines, and a remark. Each of them may be missing."""

    heading: str = ""
    facts: Sequence[tuple[str, str]] = ()
    lines: Sequence[str] = ()
    remark: str = ""

    @property
    def says_something(self) -> bool:
        return bool(self.lines or self.remark or any(value for _, value in self.facts))


@dataclass(frozen=True, slots=True)
class Part:
    """A section: its title and code, its text, the keys of the resources that it tells of, and why it has none."""

    title: str
    code: Mapping[str, str]
    blocks: Sequence[Block]
    keys: Sequence[str] = ()
    empty: str | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A document: language (BCP 47), title, whom it is about and when it was made, the summary, and the parts."""

    language: str
    title: str
    about: str
    made: str
    summary_title: str
    summary: Sequence[Block]
    parts: Sequence[Part]
