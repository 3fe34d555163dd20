"""A document as a web page that needs nothing else: for a browser, and for paper by its print style.

Nothing of it is anybody's markup: all text is escaped, and the page's policy lets in its own style and no scripts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from hashlib import sha256

from app.coordination.care_plans.document_narrative import blocks, text
from app.coordination.care_plans.document_sheet import Part, Sheet
from app.fhir.definitions import PROFILES

CONTENT_TYPE = "text/html; charset=utf-8"


def page(sheet: Sheet) -> str:
    """The page: a summary that is one page on paper, then the sections."""
    return (
        f'<!DOCTYPE html>\n<html lang="{text(sheet.language)}">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(sheet.title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(sheet.title)}</h1><p>{text(sheet.about)}</p>"
        f"<p>{text(sheet.made)}</p></header>\n"
        f'<section class="summary">\n<h2>{text(sheet.summary_title)}</h2>\n'
        f"{_divided(blocks([each]) for each in sheet.summary)}</section>\n"
        f"{''.join(_section(each) for each in sheet.parts)}</body>\n</html>\n"
    )


def policy() -> str:
    """The Content-Security-Policy of the page."""
    digest = b64encode(sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; sandbox"
    )


def _section(part: Part) -> str:
    return f"<section>\n<h2>{text(part.title)}</h2>\n{blocks(part.blocks)}\n</section>\n"


def _divided(markup: Iterable[str]) -> str:
    """Blocks that are not broken over two columns."""
    return "".join(f"<div>{each}</div>\n" for each in markup if each)


@cache
def _style() -> str:
    return (PROFILES / "document" / "care-plan.css").read_text("utf-8")
