"""XML Patch (RFC 5261): changes to the XML form of a resource.

https://hl7.org/fhir/R4/http.html#patch and https://www.rfc-editor.org/rfc/rfc5261
Selectors are RFC 5261's restricted XPath, and beside it predicates on an attribute further down, because FHIR keeps its
values there: `f:identifier[f:system/@value='urn:x']`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

from lxml import etree

from app.errors import BadRequest, FhirError, Unprocessable
from app.fhir.json import Resource
from app.fhir.patch.json_patch import Patch
from app.fhir.xml import FHIR, encode, from_element, parse

XML_PATCH = "application/xml-patch+xml"

MAX_SELECTOR = 1000

_NAME = r"[^\W\d][\w.\-]*"
_TOKEN = re.compile(
    rf"(?P<space>\s+)|(?P<literal>'[^']*'|\"[^\"]*\")|(?P<number>[1-9][0-9]{{0,5}})"
    rf"|(?P<function>(?:text|last)\(\))|(?P<attribute>@(?:{_NAME}:)?{_NAME})|(?P<and>and(?=\s))"
    rf"|(?P<name>(?:{_NAME}:)?(?:{_NAME}|\*)|\*)|(?P<symbol>/(?!/)|\.(?!\.)|[\[\]=])"
)
_ATTRIBUTE = re.compile(rf"@({_NAME})")

Apply = Callable[["XmlPatchOperation", etree._Element], None]


@dataclass(frozen=True, slots=True)
class XmlPatchOperation:
    """One operation of the diff: what it selects, and what it puts there."""

    apply: Apply
    selector: str
    select: etree.XPath
    elements: tuple[etree._Element, ...]
    text: str
    pos: str | None
    attribute: str | None


def xml_patch(body: bytes) -> Patch:
    """RFC 5261. Raises BadRequest for what is no diff; applying raises Unprocessable naming the selector."""
    root = parse(body)
    if etree.QName(root).localname != "diff":
        raise _malformed("An XML Patch is a diff element")
    operations = [_operation(node) for node in root if isinstance(node.tag, str)]

    def apply(resource: Resource) -> Resource:
        # A document around the resource, so that its root can be replaced as any other element.
        document = etree.Element("document")
        document.append(parse(encode(resource)))
        for operation in operations:
            operation.apply(operation, document)
        try:
            return from_element(_root_of(document))
        except BadRequest as error:
            raise Unprocessable(issues=error.issues) from None

    return apply


def _root_of(document: etree._Element) -> etree._Element:
    # Serialised once more: a root of its own, whose location says nothing of the document around it.
    return parse(etree.tostring(document[0]))


# --- reading the diff


def _operation(node: etree._Element) -> XmlPatchOperation:
    name = etree.QName(node).localname
    if name not in _OPERATIONS:
        raise _malformed(f"{name[:64]} is not an operation: add, replace or remove", node)
    allowed = {"add": {"sel", "pos", "type"}, "remove": {"sel", "ws"}}.get(name, {"sel"})
    attributes = cast("dict[str, str]", dict(node.items()))
    unknown = sorted(attributes.keys() - allowed)
    if unknown:
        raise _malformed(f"{name} has no attribute {unknown[0][:64]}", node)
    selector = attributes.get("sel", "").strip()
    pos, kind = attributes.get("pos"), attributes.get("type")
    if pos not in (None, "prepend", "before", "after"):
        raise _malformed("pos must be prepend, before or after", node)
    attribute = _ATTRIBUTE.fullmatch(kind) if kind is not None else None
    if kind is not None and (attribute is None or pos is not None):
        raise _malformed("type must be an attribute (@value), without pos", node)
    elements, text = _content(node)
    if name == "remove" and (elements or text.strip()):
        raise _malformed("remove has no content", node)
    if name == "add" and bool(elements) is (attribute is not None):
        raise _malformed("add needs elements, or with a type the text of an attribute", node)
    return XmlPatchOperation(
        _OPERATIONS[name],
        selector,
        _compile(selector, node),
        elements,
        text,
        pos,
        attribute[1] if attribute else None,
    )


def _content(node: etree._Element) -> tuple[tuple[etree._Element, ...], str]:
    """Elements, or text; both at once would only make sense inside a narrative and is refused."""
    elements = tuple(child for child in node if isinstance(child.tag, str))
    text = node.text or ""
    between = "".join(child.tail or "" for child in node)
    if elements and (text + between).strip():
        raise _malformed("text beside elements cannot be patched in", node)
    return elements, text + between


def _compile(selector: str, node: etree._Element) -> etree.XPath:
    """The selector as XPath from the document's root; a name without a prefix is in the default namespace."""
    if not selector or len(selector) > MAX_SELECTOR:
        raise _malformed(f"sel must have 1 to {MAX_SELECTOR} characters", node)
    uris = {prefix: uri for prefix, uri in node.nsmap.items() if prefix}
    uris["default"] = node.nsmap.get(None) or FHIR
    path = ["" if selector.startswith("/") else "/"]
    position = 0
    while position < len(selector):
        token = _TOKEN.match(selector, position)
        if token is None:
            raise _malformed(f"sel cannot be read from character {position + 1}", node)
        text = token[0]
        prefix, colon, _ = text.lstrip("@").rpartition(":")
        if token.lastgroup == "name" and not colon and text != "*":
            text = f"default:{text}"
        elif token.lastgroup in ("name", "attribute") and colon and prefix not in uris:
            raise _malformed(f"sel has the undeclared prefix {prefix[:64]}", node)
        path.append(text)
        position = token.end()
    try:
        # The leading dot makes it relative to the document that stands around the resource.
        select = etree.XPath(f".{''.join(path)}", namespaces=uris, regexp=False)
        is_path = isinstance(select(etree.Element("document")), list)
    except etree.XPathError:
        is_path = False
    if not is_path:
        raise _malformed("sel is not a path", node)
    return select


def _malformed(reason: str, node: etree._Element | None = None) -> BadRequest:
    place = f" (line {node.sourceline})" if node is not None else ""
    return BadRequest(f"{reason}{place}", code="structure")


# --- applying it


def _select(operation: XmlPatchOperation, document: etree._Element) -> Any:
    try:
        found: Any = operation.select(document)
    except etree.XPathError:
        raise _unfit(operation, "cannot be evaluated") from None
    if len(found) != 1:
        raise _unfit(operation, f"selects {len(found) or 'no'} nodes, not one")
    if found[0] is document:
        raise _unfit(operation, "does not select anything in the resource")
    return found[0]


def _unfit(operation: XmlPatchOperation, reason: str) -> FhirError:
    # No expression: that would have to be FHIRPath.
    return Unprocessable(f"{operation.selector}: {reason}")


def _add(operation: XmlPatchOperation, document: etree._Element) -> None:
    target = _select(operation, document)
    if not isinstance(target, etree._Element):
        raise _unfit(operation, "is not an element that something can be added to")
    if operation.attribute is not None:
        if operation.attribute in target.attrib:
            raise _unfit(operation, f"has an attribute {operation.attribute} already")
        target.set(operation.attribute, operation.text)
        return
    if operation.pos in ("before", "after"):
        _add_beside(operation, target)
        return
    if operation.pos == "prepend":
        for index, element in enumerate(_copies(operation)):
            target.insert(index, element)
        if len(target) and target.text:
            target[len(operation.elements) - 1].tail, target.text = target.text, None
        return
    target.extend(_copies(operation))


def _add_beside(operation: XmlPatchOperation, target: etree._Element) -> None:
    parent = target.getparent()
    if parent is None or parent.getparent() is None:
        raise _unfit(operation, "is the resource: nothing can stand beside it")
    index = parent.index(target)
    if operation.pos == "after":
        index += 1
    copies = _copies(operation)
    if operation.pos == "after":
        copies[-1].tail, target.tail = target.tail, None
    parent[index:index] = copies


def _replace(operation: XmlPatchOperation, document: etree._Element) -> None:
    target = _select(operation, document)
    if isinstance(target, etree._Element):
        if len(operation.elements) != 1:
            raise _unfit(operation, "is an element: one element must replace it")
        (element,) = _copies(operation)
        element.tail = target.tail
        _parent(target).replace(target, element)
    elif operation.elements:
        raise _unfit(operation, "is not an element: text must replace it")
    else:
        _set_text(target, operation.text)


def _remove(operation: XmlPatchOperation, document: etree._Element) -> None:
    target = _select(operation, document)
    if not isinstance(target, etree._Element):
        _set_text(target, None)
        return
    parent = _parent(target)
    if parent.getparent() is None:
        raise _unfit(operation, "is the resource itself")
    # lxml takes the text that follows away with the element.
    before = target.getprevious()
    if target.tail and before is not None:
        before.tail = (before.tail or "") + target.tail
    elif target.tail:
        parent.text = (parent.text or "") + target.tail
    parent.remove(target)


def _set_text(target: Any, text: str | None) -> None:
    """Write or remove an attribute or a text node, which lxml gives as a string that knows its parent."""
    parent = target.getparent()
    if target.is_attribute:
        if text is None:
            del parent.attrib[target.attrname]
        else:
            parent.set(target.attrname, text)
    elif target.is_tail:
        parent.tail = text
    else:
        parent.text = text


def _copies(operation: XmlPatchOperation) -> list[etree._Element]:
    """The content anew each time: a patch may be applied more than once."""
    copies = [deepcopy(element) for element in operation.elements]
    for copy in copies:
        copy.tail = None
    return copies


def _parent(target: etree._Element) -> etree._Element:
    return cast("etree._Element", target.getparent())


_OPERATIONS: dict[str, Apply] = {"add": _add, "replace": _replace, "remove": _remove}
