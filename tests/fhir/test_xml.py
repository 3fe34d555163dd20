"""FHIR's XML: what comes in equals its JSON, what is not FHIR is refused with its place."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from lxml import etree

from app.errors import BadRequest, Issue, operation_outcome
from app.fhir import json as fhir_json, xml as fhir_xml
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.validation import check
from tests.shared_data import SHARED, with_nulls

R4_EXAMPLES = SHARED / "data" / "r4-examples"
DIV = '<div xmlns="http://www.w3.org/1999/xhtml">'


def xml(inside: str, resource_type: str = "Patient") -> bytes:
    return f'<{resource_type} xmlns="http://hl7.org/fhir">{inside}</{resource_type}>'.encode()


def decode(inside: str, resource_type: str = "Patient") -> dict[str, Any]:
    resource = fhir_xml.decode(xml(inside, resource_type))
    assert resource.pop("resourceType") == resource_type
    return resource


def encode(**elements: Any) -> str:
    """The inside of a Patient's XML."""
    text = fhir_xml.encode({"resourceType": "Patient", **elements}).decode()
    start, end = (
        '<?xml version="1.0" encoding="UTF-8"?><Patient xmlns="http://hl7.org/fhir">',
        "</Patient>",
    )
    assert text.startswith(start)
    assert text.endswith(end)
    return text[len(start) : -len(end)]


def canonical(div: str) -> str:
    return str(etree.canonicalize(div, with_comments=True))


def spelled(value: Any, key: str = "") -> Any:
    """A value with its numbers as text and its narratives as canonical XML, for a comparison of every digit."""
    if isinstance(value, dict):
        return {name: spelled(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [spelled(each) for each in value]
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return f"number {value}"
    return canonical(value) if key == "div" else value


@pytest.mark.slow
@pytest.mark.skipif(not R4_EXAMPLES.is_dir(), reason="the official examples are not here")
def test_every_official_example_keeps_its_values() -> None:
    names = [
        path
        for path in sorted(R4_EXAMPLES.glob("*.json"))
        if path.name.partition("-")[0] in SUPPORTED_TYPES
    ]
    assert len(names) > 720
    for number, path in enumerate(names):
        resource = fhir_json.decode(path.read_bytes())
        again = fhir_xml.decode(fhir_xml.encode(resource, pretty=number % 10 == 0))
        assert spelled(again) == spelled(with_nulls(resource)), path.name


def test_own_examples_come_back_valid() -> None:
    paths = sorted((Path(__file__).parents[2] / "examples").rglob("*.json"))
    resources = [fhir_json.decode(path.read_bytes()) for path in paths]
    for resource in (each for each in resources if each.get("resourceType") in SUPPORTED_TYPES):
        again = fhir_xml.decode(fhir_xml.encode(resource))
        assert spelled(again) == spelled(resource)
        assert not [issue for issue in check(again) if issue.severity == "error"]


@pytest.mark.parametrize(
    ("inside", "resource_type", "expected"),
    [
        pytest.param('<active value="true"/>', "Patient", {"active": True}, id="boolean"),
        pytest.param(
            '<multipleBirthInteger value="2"/>', "Patient", {"multipleBirthInteger": 2}, id="choice"
        ),
        pytest.param('<id value="a"/>', "Patient", {"id": "a"}, id="resource-id-is-an-element"),
        pytest.param(
            '<name id="n"><family value="X"/></name>',
            "Patient",
            {"name": [{"id": "n", "family": "X"}]},
            id="element-id-is-an-attribute",
        ),
        pytest.param(
            '<extension url="http://e"><valueCode value="c"/></extension>',
            "Patient",
            {"extension": [{"url": "http://e", "valueCode": "c"}]},
            id="extension-url-is-an-attribute",
        ),
        pytest.param(
            '<birthDate id="b" value="1970">'
            '<extension url="http://e"><valueInteger value="1"/></extension></birthDate>',
            "Patient",
            {
                "birthDate": "1970",
                "_birthDate": {"id": "b", "extension": [{"url": "http://e", "valueInteger": 1}]},
            },
            id="primitive-with-id-and-extension",
        ),
        pytest.param(
            '<birthDate><extension url="http://e"><valueCode value="c"/></extension></birthDate>',
            "Patient",
            {"_birthDate": {"extension": [{"url": "http://e", "valueCode": "c"}]}},
            id="primitive-without-value",
        ),
        pytest.param(
            '<name><given value="A"/><given id="x" value="B"/><given id="y"/></name>',
            "Patient",
            {"name": [{"given": ["A", "B", None], "_given": [None, {"id": "x"}, {"id": "y"}]}]},
            id="lists-of-primitives-are-aligned",
        ),
        pytest.param(
            '<name><given id="x"/><given id="y"/></name>',
            "Patient",
            {"name": [{"given": [None, None], "_given": [{"id": "x"}, {"id": "y"}]}]},
            id="a-list-of-primitives-without-any-value",
        ),
        pytest.param(
            '<contained><Organization><id value="o"/></Organization></contained>',
            "Patient",
            {"contained": [{"resourceType": "Organization", "id": "o"}]},
            id="contained",
        ),
        pytest.param(
            '<entry><resource><Patient><active value="false"/></Patient></resource></entry>',
            "Bundle",
            {"entry": [{"resource": {"resourceType": "Patient", "active": False}}]},
            id="bundle-entry",
        ),
        pytest.param(
            '<item><linkId value="1"/><item><linkId value="2"/></item></item>',
            "Questionnaire",
            {"item": [{"linkId": "1", "item": [{"linkId": "2"}]}]},
            id="content-reference",
        ),
        pytest.param(
            '<!-- c --><?p i?><active value="true"/><!-- d -->',
            "Patient",
            {"active": True},
            id="comments",
        ),
        pytest.param(
            '<gender value="male"/><active value="true"/>',
            "Patient",
            {"gender": "male", "active": True},
            id="any-order",
        ),
        pytest.param(
            '<maritalStatus><text value="a&#10;b &amp; &lt;c&gt; é"/></maritalStatus>',
            "Patient",
            {"maritalStatus": {"text": "a\nb & <c> é"}},
            id="escapes",
        ),
    ],
)
def test_decode(inside: str, resource_type: str, expected: dict[str, Any]) -> None:
    assert decode(inside, resource_type) == expected
    again = fhir_xml.decode(fhir_xml.encode({"resourceType": resource_type, **expected}))
    assert again == {"resourceType": resource_type, **expected}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("1.50", Decimal("1.50"), id="zero-kept"),
        pytest.param("100", 100, id="integer"),
        pytest.param("1.00e2", Decimal("1.00e2"), id="exponent"),
        pytest.param("-0.0", Decimal("-0.0"), id="negative-zero"),
        pytest.param("0.000000000000000000000000000001", Decimal("1E-30"), id="small"),
        pytest.param("1,5", "1,5", id="comma-stays-text"),
        pytest.param("NaN", "NaN", id="nan-stays-text"),
        pytest.param("007", "007", id="leading-zeros-stay-text"),
        pytest.param("1" * 5000, "1" * 5000, id="too-long-stays-text"),
        pytest.param("\u0661", "\u0661", id="other-digits-stay-text"),
    ],
)
def test_decimals_keep_their_digits(text: str, expected: Any) -> None:
    found = decode(f'<valueQuantity><value value="{text}"/></valueQuantity>', "Observation")
    value = found["valueQuantity"]["value"]
    assert (type(value), str(value)) == (type(expected), str(expected))


@pytest.mark.parametrize(
    ("inside", "path"),
    [
        pytest.param('<active value="yes"/>', "Patient.active", id="boolean"),
        pytest.param('<multipleBirthInteger value="1.0"/>', "Patient.multipleBirth", id="integer"),
        pytest.param('<birthDate value="1.1.1970"/>', "Patient.birthDate", id="date"),
        pytest.param('<gender value=""/>', "Patient.gender", id="empty"),
        pytest.param('<name id="n"/>', "Patient.name[0]", id="only-an-id"),
    ],
)
def test_values_of_the_wrong_form_are_left_to_validation(inside: str, path: str) -> None:
    issues = check(fhir_xml.decode(xml(inside)))
    assert [issue.expression for issue in issues if issue.severity == "error"] == [(path,)]


def refused(body: bytes) -> Issue:
    with pytest.raises(BadRequest) as refusal:
        fhir_xml.decode(body)
    (issue,) = refusal.value.issues
    return issue


@pytest.mark.parametrize(
    ("inside", "path", "reason"),
    [
        pytest.param(
            '<colour value="x"/>', "Patient.colour", "is not an element of Patient", id="unknown"
        ),
        pytest.param(
            '<name><x/></name><name><given value="a"/><nick value="x"/></name>',
            "Patient.name[0].x",
            "is not an element of HumanName",
            id="unknown-in-a-list",
        ),
        pytest.param(
            '<contact><nick value="x"/></contact>',
            "Patient.contact.nick",
            "is not an element of Patient.contact",
            id="unknown-in-a-backbone",
        ),
        pytest.param(
            "<contained><Organization><x/></Organization></contained>",
            "Patient.contained.x",
            "is not an element of Organization",
            id="unknown-in-a-contained-resource",
        ),
        pytest.param(
            '<valueString value="x"/>',
            "Patient.valueString",
            "is not an element",
            id="wrong-choice",
        ),
        pytest.param(
            '<_active id="x"/>', "Patient._active", "is not an element", id="json-spelling"
        ),
        pytest.param(
            '<active xmlns="" value="true"/>',
            "Patient.active",
            "must be in the namespace",
            id="no-namespace",
        ),
        pytest.param(
            '<active xmlns="http://hl7.org/fhir/v3" value="true"/>',
            "Patient.active",
            "must be in the namespace http://hl7.org/fhir",
            id="wrong-namespace",
        ),
        pytest.param(
            '<text><status value="empty"/><div>x</div></text>',
            "Patient.text.div",
            "must be in the namespace http://www.w3.org/1999/xhtml",
            id="narrative-not-xhtml",
        ),
        pytest.param(
            f"<text>{DIV}<?run x?></div></text>",
            "Patient.text.div",
            "instructions",
            id="narrative-instruction",
        ),
        pytest.param(
            '<active value="true" use="x"/>',
            "Patient.active",
            "has no attribute use",
            id="attribute",
        ),
        pytest.param(
            '<name value="x"/>', "Patient.name", "has no attribute value", id="value-of-complex"
        ),
        pytest.param(
            '<active url="x" value="true"/>', "Patient.active", "has no attribute url", id="url"
        ),
        pytest.param("<active>true</active>", "Patient.active", "must not have text", id="text"),
        pytest.param(
            '<active value="true"/>true', "Patient", "must not have text", id="text-between"
        ),
        pytest.param("<active/>", "Patient.active", "must not be empty", id="empty-primitive"),
        pytest.param(
            "<maritalStatus/>", "Patient.maritalStatus", "must not be empty", id="empty-complex"
        ),
        pytest.param(
            '<active value="true"/><active value="false"/>',
            "Patient.active[1]",
            "must not occur twice",
            id="repeated-primitive",
        ),
        pytest.param(
            '<maritalStatus id="a"/><maritalStatus id="b"/>',
            "Patient.maritalStatus[1]",
            "must not occur twice",
            id="repeated-complex",
        ),
        pytest.param(
            "<contained/>", "Patient.contained", "exactly one resource", id="contained-nothing"
        ),
        pytest.param(
            "<contained><Patient/><Patient/></contained>",
            "Patient.contained",
            "exactly one resource",
            id="contained-two",
        ),
        pytest.param(
            "<contained><Duck/></contained>",
            "Patient.contained.Duck",
            "not an R4 resource",
            id="contained-unknown",
        ),
        pytest.param(
            "<contained><HumanName/></contained>",
            "Patient.contained.HumanName",
            "not an R4 resource",
            id="data-type",
        ),
        pytest.param(
            "<contained><DomainResource/></contained>",
            "Patient.contained.DomainResource",
            "not an R4 resource",
            id="abstract",
        ),
    ],
)
def test_what_is_not_defined_is_refused_with_its_place(inside: str, path: str, reason: str) -> None:
    issue = refused(xml(inside))
    assert issue.code == "structure"
    assert issue.expression == (path,)
    assert issue.diagnostics.startswith(f"{path} (line 1): ")
    assert reason in issue.diagnostics


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"", "Malformed XML at line", id="nothing"),
        pytest.param(b"{}", "Malformed XML at line 1, column 1", id="json"),
        pytest.param(
            b'<Patient xmlns="http://hl7.org/fhir"><active>',
            "Malformed XML at line 1",
            id="cut-off",
        ),
        pytest.param(xml("&nbsp;"), "undeclared entity", id="entity"),
        pytest.param(
            xml('<active value="&secret;"/>'), "undeclared entity", id="entity-in-attribute"
        ),
        pytest.param(
            xml('<active value="\xff"/>').decode().encode("latin-1"),
            "Not UTF-8 at byte",
            id="latin-1",
        ),
        pytest.param(
            '<Patient xmlns="http://hl7.org/fhir"/>'.encode("utf-16"),
            "Not UTF-8 at byte 0",
            id="utf-16",
        ),
        pytest.param(xml("") + xml(""), "Malformed XML", id="two-roots"),
        pytest.param(xml('<active value="&#0;"/>'), "Malformed XML", id="null-character"),
        pytest.param(
            b"<Patient/>", "Patient (line 1): must be in the namespace", id="no-namespace"
        ),
        pytest.param(xml("", "Duck"), "is not an R4 resource type", id="unknown-type"),
    ],
)
def test_malformed_xml_is_refused(body: bytes, reason: str) -> None:
    issue = refused(body)
    assert issue.code == "structure"
    assert reason in issue.diagnostics


@pytest.mark.parametrize(
    "prolog",
    [
        pytest.param(
            '<!DOCTYPE Patient [<!ENTITY x SYSTEM "file:///etc/passwd">]>', id="external-entity"
        ),
        pytest.param('<!DOCTYPE Patient SYSTEM "http://192.0.2.1/x.dtd">', id="external-dtd"),
        pytest.param(
            '<!DOCTYPE Patient [<!ENTITY a "aaaaaaaaaa">'
            + "".join(
                f'<!ENTITY {b} "{f"&{a};" * 10}">'
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
            + "<!ENTITY x '&i;'>]>",
            id="billion-laughs",
        ),
        pytest.param(
            '<?xml version="1.0"?> <!-- c --> <?p?>\n<!DOCTYPE Patient [<!ENTITY x "y">]>',
            id="late",
        ),
    ],
)
def test_document_types_are_refused(prolog: str) -> None:
    body = prolog.encode() + xml('<gender value="&x;"/>')
    assert refused(body).diagnostics == "A document type (DOCTYPE) is not allowed"


def test_the_declared_encoding_does_not_matter() -> None:
    body = b'\xef\xbb\xbf<?xml version="1.0" encoding="ISO-8859-1"?>' + xml('<id value="\xe9"/>')
    assert fhir_xml.decode(body)["id"] == "é"


def test_a_schema_hint_on_the_root_is_ignored() -> None:
    body = (
        b'<Patient xmlns="http://hl7.org/fhir" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        b' xsi:schemaLocation="http://hl7.org/fhir patient.xsd"><active value="true"/></Patient>'
    )
    assert fhir_xml.decode(body) == {"resourceType": "Patient", "active": True}


def nested(levels: int) -> bytes:
    """A Parameters with parts inside one another: each takes an object and an array in JSON."""
    inside = '<name value="x"/>'
    for _ in range(levels - 1):
        inside = f'<name value="x"/><part>{inside}</part>'
    return xml(f"<parameter>{inside}</parameter>", "Parameters")


def test_the_depth_limit_is_that_of_json() -> None:
    deepest = fhir_xml.decode(nested(63))
    assert fhir_json.decode(fhir_json.encode(deepest)) == deepest
    assert fhir_xml.decode(fhir_xml.encode(deepest)) == deepest
    assert "Nested deeper than 128 levels" in refused(nested(64)).diagnostics
    assert refused(nested(5000)).code == "structure"
    deep_div = f"<text>{DIV}{'<p>' * 200}{'</p>' * 200}</div></text>"
    assert "Nested deeper" in refused(xml(deep_div)).diagnostics


def test_a_narrative_loses_its_surroundings_and_keeps_its_content() -> None:
    body = (
        b'<f:Patient xmlns:f="http://hl7.org/fhir" xmlns:h="http://www.w3.org/1999/xhtml" xmlns:o="urn:o">'
        b'<f:text><f:status value="generated"/><h:div><!-- c --><h:p class="a">x <h:b>y</h:b> &lt; z</h:p>'
        b"<h:br/></h:div></f:text></f:Patient>"
    )
    assert fhir_xml.decode(body)["text"]["div"] == (
        f'{DIV}<!-- c --><p class="a">x <b>y</b> &lt; z</p><br/></div>'
    )


@pytest.mark.parametrize(
    ("div", "expected"),
    [
        pytest.param(f" {DIV}<p>x</p></div>\n", f"{DIV}<p>x</p></div>", id="as-it-is"),
        pytest.param("<div>x</div>", f"{DIV}x</div>", id="namespace-added"),
        pytest.param(f"{DIV}a&nbsp;&lt;b</div>", f"{DIV}a\xa0&lt;b</div>", id="html-entity"),
    ],
)
def test_a_narrative_is_written_as_xhtml(div: str, expected: str) -> None:
    assert encode(text={"status": "generated", "div": div}) == (
        f'<text><status value="generated"/>{expected}</text>'
    )


def test_elements_are_written_in_the_order_of_the_definition() -> None:
    written = encode(
        birthDate="1970",
        _active={"id": "a"},
        id="p",
        name=[{"family": "F", "id": "n"}],
        active=True,
    )
    assert written == (
        '<id value="p"/><active value="true" id="a"/><name id="n"><family value="F"/></name>'
        '<birthDate value="1970"/>'
    )


def test_attributes_survive_line_breaks_and_lose_what_xml_cannot_hold() -> None:
    written = encode(name=[{"text": 'a\r\n\t"<&>\x01\ufffe'}])
    assert written == '<name><text value="a&#13;&#10;&#9;&quot;&lt;&amp;&gt;\ufffd\ufffd"/></name>'
    assert decode(written)["name"][0]["text"] == 'a\r\n\t"<&>\ufffd\ufffd'


def test_pretty_puts_every_element_on_a_line() -> None:
    resource = {
        "resourceType": "Patient",
        "text": {"status": "generated", "div": f"{DIV}<pre>a\nb</pre></div>"},
        "contained": [{"resourceType": "Organization", "id": "o"}],
    }
    text = fhir_xml.encode(resource, pretty=True).decode()
    assert text.splitlines() == [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<Patient xmlns="http://hl7.org/fhir">',
        "  <text>",
        '    <status value="generated"/>',
        f"    {DIV}<pre>a",
        "b</pre></div>",
        "  </text>",
        "  <contained>",
        "    <Organization>",
        '      <id value="o"/>',
        "    </Organization>",
        "  </contained>",
        "</Patient>",
    ]
    assert fhir_xml.decode(text.encode()) == resource


def test_an_outcome_is_written() -> None:
    outcome = operation_outcome([Issue("structure", "x < y", ("Patient.name[0]",))])
    assert fhir_xml.decode(fhir_xml.encode(outcome)) == outcome


@pytest.mark.parametrize(
    "resource",
    [
        pytest.param({"resourceType": "Patient", "colour": "x"}, id="element"),
        pytest.param({"resourceType": "Duck"}, id="type"),
        pytest.param({"resourceType": "Patient", "text": {"div": "<div>"}}, id="narrative"),
    ],
)
def test_what_validation_refuses_is_not_written(resource: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        fhir_xml.encode(resource)
