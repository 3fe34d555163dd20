"""A resource to XML.

https://hl7.org/fhir/R4/xml.html
"""

from __future__ import annotations

import re
from html.entities import name2codepoint
from typing import Any

from app.errors import BadRequest
from app.fhir.element_definitions import RESOURCE_TYPES, Field, Layout, is_attribute, layout
from app.fhir.json import Resource
from app.fhir.xml.decoding import FHIR, XHTML, parse

# What an attribute must not hold as it is. XML 1.0 has no way at all to write the other control characters.
_SPECIAL = re.compile('[&<>"\x00-\x1f\ufffe\uffff]').search
_ESCAPES = str.maketrans(
    {chr(code): "\ufffd" for code in (*range(0x20), 0xFFFE, 0xFFFF)}
    | {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;"}
    | {"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
)
_ENTITY = re.compile(r"&([A-Za-z][A-Za-z0-9]*);")
_XML_ENTITIES = frozenset(("amp", "lt", "gt", "quot", "apos"))


def encode(resource: Resource, *, pretty: bool = False) -> bytes:
    """The XML text of a valid resource; `pretty` puts every element on a line of its own.

    Decimals keep their digits. Control characters that XML cannot hold become U+FFFD. Raises ValueError for what
    validation would refuse: an unknown element or resource type, or a narrative that is not XHTML.
    """
    out = ['<?xml version="1.0" encoding="UTF-8"?>']
    _write_resource(resource, out, "\n" if pretty else "", f' xmlns="{FHIR}"')
    return "".join(out).encode()


def _write_resource(resource: Resource, out: list[str], margin: str, attributes: str) -> None:
    resource_type = resource.get("resourceType")
    if resource_type not in RESOURCE_TYPES:
        raise ValueError(f"{resource_type!r} is not a resource type")
    out.append(f"{margin}<{resource_type}{attributes}>")
    _write_children(resource, layout(resource_type), out, margin)
    out.append(f"{margin}</{resource_type}>")


def _write_children(value: Resource, of: Layout, out: list[str], margin: str) -> None:
    fields, present = of.fields, set()
    for key in value:
        field = fields.get(key) or (fields.get(key[1:]) if key[0] == "_" else None)
        if field is not None:
            present.add(field)
        elif not (key == "resourceType" and of.is_resource):
            raise ValueError(f"{key!r} is not an element of {of.path}")
    inner = f"{margin}  " if margin else ""
    for field in sorted(present, key=_rank):
        if not is_attribute(of, field.key):
            _write_field(value, field, out, inner)


def _rank(field: Field) -> int:
    return field.rank


def _write_field(value: Resource, field: Field, out: list[str], margin: str) -> None:
    item: Any = value.get(field.key)
    if field.kind != "primitive":
        for each in item if field.is_list else (item,):
            _write_object(each, field, out, margin)
        return
    extra = value.get(f"_{field.key}")
    if not field.is_list:
        _write_primitive(item, extra, field, (out, margin))
        return
    items, extras = item or (), extra or ()
    for index in range(max(len(items), len(extras))):
        each = items[index] if index < len(items) else None
        beside = extras[index] if index < len(extras) else None
        _write_primitive(each, beside, field, (out, margin))


def _write_object(value: Resource, field: Field, out: list[str], margin: str) -> None:
    if field.kind == "resource":
        out.append(f"{margin}<{field.key}>")
        _write_resource(value, out, f"{margin}  " if margin else "", "")
        out.append(f"{margin}</{field.key}>")
        return
    _write_element(field.key, "", value, (layout(field.path), out, margin))


def _write_element(
    key: str, attributes: str, value: Resource, to: tuple[Layout, list[str], str]
) -> None:
    of, out, margin = to
    for name in ("id", "url"):
        if name in value and is_attribute(of, name):
            attributes += f' {name}="{_escape(value[name])}"'
    start = len(out)
    out.append(f"{margin}<{key}{attributes}>")
    _write_children(value, of, out, margin)
    if len(out) == start + 1:
        out[start] = f"{margin}<{key}{attributes}/>"
    else:
        out.append(f"{margin}</{key}>")


def _write_primitive(
    value: Any, extra: Resource | None, field: Field, to: tuple[list[str], str]
) -> None:
    out, margin = to
    if field.type_name == "xhtml":
        out.append(margin + _xhtml(value))
        return
    attribute = "" if value is None else f' value="{_text(value)}"'
    if extra is None:
        out.append(f"{margin}<{field.key}{attribute}/>")
    else:
        _write_element(field.key, attribute, extra, (layout("Element"), out, margin))


def _text(value: Any) -> str:
    if type(value) is str:
        return _escape(value)
    if type(value) is bool:
        return "true" if value else "false"
    return str(value)


def _escape(text: str) -> str:
    return text.translate(_ESCAPES) if _SPECIAL(text) else text


def _xhtml(div: str) -> str:
    """A narrative's text as it can stand in the document."""
    text = div.strip()
    try:
        root = parse(text.encode())
    except BadRequest:
        # Validation lets HTML's named characters pass.
        text = _ENTITY.sub(_character, text)
        try:
            root = parse(text.encode())
        except BadRequest as error:
            raise ValueError(f"a narrative is not XML: {error}") from None
    if root.tag == "div":
        return text.replace("<div", f'<div xmlns="{XHTML}"', 1)
    return text


def _character(match: re.Match[str]) -> str:
    name = match[1]
    if name in _XML_ENTITIES or name not in name2codepoint:
        return match[0]
    return chr(name2codepoint[name])
