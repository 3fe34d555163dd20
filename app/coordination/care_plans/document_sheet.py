"""What a document says, before it is put into any form: blocks of lines, in parts, behind a summary of one page.

The Composition's narrative, the page and the PDF are made from the same sheet, so that they say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

# What no page shows: control characters, and those that turn round the order of whatever follows them, somebody else's
# facts as well (https://www.unicode.org/reports/tr9/#Explicit_Directional_Formatting_Characters).
_CONTROLS = (*range(9), 11, 12, *range(14, 32), *range(127, 160), 0xFFFE, 0xFFFF)
_TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSHOWN = dict.fromkeys(_CONTROLS, " ") | dict.fromkeys(_TURNS, "")
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


def shown(sheet: Sheet) -> Sheet:
    """The sheet with texts of which each is shown as itself, and none changes how others are."""
    return replace(
        sheet,
        title=shown_text(sheet.title),
        about=shown_text(sheet.about),
        summary=[_block(each) for each in sheet.summary],
        parts=[
            replace(
                part, title=shown_text(part.title), blocks=[_block(each) for each in part.blocks]
            )
            for part in sheet.parts
        ],
    )


def _block(block: Block) -> Block:
    return Block(
        shown_text(block.heading),
        [(shown_text(label), shown_text(value)) for label, value in block.facts],
        [shown_text(each) for each in block.lines],
        shown_text(block.remark),
    )


def shown_text(text: str) -> str:
    """The text without what no page shows and XML cannot hold."""
    return text.translate(_UNSHOWN)
