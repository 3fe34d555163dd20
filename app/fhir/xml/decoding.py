"""XML to a resource.

https://hl7.org/fhir/R4/xml.html
The order of the elements is not demanded: it carries nothing that JSON could keep, and an XML Patch that appends an
element would otherwise fail.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import Any, cast

from lxml import etree

from app.errors import BadRequest
from app.fhir.element_definitions import RESOURCE_TYPES, Field, is_attribute, layout
from app.fhir.json import MAX_DEPTH, Resource

_XSI = "{http://www.w3.org/2001/XMLSchema-instance}"
_SHOWN = 64

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)").fullmatch
_POSITIVE = re.compile(r"\+?[1-9][0-9]*").fullmatch
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
# Python refuses to read integers of thousands of digits; validation allows far fewer.
_MAX_DIGITS = 400


def decode(body: bytes) -> Resource:
    """The resource in an XML body, as its JSON would be decoded.

    Raises BadRequest(code="structure") naming the element where it is malformed, has an element, attribute or text
    that R4 does not define there, repeats what may occur once, or is empty or nested deeper than
    `fhir_json.MAX_DEPTH` in JSON. A value of the wrong form stays a string, which validation then names.
    """
    return from_element(parse(body))


def from_element(root: etree._Element) -> Resource:
    """The resource of a parsed element; errors as `decode`."""
    return _resource(root, 1)


@cache
def _tags(path: str) -> dict[str, Field]:
    """The fields of a layout by qualified name; attributes are not among them."""
    of = layout(path)
    return {
        f"{{{XHTML if field.type_name == 'xhtml' else FHIR}}}{key}": field
        for key, field in of.fields.items()
        if not is_attribute(of, key)
    }


@cache
def _attributes(path: str) -> frozenset[str]:
    of = layout(path)
    return frozenset(key for key in of.fields if is_attribute(of, key))


def _resource(node: etree._Element, depth: int) -> Resource:
    name = etree.QName(node)
    if name.namespace != FHIR:
        raise _refused(node, f"must be in the namespace {FHIR}")
    resource_type = name.localname
    if resource_type not in RESOURCE_TYPES:
        raise _refused(node, "is not an R4 resource type")
    for attribute, _ in _attribute_items(node):
        # A schema's address is a hint for editors.
        if not attribute.startswith(_XSI):
            raise _refused(node, f"has no attribute {_short(attribute)}")
    return {"resourceType": resource_type, **_children(node, resource_type, depth)}


def _object(node: etree._Element, path: str, depth: int, *, is_primitive: bool = False) -> Resource:
    """The id, extensions and children of an element; a primitive's value is left to the caller."""
    found: Resource = {}
    for name, value in _attribute_items(node):
        if name in _attributes(path):
            found[name] = value
        elif not (is_primitive and name == "value"):
            raise _refused(node, f"has no attribute {_short(name)}")
    found.update(_children(node, path, depth))
    return found


def _children(node: etree._Element, path: str, depth: int) -> Resource:
    _check_depth(depth)
    _check_no_text(node, node.text)
    tags = _tags(path)
    found: Resource = {}
    for child in node:
        _check_no_text(node, child.tail)
        tag = child.tag
        field = tags.get(tag) if type(tag) is str else None
        if field is None:
            if isinstance(child, etree._Comment | etree._ProcessingInstruction):
                continue
            raise _unknown(child, path)
        inner = depth + 2 if field.is_list else depth + 1
        if field.kind == "primitive":
            _add_primitive(found, field, child, inner)
        else:
            _add(found, field, child, _content(child, field, inner))
    return found


def _content(node: etree._Element, field: Field, depth: int) -> Resource:
    if field.kind == "complex":
        found = _object(node, field.path, depth)
        if not found:
            raise _refused(node, "must not be empty")
        return found
    _check_no_text(node, node.text)
    inside = [child for child in node if isinstance(child.tag, str)]
    if len(inside) != 1 or node.attrib:
        raise _refused(node, "must hold exactly one resource")
    _check_no_text(node, inside[0].tail)
    return _resource(inside[0], depth)


def _add(found: Resource, field: Field, node: etree._Element, value: Any) -> None:
    if field.is_list:
        found.setdefault(field.key, []).append(value)
    elif field.key in found:
        raise _refused(node, "must not occur twice")
    else:
        found[field.key] = value


def _add_primitive(found: Resource, field: Field, node: etree._Element, depth: int) -> None:
    """A primitive's value, and under `_` its id and extensions.

    Of one that repeats, the lists of both stay aligned. A value that is missing is a null there, also where all are.
    """
    if field.type_name == "xhtml":
        _add(found, field, node, _div(node))
        return
    text = node.get("value")
    extra = None
    if text is None or len(node.attrib) > 1 or len(node) or node.text:
        extra = _object(node, "Element", depth, is_primitive=True) or None
        if text is None and extra is None:
            raise _refused(node, "must not be empty")
    value = None if text is None else _value(text, field.type_name)
    key, beside = field.key, f"_{field.key}"
    if not field.is_list:
        if key in found or beside in found:
            raise _refused(node, "must not occur twice")
        if value is not None:
            found[key] = value
        if extra is not None:
            found[beside] = extra
        return
    values = found.setdefault(key, [])
    if beside in found or extra is not None:
        found.setdefault(beside, [None] * len(values)).append(extra)
    values.append(value)


def _value(text: str, type_name: str) -> Any:
    """The JSON value of an attribute, or the text itself where it has not the form of its type."""
    if type_name == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if type_name == "decimal" and len(text) <= _MAX_DIGITS and _DECIMAL(text):
        return int(text) if _INTEGER(text) else Decimal(text)
    if type_name in ("integer", "unsignedInt") and len(text) <= _MAX_DIGITS and _INTEGER(text):
        return int(text)
    if type_name == "positiveInt" and len(text) <= _MAX_DIGITS and _POSITIVE(text):
        return int(text)
    return text


def _div(node: etree._Element) -> str:
    """A narrative as JSON has it: the div's own text, with XHTML as its default namespace."""
    copy = etree.Element(node.tag, nsmap={None: XHTML})  # type: ignore[dict-item]  # None is the default
    _copy_inside(node, copy)
    return etree.tostring(copy, encoding="unicode")


def _copy_inside(source: etree._Element, target: etree._Element, depth: int = 1) -> None:
    """Attributes, text and children again, so that no prefix or declaration from outside comes along."""
    _check_depth(depth)
    target.attrib.update(source.attrib)
    target.text = source.text
    for child in source:
        if isinstance(child.tag, str):
            copy = etree.SubElement(target, child.tag)
            _copy_inside(child, copy, depth + 1)
        elif isinstance(child, etree._Comment):
            copy = etree.Comment(child.text)
            target.append(copy)
        else:
            raise _refused(source, "must not have processing instructions")
        copy.tail = child.tail


def _attribute_items(node: etree._Element) -> list[tuple[str, str]]:
    return cast("list[tuple[str, str]]", node.items())  # a parsed document has no bytes


def _check_depth(depth: int) -> None:
    if depth > MAX_DEPTH:
        raise BadRequest(f"Nested deeper than {MAX_DEPTH} levels", code="structure")


def _check_no_text(node: etree._Element, text: str | None) -> None:
    if text and text.strip():
        raise _refused(node, "must not have text: a value stands in the attribute value")


def _unknown(node: etree._Element, path: str) -> BadRequest:
    name = etree.QName(node)
    wanted = XHTML if path == "Narrative" and name.localname == "div" else FHIR
    if name.namespace != wanted:
        return _refused(node, f"must be in the namespace {wanted}")
    return _refused(node, f"is not an element of {path}")


def _refused(node: etree._Element, reason: str, code: str = "structure") -> BadRequest:
    location = _location(node)
    return BadRequest(
        f"{location} (line {node.sourceline}): {reason}", code=code, expression=location
    )


def _location(node: etree._Element) -> str:
    """The FHIRPath of an element: contained and entry resources are named by the element around them."""
    steps: list[str] = []
    here: etree._Element | None = node
    while here is not None:
        parent = here.getparent()
        name = _short(etree.QName(here).localname)
        if parent is None:
            steps.append(name)
        elif name not in RESOURCE_TYPES:
            before = sum(1 for _ in here.itersiblings(here.tag, preceding=True))
            repeats = before or next(here.itersiblings(here.tag), None) is not None
            steps.append(f"{name}[{before}]" if repeats else name)
        here = parent
    return ".".join(reversed(steps))


def _short(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."


# XML text to elements, without anything that XML could fetch or expand.
#
# https://hl7.org/fhir/R4/security.html#narrative and https://hl7.org/fhir/R4/xml.html

FHIR = "http://hl7.org/fhir"
XHTML = "http://www.w3.org/1999/xhtml"

# FHIR has at most two on an element, XHTML some more; lxml takes the square of their number to list them.
MAX_ATTRIBUTES = 100

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What a text of libxml2 has at most, in bytes, unless it is told to take more: the content of a large Binary is longer.
# Nesting is bounded then as well, by more than decoding lets pass.
_PARSERS_LONGEST = 10_000_000
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
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=len(body) > _PARSERS_LONGEST,
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
