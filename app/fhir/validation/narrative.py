"""Narrative.div: XHTML that shows text and does nothing else (rule txt-1).

https://hl7.org/fhir/R4/narrative.html
"""

from __future__ import annotations

import re
from html.entities import name2codepoint

from lxml import etree

_XHTML = "{http://www.w3.org/1999/xhtml}"
_NAMES = (
    "a abbr acronym address b basefont bdo big blockquote br caption center cite code col colgroup dd dfn"
    " div dl dt em font h1 h2 h3 h4 h5 h6 hr i img kbd li ol p pre q s samp small span strike strong sub"
    " sup table tbody td tfoot th thead tr tt u ul var"
)
_ELEMENTS = frozenset(_NAMES.split())
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]*);")
# lxml takes the square of their number to list them.
_MAX_ATTRIBUTES = 100
_XML_ENTITIES = frozenset(("amp", "lt", "gt", "quot", "apos"))
# Browsers leave these out of an address before they look at its scheme.
_LEFT_OUT = re.compile(r"[\x00-\x20]+")
_ACTIVE_SCHEME = re.compile(r"(?:javascript|vbscript):", re.IGNORECASE)
# An address that is a document itself; images are none that acts.
_DOCUMENT = re.compile(r"data:(?!image/)", re.IGNORECASE)
_ADDRESSES = frozenset({"href", "src", "cite", "background", "longdesc", "usemap"})


def is_narrative(text: str) -> bool:
    """Whether the text is one well-formed `div` of XHTML's formatting elements, without scripts or handlers.

    HTML's named entities are let through although R4 wants characters instead: many systems send `&nbsp;`.
    """
    if not text.lstrip().startswith("<div"):
        return False
    root = _parse(text)
    if root is None:
        root = _parse(_ENTITY.sub(_character, text))
    return root is not None and root.tag == f"{_XHTML}div" and all(map(_is_allowed, root.iter()))


def _parse(text: str) -> etree._Element | None:
    # A parser of its own each time: lxml's are not safe to share between threads.
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(text, parser)
    except (etree.XMLSyntaxError, ValueError):
        return None


def _character(match: re.Match[str]) -> str:
    name = match[1]
    if name in _XML_ENTITIES or name not in name2codepoint:
        return match[0]
    return chr(name2codepoint[name])


def _is_allowed(node: etree._Element) -> bool:
    if not isinstance(
        node.tag, str
    ):  # a comment is harmless; an entity or processing instruction is not
        return node.tag is etree.Comment
    namespace, _, name = node.tag.rpartition("}")
    if f"{namespace}}}" != _XHTML or name not in _ELEMENTS:
        return False
    if len(node.attrib) > _MAX_ATTRIBUTES:
        return False
    return not node.attrib or all(
        _is_harmless(str(name), str(value)) for name, value in node.attrib.items()
    )


def _is_harmless(name: str, value: str) -> bool:
    local = name.rpartition("}")[2].lower()
    address = _LEFT_OUT.sub("", value)
    if local.startswith("on") or _ACTIVE_SCHEME.match(address):
        return False
    return local not in _ADDRESSES or not _DOCUMENT.match(address)
