"""The text of a document as XHTML that reads without any FHIR software; everything is escaped.

https://hl7.org/fhir/R4/narrative.html
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from app.coordination.care_plans.document_sheet import Block, shown_text

_XHTML = "http://www.w3.org/1999/xhtml"


def div(*markup: str) -> str:
    """Markup as a Narrative's div."""
    return f'<div xmlns="{_XHTML}">{"".join(markup)}</div>'


def text(value: str) -> str:
    """Text as markup: escaped, and without characters that XML cannot hold."""
    return escape(shown_text(value), quote=True)


def items(lines: Iterable[str]) -> str:
    """A list of lines; empty for none."""
    found = "".join(f"<li>{text(line)}</li>" for line in lines if line)
    return f"<ul>{found}</ul>" if found else ""


def blocks(found: Iterable[Block]) -> str:
    """Blocks, each with its heading, facts, lines and remark."""
    return "".join(_block(each) for each in found if each.says_something)


def _block(block: Block) -> str:
    heading = f"<p><b>{text(block.heading)}</b></p>" if block.heading else ""
    facts = "".join(
        f"<p><b>{text(label)}:</b> {text(value)}</p>" for label, value in block.facts if value
    )
    remark = f"<p><i>{text(block.remark)}</i></p>" if block.remark else ""
    return heading + facts + items(block.lines) + remark
