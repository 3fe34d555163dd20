"""A document as PDF, set by Typst: its text can be selected and searched, and is tagged for screen readers.

https://typst.app/docs/reference/pdf/

Typst is the extra `pdf`; without it nobody is told that there is a PDF. The template gets the document as data, so that
nothing in it is ever read as markup.
"""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec

from app.coordination.care_plans.document_sheet import Sheet
from app.errors import NotAcceptable
from app.fhir.definitions import PROFILES

if TYPE_CHECKING:
    from typst import Fonts

CONTENT_TYPE = "application/pdf"
_TEMPLATE = PROFILES / "document" / "care-plan.typ"


@cache
def is_installed() -> bool:
    """Whether PDFs can be made here."""
    return find_spec("typst") is not None


async def pdf(sheet: Sheet) -> bytes:
    """The document as PDF, made in a thread of its own. Raises NotAcceptable where the extra is not installed."""
    if not is_installed():
        raise NotAcceptable(
            "This server makes no PDF; it is installed without the extra carerelay[pdf]"
        )
    return await asyncio.to_thread(_set, msgspec.json.encode(sheet).decode())


def _set(sheet: str) -> bytes:
    import typst

    return typst.compile(_TEMPLATE, font_paths=_fonts(), sys_inputs={"sheet": sheet})


@cache
def _fonts() -> Fonts:
    """Those that Typst brings, and the system's for what they lack: to find them takes longer than to set a page."""
    import typst

    return typst.Fonts()
