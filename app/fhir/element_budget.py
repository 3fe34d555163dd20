"""What a body will cost before it is decoded: a bound on its elements, counted in its bytes.

An element is here what takes memory and time of its own: an object, a list, a value or an XML element. A list of a
million empty lists is two megabytes long and takes a hundred in memory, so bytes alone are no measure.
"""

from __future__ import annotations

import re

from app.errors import Unprocessable
from app.fhir.formats import FHIR_XML

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def check_cost(body: bytes, media_type: str, most: int) -> None:
    """Raises Unprocessable(code="too-costly") for a body of more than `most` elements."""
    if _may_exceed(body, media_type, most):
        raise Unprocessable(
            f"The body has more than {most} elements; send it in parts", code="too-costly"
        )


def _may_exceed(body: bytes, media_type: str, most: int) -> bool:
    if media_type == FHIR_XML:
        return body.count(b"<") - body.count(b"</") > most
    # Commas and braces of texts are counted too at first: that is quick, and mostly enough to know.
    return _elements(body) > most and _elements(_STRING.sub(b"", body)) > most


def _elements(text: bytes) -> int:
    return text.count(b",") + text.count(b"{") + text.count(b"[")
