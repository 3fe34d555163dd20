"""XML text to elements, without anything that XML could fetch or expand.

https://hl7.org/fhir/R4/security.html#narrative and https://hl7.org/fhir/R4/xml.html
"""

from __future__ import annotations

import re
from typing import Any

from lxml import etree

from app.errors import BadRequest

FHIR = "http://hl7.org/fhir"
XHTML = "http://www.w3.org/1999/xhtml"

# FHIR has at most two on an element, XHTML some more; lxml takes the square of their number to list them.
MAX_ATTRIBUTES = 100

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A document type may only stand before the root, after comments, instructions and white space.
_DOCTYPE = re.compile(r"(?:\s|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)


def parse(body: bytes) -> etree._Element:
    """The root element of an XML text: UTF-8, without a document type, so nothing can be expanded or fetched.

    Raises BadRequest(code="structure") with the place; what was sent is not echoed.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"Not UTF-8 at byte {error.start}", code="structure") from None
    if _DOCTYPE.match(text):
        raise BadRequest("A document type (DOCTYPE) is not allowed", code="structure")
    # The encoding overrules what the XML declaration says. lxml's parsers are not safe to share.
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        root = etree.fromstring(body, parser)
    except etree.XMLSyntaxError as error:
        line, column = error.position
        log: Any = error.error_log
        kinds = [entry.type_name for entry in log]
        reason = kinds[-1].removeprefix("ERR_").replace("_", " ").lower() if kinds else "no element"
        message = f"Malformed XML at line {line}, column {column}: {reason}"
        raise BadRequest(message, code="structure") from None
    if any(len(node.attrib) > MAX_ATTRIBUTES for node in root.iter(etree.Element)):
        raise BadRequest(f"An element has more than {MAX_ATTRIBUTES} attributes", code="structure")
    return root
