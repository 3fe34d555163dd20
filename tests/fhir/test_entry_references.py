"""What a reference in a Bundle means. https://hl7.org/fhir/R4/bundle.html#references"""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import Unprocessable
from app.fhir.entry_references import EntryReferences, NamedEntry

OURS = "http://carerelay.test/fhir"
NORTH, SOUTH = "https://north.example/fhir", "https://south.example:8443/r4"
URN = "urn:uuid:5d0a0b6e-0d0c-4f1e-9a51-3c1d7f5a9d11"


def names(*entries: tuple[str | None, str, str | None]) -> EntryReferences:
    """Of entries with a fullUrl, a source's `Type/id` and what they become here."""
    named = []
    for index, (full_url, place, target) in enumerate(entries):
        resource_type, resource_id = place.split("/")
        resource = {"resourceType": resource_type, "id": resource_id}
        named.append(NamedEntry.of(index, full_url, resource, target))
    return EntryReferences(named, [OURS + "/"])


# The entry with index 0 has the reference.
NORTHERN = (f"{NORTH}/Encounter/1", "Encounter/1", "Encounter/e")
OWN = (f"{OURS}/Encounter/1", "Encounter/1", "Encounter/e")
BY_URN = (URN, "Encounter/1", "Encounter/e")
NAMELESS = (None, "Encounter/1", "Encounter/e")
NORTH_77 = (f"{NORTH}/Patient/77", "Patient/77", "Patient/new")
SOUTH_77 = (f"{SOUTH}/Patient/77", "Patient/77", "Patient/other")
OWN_77 = (f"{OURS}/Patient/77", "Patient/77", "Patient/new")
NAMELESS_77 = (None, "Patient/77", "Patient/new")


@pytest.mark.parametrize(
    ("entries", "reference", "kind", "stored"),
    [
        # The root of the entry's own fullUrl.
        pytest.param([NORTHERN, NORTH_77], "Patient/77", "entry", "Patient/new", id="own-root"),
        pytest.param(
            [NORTHERN, NORTH_77, SOUTH_77], "Patient/77", "entry", "Patient/new", id="of-two-roots"
        ),
        pytest.param(
            [NORTHERN, SOUTH_77], "Patient/77", "kept", f"{NORTH}/Patient/77", id="other-root"
        ),
        pytest.param(
            [NORTHERN, NAMELESS_77], "Patient/77", "kept", f"{NORTH}/Patient/77", id="no-root"
        ),
        pytest.param(
            [NORTHERN],
            "Patient/77/_history/3#a",
            "kept",
            f"{NORTH}/Patient/77/_history/3#a",
            id="version-kept",
        ),
        pytest.param(
            [NORTHERN, NORTH_77], "Patient/77/_history/3", "entry", "Patient/new", id="version"
        ),
        pytest.param([NORTHERN, NORTH_77], "Patient/77#a", "entry", "Patient/new#a", id="fragment"),
        pytest.param([NORTHERN, NORTH_77], "#a", "kept", "#a", id="contained"),
        # No foreign root.
        pytest.param([OWN, OWN_77], "Patient/77", "entry", "Patient/new", id="ours-in-bundle"),
        pytest.param([OWN], "Patient/77", "ours", "Patient/77", id="ours"),
        pytest.param([OWN, NORTH_77], "Patient/77", "ours", "Patient/77", id="ours-by-its-root"),
        pytest.param([BY_URN], "Patient/77", "ours", "Patient/77", id="urn"),
        pytest.param([BY_URN, NORTH_77], "Patient/88", "ours", "Patient/88", id="urn-among-others"),
        pytest.param([BY_URN, NORTH_77], "Patient/77", "refused", "", id="urn-others-name"),
        pytest.param([NAMELESS], "Patient/77", "ours", "Patient/77", id="nameless"),
        pytest.param(
            [NAMELESS, NAMELESS_77], "Patient/77", "entry", "Patient/new", id="nameless-in-bundle"
        ),
        pytest.param([NAMELESS, NORTH_77], "Patient/88", "refused", "", id="nameless-among-others"),
        pytest.param([NAMELESS, NORTH_77], "Patient/77", "refused", "", id="nameless-others-name"),
        pytest.param(
            [("https://north.example/visits?n=1", "Encounter/1", None)],
            "Patient/77",
            "refused",
            "",
            id="no-restful-address",
        ),
        pytest.param([NAMELESS, NAMELESS_77, OWN_77], "Patient/77", "entry", "Patient/new", id="same-target"),
        pytest.param(
            [NAMELESS, NAMELESS_77, (*OWN_77[:2], "Patient/x")], "Patient/77", "refused", "", id="two"
        ),
        pytest.param(
            [OWN, (*OWN_77[:2], "Patient/77")],
            "Patient/77/_history/2",
            "entry",
            "Patient/77/_history/2",
            id="version-of-what-stays",
        ),
        # Absolute ones.
        pytest.param([NAMELESS, NORTH_77], f"{NORTH}/Patient/77", "entry", "Patient/new", id="url"),
        pytest.param(
            [NAMELESS, NORTH_77], "HTTPS://North.Example:443/fhir/Patient/77", "entry", "Patient/new", id="spelt"
        ),
        pytest.param(
            [NAMELESS], f"{NORTH}/Patient/77", "kept", f"{NORTH}/Patient/77", id="url-elsewhere"
        ),
        pytest.param(
            [NORTHERN, NAMELESS_77], f"{OURS}/Patient/77", "ours", f"{OURS}/Patient/77", id="our-url"
        ),
        pytest.param([NORTHERN, BY_URN], URN, "entry", "Encounter/e", id="urn-of-an-entry"),
        pytest.param([NORTHERN], URN, "kept", URN, id="urn-of-none"),
        # Searches are for this server, whoever sends them.
        pytest.param([NORTHERN], "Patient?identifier=x", "ours", "Patient?identifier=x", id="search"),
        pytest.param(
            [NORTHERN], f"{OURS}/Patient?identifier=x", "ours", "Patient?identifier=x", id="our-search"
        ),
        pytest.param(
            [NORTHERN], f"{NORTH}/Patient?a=x", "kept", f"{NORTH}/Patient?a=x", id="their-search"
        ),
    ],
)  # fmt: skip
def test_meaning_of_a_reference(
    entries: list[tuple[str | None, str, str | None]], reference: str, kind: str, stored: str
) -> None:
    meaning = names(*entries).meaning(0, reference)
    assert (meaning.kind, meaning.reference) == (kind, stored)
    assert bool(meaning.reason) == (kind == "refused")


def test_the_entry_is_known_before_its_record_is() -> None:
    meaning = names(NORTHERN, (*NORTH_77[:2], None)).meaning(0, "Patient/77")
    assert (meaning.kind, meaning.entry, meaning.reference) == ("entry", 1, "")


def test_links_are_rewritten_wherever_they_stand() -> None:
    """In extensions, contained resources, addresses, nested content and narratives; canonicals only get their root."""
    div = '<div xmlns="http://www.w3.org/1999/xhtml"><a href="{}">x</a><img src="#y"/>{}</div>'
    nested = {"linkId": "1", "item": [{"linkId": "2", "definition": "{}"}]}

    def resource(patient: str, elsewhere: str, canonical: str) -> dict[str, Any]:
        return {
            "resourceType": "DocumentReference",
            "text": {"status": "additional", "div": div.format(patient, "Patient/77")},
            "subject": {"reference": patient, "display": "Patient/77"},
            "content": [{"attachment": {"url": elsewhere, "title": "Patient/77"}}],
            "masterIdentifier": {"value": "Patient/77"},
            "extension": [
                {"url": "Patient/77", "valueReference": {"reference": patient}},
                {"url": "http://example.org/x", "valueUrl": patient},
                {"url": "http://example.org/x", "valueString": "Patient/77"},
                {"url": "http://example.org/x", "valueCanonical": canonical},
            ],
            "contained": [
                {"resourceType": "Observation", "subject": {"reference": patient}},
                {
                    "resourceType": "QuestionnaireResponse",
                    "questionnaire": canonical,
                    "item": [{**nested, "item": [{"linkId": "2", "definition": patient}]}],
                },
            ],
        }

    before = resource("Patient/77", "Binary/5", "Questionnaire/7|2")
    after = resource("Patient/new", f"{NORTH}/Binary/5", f"{NORTH}/Questionnaire/7|2")
    assert names(NORTHERN, NORTH_77).rewritten(0, before) == after
    assert before == resource("Patient/77", "Binary/5", "Questionnaire/7|2")


def test_a_bundle_inside_speaks_of_its_own_entries() -> None:
    """Of a document only what stands outside its entries is the sender's."""
    document = {
        "resourceType": "Bundle",
        "type": "document",
        "entry": [
            {
                "fullUrl": f"{NORTH}/Patient/77",
                "resource": {"resourceType": "Composition", "subject": {"reference": "Patient/77"}},
            }
        ],
    }
    signed = {**document, "signature": {"who": {"reference": "Patient/77"}}}
    stored = names(NORTHERN, NORTH_77).rewritten(0, signed)
    assert stored == {**document, "signature": {"who": {"reference": "Patient/new"}}}


def test_a_refused_link_is_named_by_its_place() -> None:
    participants = [{}, {"individual": {"reference": "Practitioner/1"}}]
    resource = {"resourceType": "Encounter", "participant": participants}
    with pytest.raises(Unprocessable) as refused:
        names(NAMELESS, NORTH_77).rewritten(0, resource)
    (issue,) = refused.value.issues
    assert issue.expression == ("Bundle.entry[0].resource.participant[1].individual.reference",)


def test_what_a_record_had_before_a_patch_is_ours() -> None:
    resource = {
        "basedOn": [{"reference": "ServiceRequest/1"}],
        "subject": {"reference": "Patient/77"},
    }
    known = {"Patient/77"}
    stored = names(NORTHERN, NORTH_77).rewritten(
        0, {"resourceType": "Encounter", **resource}, known
    )
    assert stored["subject"] == {"reference": "Patient/77"}
    assert stored["basedOn"] == [{"reference": f"{NORTH}/ServiceRequest/1"}]
