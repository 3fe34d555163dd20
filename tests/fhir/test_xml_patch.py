"""XML Patch (RFC 5261) on the XML form of a resource."""

from __future__ import annotations

from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from app.errors import BadRequest, Unprocessable
from app.fhir.patch.xml_patch import xml_patch
from tests.builders.patches import diff

PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "p",
    "text": {
        "status": "generated",
        "div": '<div xmlns="http://www.w3.org/1999/xhtml">a<b>b</b>c<i>d</i>e</div>',
    },
    "contained": [{"resourceType": "Organization", "id": "o", "name": "Old"}],
    "identifier": [{"system": "urn:a", "value": "1"}, {"system": "urn:b", "value": "2"}],
    "active": True,
    "name": [{"family": "Ng", "given": ["A", "B"]}],
    "birthDate": "1970-01-01",
}


def patched(operations: str, resource: dict[str, Any] = PATIENT) -> dict[str, Any]:
    before = deepcopy(resource)
    patch = xml_patch(diff(operations))
    result = patch(resource)
    assert resource == before
    assert patch(resource) == result, "a patch may be applied again"
    return result


def with_changes(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (PATIENT | changes).items() if value is not None}


IDENTIFIERS = PATIENT["identifier"]
NEW = {"system": "urn:c"}
NEW_XML = '<f:identifier><f:system value="urn:c"/></f:identifier>'


@pytest.mark.parametrize(
    ("operations", "expected"),
    [
        pytest.param("", PATIENT, id="nothing"),
        pytest.param(
            '<replace sel="f:Patient/f:birthDate/@value">1980</replace>',
            with_changes(birthDate="1980"),
            id="replace-attribute",
        ),
        pytest.param(
            '<replace sel="/f:Patient/f:active"><f:active value="false"/></replace>',
            with_changes(active=False),
            id="replace-element",
        ),
        pytest.param(
            '<replace sel="Patient/active"><active xmlns="http://hl7.org/fhir" value="false"/></replace>',
            with_changes(active=False),
            id="names-without-prefix-are-fhir",
        ),
        pytest.param(
            '<replace sel="*"><f:Patient><f:id value="p"/></f:Patient></replace>',
            {"resourceType": "Patient", "id": "p"},
            id="replace-the-resource",
        ),
        pytest.param('<remove sel="f:Patient/f:active"/>', with_changes(active=None), id="remove"),
        pytest.param(
            '<remove sel="f:Patient/f:identifier[1]" ws="both"/>',
            with_changes(identifier=IDENTIFIERS[1:]),
            id="remove-by-position",
        ),
        pytest.param(
            '<remove sel="f:Patient/f:identifier[last()]"/>',
            with_changes(identifier=IDENTIFIERS[:1]),
            id="remove-last",
        ),
        pytest.param(
            "<remove sel=\"f:Patient/f:identifier[f:system/@value='urn:b']/f:value\"/>",
            with_changes(identifier=[IDENTIFIERS[0], {"system": "urn:b"}]),
            id="remove-by-value",
        ),
        pytest.param(
            '<remove sel="f:Patient/f:identifier[1]"/><remove sel="f:Patient/f:identifier[1]"/>',
            with_changes(identifier=None),
            id="one-after-the-other",
        ),
        pytest.param(
            f'<add sel="f:Patient">{NEW_XML}</add>',
            with_changes(identifier=[*IDENTIFIERS, NEW]),
            id="add-at-the-end",
        ),
        pytest.param(
            '<add sel="f:Patient"><f:gender value="other"/>\n<f:deceasedBoolean value="true"/></add>',
            with_changes(gender="other", deceasedBoolean=True),
            id="add-two",
        ),
        pytest.param(
            f'<add sel="f:Patient" pos="prepend">{NEW_XML}</add>',
            with_changes(identifier=[NEW, *IDENTIFIERS]),
            id="add-at-the-start",
        ),
        pytest.param(
            f'<add sel="f:Patient/f:identifier[2]" pos="before">{NEW_XML}</add>',
            with_changes(identifier=[IDENTIFIERS[0], NEW, IDENTIFIERS[1]]),
            id="add-before",
        ),
        pytest.param(
            f'<add sel="f:Patient/f:identifier[1]" pos="after">{NEW_XML}</add>',
            with_changes(identifier=[IDENTIFIERS[0], NEW, IDENTIFIERS[1]]),
            id="add-after",
        ),
        pytest.param(
            '<add sel="f:Patient/f:birthDate" type="@id">b</add>',
            with_changes(_birthDate={"id": "b"}),
            id="add-attribute",
        ),
        pytest.param(
            '<add sel="f:Patient/f:birthDate"><f:extension url="urn:e"><f:valueDecimal value="1.50"/>'
            "</f:extension></add>",
            with_changes(
                _birthDate={"extension": [{"url": "urn:e", "valueDecimal": Decimal("1.50")}]}
            ),
            id="extension-of-a-primitive",
        ),
        pytest.param(
            '<add sel="f:Patient/f:name/f:given[1]" pos="after"><f:given value="X"/></add>',
            with_changes(name=[{"family": "Ng", "given": ["A", "X", "B"]}]),
            id="list-of-primitives",
        ),
        pytest.param(
            '<replace sel="f:Patient/f:contained/f:Organization/f:name/@value">New</replace>',
            with_changes(contained=[{"resourceType": "Organization", "id": "o", "name": "New"}]),
            id="contained",
        ),
    ],
)
def test_patch(operations: str, expected: dict[str, Any]) -> None:
    assert patched(operations) == expected


@pytest.mark.parametrize(
    ("operations", "inside"),
    [
        pytest.param(
            '<remove sel="f:Patient/f:text/h:div/h:b"/>', "ac<i>d</i>e", id="remove-first"
        ),
        pytest.param(
            '<remove sel="f:Patient/f:text/h:div/h:i"/>', "a<b>b</b>ce", id="remove-second"
        ),
        pytest.param(
            '<replace sel="f:Patient/f:text/h:div/h:b"><h:u>x</h:u></replace>',
            "a<u>x</u>c<i>d</i>e",
            id="replace",
        ),
        pytest.param(
            '<replace sel="f:Patient/f:text/h:div/text()[1]">x</replace>',
            "x<b>b</b>c<i>d</i>e",
            id="replace-text",
        ),
        pytest.param(
            '<remove sel="f:Patient/f:text/h:div/text()[2]"/>',
            "a<b>b</b><i>d</i>e",
            id="remove-text",
        ),
        pytest.param(
            '<add sel="f:Patient/f:text/h:div" pos="prepend"><h:u/></add>',
            "<u/>a<b>b</b>c<i>d</i>e",
            id="prepend",
        ),
        pytest.param(
            '<add sel="f:Patient/f:text/h:div/h:b" pos="after"><h:u/><h:p/></add>',
            "a<b>b</b><u/><p/>c<i>d</i>e",
            id="after",
        ),
        pytest.param(
            '<add sel="f:Patient/f:text/h:div/h:i" pos="before"><h:u/></add>',
            "a<b>b</b>c<u/><i>d</i>e",
            id="before",
        ),
    ],
)
def test_text_in_a_narrative_stays_in_place(operations: str, inside: str) -> None:
    div = patched(operations)["text"]["div"]
    assert div == f'<div xmlns="http://www.w3.org/1999/xhtml">{inside}</div>'


@pytest.mark.parametrize(
    ("operations", "reason"),
    [
        pytest.param(
            '<remove sel="f:Patient/f:gender"/>',
            "f:Patient/f:gender: selects no nodes",
            id="nothing",
        ),
        pytest.param(
            '<remove sel="f:Patient/f:identifier"/>', "selects 2 nodes, not one", id="several"
        ),
        pytest.param('<remove sel="f:Observation/f:code"/>', "selects no nodes", id="other-type"),
        pytest.param('<remove sel="f:Patient"/>', "is the resource itself", id="the-resource"),
        pytest.param(
            "<remove sel=\"f:Patient['x'/f:y]\"/>", "cannot be evaluated", id="type-error"
        ),
        pytest.param('<remove sel="."/>', "does not select anything", id="document"),
        pytest.param(
            '<add sel="f:Patient" pos="after"><f:Patient/></add>',
            "nothing can stand beside",
            id="beside",
        ),
        pytest.param(
            '<add sel="f:Patient/f:id" type="@value">x</add>',
            "has an attribute value",
            id="attribute",
        ),
        pytest.param(
            '<add sel="f:Patient/f:id/@value"><f:x/></add>',
            "is not an element",
            id="add-to-attribute",
        ),
        pytest.param(
            '<replace sel="f:Patient/f:id">x</replace>',
            "one element must replace it",
            id="element-by-text",
        ),
        pytest.param(
            '<replace sel="f:Patient/f:id/@value"><f:id/></replace>',
            "text must replace it",
            id="text-by-element",
        ),
    ],
)
def test_a_selector_that_does_not_fit_is_named(operations: str, reason: str) -> None:
    with pytest.raises(Unprocessable) as refusal:
        patched(operations)
    (issue,) = refusal.value.issues
    assert issue.code == "processing"
    assert reason in issue.diagnostics


@pytest.mark.parametrize(
    ("operations", "path"),
    [
        pytest.param(
            '<add sel="f:Patient"><f:colour value="x"/></add>', "Patient.colour", id="unknown"
        ),
        pytest.param(
            '<add sel="f:Patient"><f:active value="true"/></add>', "Patient.active[1]", id="twice"
        ),
        pytest.param('<remove sel="f:Patient/f:active/@value"/>', "Patient.active", id="empty"),
        pytest.param(
            '<add sel="f:Patient"><active value="true"/></add>',
            "Patient.active[1]",
            id="no-namespace",
        ),
        pytest.param('<replace sel="*"><f:Duck/></replace>', "Duck", id="no-resource"),
    ],
)
def test_a_result_that_is_no_resource_is_unprocessable(operations: str, path: str) -> None:
    with pytest.raises(Unprocessable) as refusal:
        patched(operations)
    assert [issue.expression for issue in refusal.value.issues] == [(path,)]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"<diff>", "Malformed XML", id="xml"),
        pytest.param(
            b'<!DOCTYPE diff [<!ENTITY x "y">]><diff>&x;</diff>', "DOCTYPE", id="document-type"
        ),
        pytest.param(b"<patch/>", "is a diff element", id="root"),
        pytest.param(diff('<move sel="*"/>'), "move is not an operation", id="operation"),
        pytest.param(diff("<remove/>"), "sel must have 1 to 1000", id="no-sel"),
        pytest.param(
            diff(f'<remove sel="{"a" * 1001}"/>'), "sel must have 1 to 1000", id="long-sel"
        ),
        pytest.param(
            diff('<remove sel="f:a" pos="after"/>'), "remove has no attribute pos", id="attribute"
        ),
        pytest.param(
            diff('<remove sel="f:a">x</remove>'), "remove has no content", id="remove-content"
        ),
        pytest.param(diff('<add sel="f:a" pos="first"><f:b/></add>'), "pos must be", id="pos"),
        pytest.param(diff('<add sel="f:a" type="namespace::x">u</add>'), "type must be", id="type"),
        pytest.param(
            diff('<add sel="f:a" type="@x" pos="after">u</add>'), "type must be", id="type-and-pos"
        ),
        pytest.param(diff('<add sel="f:a">text</add>'), "add needs elements", id="add-text"),
        pytest.param(
            diff('<add sel="f:a" type="@x"><f:b/></add>'),
            "add needs elements",
            id="attribute-element",
        ),
        pytest.param(diff('<add sel="f:a">x<f:b/></add>'), "text beside elements", id="mixed"),
        pytest.param(diff('<remove sel="//f:a"/>'), "from character 1", id="anywhere"),
        pytest.param(diff('<remove sel="f:a/../f:b"/>'), "from character 5", id="parent"),
        pytest.param(diff('<remove sel="f:a/ancestor::f:b"/>'), "from character", id="axis"),
        pytest.param(
            diff("<remove sel=\"document('file:///etc/passwd')\"/>"),
            "from character",
            id="function",
        ),
        pytest.param(diff('<remove sel="f:a|f:b"/>'), "from character 4", id="union"),
        pytest.param(diff('<remove sel="x:a"/>'), "the undeclared prefix x", id="prefix"),
        pytest.param(
            diff('<remove sel="f:a/@x:b"/>'), "the undeclared prefix x", id="attribute-prefix"
        ),
        pytest.param(diff('<remove sel="f:a["/>'), "sel is not a path", id="syntax"),
        pytest.param(diff('<remove sel="/"/>'), "sel is not a path", id="root-path"),
        pytest.param(diff("<remove sel=\"f:a = 'x'\"/>"), "sel is not a path", id="comparison"),
    ],
)
def test_what_is_no_diff_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        xml_patch(body)
    (issue,) = refusal.value.issues
    assert issue.code == "structure"
    assert reason in issue.diagnostics
