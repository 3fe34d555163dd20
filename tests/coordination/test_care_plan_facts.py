"""A document that a doctor would thank for: each fact of a rich record is in it, in every form, and none is denied."""

from __future__ import annotations

import ast
import html
import io
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pypdf import PdfReader

from app.coordination import care_plans
from app.coordination.care_plans.phrases import PLAIN_WORDS, languages
from tests.builders.access_world import security
from tests.builders.care_plans import (
    Desk,
    Json,
    Pair,
    care_team,
    desk,
    goal,
    patient,
    plan,
    reference,
)
from tests.builders.members import concept
from tests.builders.rich_member import (
    FACTS,
    ORDER,
    SNOMED,
    TERMS,
    Fact,
    about,
    coded,
    condition,
    directory,
    member,
    of_the_plan,
    of_the_record,
)
from tests.coordination.test_care_plan_document import composition, section, text
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
HTML, PDF = {"accept": "text/html"}, {"accept": "application/pdf"}
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
# As browsers ask for what an address leads to.
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@dataclass
class Told:
    """What is told of the rich member, in all forms."""

    bundle: Json
    spanish: Json
    page: str
    paper: PdfReader
    desk: Desk


@pytest.fixture(scope="module")
async def told(pair: Pair) -> AsyncIterator[Told]:
    async with desk(pair) as at:
        await at.put(
            *directory(), member("es"), *of_the_record(at.server.clock.now()), *of_the_plan()
        )
        path = f"{at.ref('CarePlan/plan')}/$summary"
        page = await at.client.get(f"{path}?language=en", headers=HTML)
        paper = await at.client.get(f"{path}?language=en", headers=PDF)
        assert (page.status_code, paper.status_code) == (200, 200), (page.text, paper.text)
        yield Told(
            await at.get(f"{path}?language=en"),
            await at.get(path),
            page.text,
            PdfReader(io.BytesIO(paper.content)),
            at,
        )


def part(document: Json, code: str) -> Json:
    return section(document, code)


def plain(page: str) -> str:
    """What a page shows, squeezed."""
    body = page.partition("<body>")[2]
    return squeezed(html.unescape(re.sub(r"<[^>]*>", "", body)))


def squeezed(words: str) -> str:
    """Words without spaces and bullets, which each form has in places of its own."""
    return re.sub(r"[\s•]", "", words)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: f"{fact.section}: {fact.says[:30]}")
async def test_each_fact_is_told_where_it_belongs(told: Told, fact: Fact) -> None:
    assert fact.says in text(part(told.bundle, fact.section))
    assert squeezed(fact.says) in plain(told.page)
    pages = "".join(page.extract_text() for page in told.paper.pages)
    assert squeezed(fact.says) in squeezed(pages)


async def test_the_sections_come_in_the_order_that_a_reader_needs(told: Told) -> None:
    titles = [each["title"] for each in composition(told.bundle)["section"]]
    assert tuple(titles[: len(ORDER)]) == ORDER
    goals = text(part(told.bundle, "61146-7"))
    assert goals.index("Short-term goals") < goals.index("Long-term goals")


async def test_the_first_page_is_the_clinicians_and_holds_what_is_needed_first(told: Told) -> None:
    first = squeezed(told.paper.pages[0].extract_text())
    for words in (
        "Summary for the clinician",
        "Rosa Nunez RN",
        "Nuria Ñúñez Peña, born 1950-03-04",
        "Seeing my granddaughter marry",
        "Penicillin; criticality: high",
        "Furosemide 40 mg",
        "ICD-10-CM I50.9",
        "No resuscitation",
    ):
        assert squeezed(words) in first
    assert "Evaluationsandoutcomes" not in first
    second = squeezed(told.paper.pages[1].extract_text())
    assert second.startswith("Pointofcontact")
    summary = text(composition(told.bundle))
    assert summary.splitlines()[0] == "Point of contact:"
    assert "Seeing my granddaughter marry" in summary


async def test_a_directive_that_is_over_is_none(told: Told) -> None:
    assert "Everything is to be done" not in str(composition(told.bundle))


async def test_a_member_reads_it_in_her_language(told: Told) -> None:
    """What the server says is Spanish; what people have recorded stays as it is."""
    spanish = composition(told.spanish)
    assert (told.spanish["language"], spanish["language"]) == ("es", "es")
    titles = [each["title"] for each in spanish["section"]]
    assert titles[:3] == ["Persona de contacto", "Lo que le importa al afiliado", "Problemas"]
    english = {each["title"] for each in composition(told.bundle)["section"]}
    assert not english & set(titles)
    assert "avance: activo, mejora; objetivo: Minutes 20" in text(part(told.spanish, "61146-7"))
    path = f"{told.desk.ref('CarePlan/plan')}/$summary"
    page = await told.desk.client.get(path, headers={"accept": BROWSER})
    assert '<html lang="es">' in page.text
    refused = await told.desk.client.get(f"{path}?language=tlh")
    assert_outcome(refused, 400, "value", "language")


def spoken() -> Iterator[str]:
    """Every phrase that the code of documents says."""
    for file in Path(care_plans.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                name = node.func.id if isinstance(node.func, ast.Name) else name
                first = node.args[0]
                if name in ("say", "labelled") and isinstance(first, ast.Constant):
                    yield str(first.value)
    yield from PLAIN_WORDS.values()
    yield from ORDER


@pytest.mark.parametrize("language", sorted(set(languages()) - {"en"}))
def test_a_table_has_every_phrase_with_all_its_places(language: str) -> None:
    table = languages()[language].table
    assert set(spoken()) - set(table) == set()
    for phrase, said in table.items():
        assert said
        assert sorted(re.findall(r"{\w+}", phrase)) == sorted(re.findall(r"{\w+}", said))


# What is not known


async def test_nothing_that_is_not_known_is_denied(at: Desk) -> None:
    await at.put(patient(), plan())
    document = await at.get(f"{at.ref('CarePlan/plan')}/$summary")
    for code in ("11450-4", "10160-0", "48765-2", "42348-3", "46240-8", "48768-6"):
        found = part(document, code)
        assert "does not prove that there is nothing" in text(found)
        assert found["emptyReason"]["coding"][0]["code"] == "unavailable"
    said = text(composition(document)).lower()
    assert "allergies\nnothing is on record here to show, which does not prove" in said
    assert not re.search(r"nothing is known|no known|none known|nil known", str(document).lower())


async def test_what_nobody_looked_for_is_said_to_be_so(at: Desk) -> None:
    """A plan whose member is known by a number only: there is no record to look into."""
    subject = {"identifier": {"system": "http://plan.example/member", "value": "EV1"}}
    unknown = plan(goals=()) | {"subject": subject}
    del unknown["careTeam"]
    await at.put(unknown)
    document = await at.get(f"{at.ref('CarePlan/plan')}/$summary")
    for code in ("11450-4", "48765-2", "10160-0"):
        found = part(document, code)
        assert text(found).startswith("Nobody looked for this")
        assert found["emptyReason"]["coding"][0]["code"] == "notasked"


async def test_a_recorded_denial_stays_the_word_of_who_recorded_it(at: Desk) -> None:
    denial = coded(SNOMED, "716186003", "No known allergy")
    active = coded(f"{TERMS}allergyintolerance-clinical", "active")
    await at.put(
        patient(),
        about("AllergyIntolerance", "none", clinicalStatus=active, code=denial),
        plan(),
    )
    document = await at.get(f"{at.ref('CarePlan/plan')}/$summary")
    assert text(part(document, "48765-2")) == "No known allergy"


# Forms


@pytest.mark.parametrize(
    ("asked", "type_"),
    [
        pytest.param({"headers": HTML}, "text/html", id="accept"),
        pytest.param({"headers": {"accept": BROWSER}}, "text/html", id="browser"),
        pytest.param({"params": {"_format": "html"}}, "text/html", id="format"),
        pytest.param({"params": {"_format": "pdf"}}, "application/pdf", id="format-pdf"),
        pytest.param({"headers": {"accept": "*/*"}}, "application/fhir+json", id="anything"),
        pytest.param({"headers": {"accept": "application/fhir+xml"}}, "application/fhir+xml", id="xml"),
        pytest.param(
            {"headers": {"accept": "application/pdf;q=0.2, application/fhir+json"}},
            "application/fhir+json",
            id="rather-fhir",
        ),
    ],
)  # fmt: skip
async def test_the_form_is_the_one_that_is_asked_for(
    told: Told, asked: dict[str, dict[str, str]], type_: str
) -> None:
    path = f"{told.desk.ref('CarePlan/plan')}/$summary"
    answer = await told.desk.client.get(
        path, headers=asked.get("headers"), params=asked.get("params")
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith(type_)


async def test_a_page_has_no_scripts_and_lets_none_in(at: Desk) -> None:
    await at.put(
        patient() | {"name": [{"text": "<script>alert(1)</script>"}]},
        plan(title='#link("x")[y] <img src=x onerror=alert(1)>'),
    )
    path = f"{at.ref('CarePlan/plan')}/$summary"
    page = await at.client.get(path, headers=HTML)
    assert "<script" not in page.text
    assert "<img" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    paper = await at.client.get(path, headers=PDF)
    shown = PdfReader(io.BytesIO(paper.content)).pages[0].extract_text()
    assert squeezed('#link("x")[y]<imgsrc=xonerror=alert(1)>') in squeezed(shown)


async def test_what_cannot_be_answered_in_a_form_says_so(at: Desk) -> None:
    await at.put(patient(), plan())
    path = f"{at.ref('CarePlan/plan')}/$summary"
    assert_outcome(await at.client.get(path, headers={"accept": "image/png"}), 406, "not-supported")
    unknown = await at.client.get("CarePlan/unknown-plan/$summary", headers=PDF)
    assert_outcome(unknown, 404, "not-found")
    parameter = {"name": "persist", "valueBoolean": True}
    body = {"resourceType": "Parameters", "parameter": [parameter]}
    assert_outcome(await at.client.post(path, json=body, headers=PDF), 406, "not-supported")


async def test_without_the_extra_there_is_no_pdf(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for one is told what is missing; a notice goes out with the other forms."""
    monkeypatch.setattr("app.coordination.care_plans.document_pdf.is_installed", lambda: False)
    await at.begin()
    path = f"{at.ref('CarePlan/plan')}/$summary"
    refused = await at.client.get(path, headers=PDF)
    outcome = assert_outcome(refused, 406, "not-supported")
    assert "carerelay[pdf]" in outcome["issue"][0]["diagnostics"]
    index = (await at.get(f"DocumentReference?related={at.ref('CarePlan/plan')}"))["entry"][0]
    types = [each["attachment"]["contentType"] for each in index["resource"]["content"]]
    assert types == ["application/fhir+json", "text/html; charset=utf-8"]


def much(at: Desk) -> list[Json]:
    """Two hundred orders, and more problems, allergies and medications than a page holds, with long names."""
    long = (
        "with a name that goes on and on, as names do that a program has put together out of many codes "
        * 2
    )
    active = coded(f"{TERMS}allergyintolerance-clinical", "active")
    orders = [
        about(
            "ServiceRequest",
            f"order{n}",
            status="active",
            intent="order",
            code={"text": f"Order {n}"},
        )
        for n in range(200)
    ]
    drug = {"status": "active", "intent": "order"}
    others = [
        record
        for n in range(15)
        for record in (
            condition(f"problem{n}", f"Problem {n} {long}"),
            about("AllergyIntolerance", f"allergy{n}", clinicalStatus=active, code={"text": f"Allergy {n} {long}"}),
            about("MedicationRequest", f"drug{n}", **drug, medicationCodeableConcept={"text": f"Drug {n} {long}"}),
        )
    ]  # fmt: skip
    return [at._owned(each) for each in (*orders, *others)]


@pytest.mark.slow
async def test_a_large_document_comes_in_time_and_its_summary_has_one_page(at: Desk) -> None:
    """The bounds are several times what an idle core takes."""
    await at.put(patient())
    entries = [
        {"resource": each, "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"}}
        for each in much(at)
    ]  # fmt: skip
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = await at.client.post("", json=bundle)
    assert answer.status_code == 200, answer.text
    activities = [{"reference": reference(f"ServiceRequest/order{n}")} for n in range(200)]
    await at.put(plan(activity=activities))
    path = f"{at.ref('CarePlan/plan')}/$summary"

    async def timed(headers: dict[str, str]) -> tuple[float, httpx.Response]:
        begin = time.monotonic()
        found = await at.client.get(path, headers=headers)
        assert found.status_code == 200, found.text
        return time.monotonic() - begin, found

    tries = [await timed({}) for _ in range(3)]
    assert len(tries[0][1].json()["entry"]) > 200
    assert min(seconds for seconds, _ in tries) < 1
    seconds, paper = await timed(PDF)
    assert seconds < 5
    first, second = [page.extract_text() for page in PdfReader(io.BytesIO(paper.content)).pages[:2]]
    assert "and 9 more, told below" in first
    assert second.startswith("Point of contact")


async def test_what_must_not_be_done_is_not_told_as_done(pair: Pair) -> None:
    """Nor what was entered in error, is over, or is still to come; modifier elements are never passed over."""
    subject = {"subject": reference("Patient/ann")}
    order = {"resourceType": "MedicationRequest", "status": "active", "intent": "order", **subject}
    hospital = {
        "resourceType": "Encounter",
        "class": {"code": "IMP", "system": ACT_CODE},
        **subject,
    }
    async with desk(pair) as at:
        now = at.server.clock.now()
        today, later = f"{now:%Y-%m-%d}", f"{now + timedelta(days=90):%Y-%m-%d}"
        steps = [{"sequence": 2, "text": "then 5 mg"}, {"sequence": 1, "text": "first 10 mg"}]
        await at.put(
            order
            | {"id": "no", "doNotPerform": True, "medicationCodeableConcept": {"text": "Warfarin"}},
            order
            | {
                "id": "t",
                "medicationCodeableConcept": {"text": "Taper"},
                "dosageInstruction": steps,
            },
            order
            | {
                "id": "prn",
                "medicationCodeableConcept": {"text": "Aspirin"},
                "dosageInstruction": [
                    {
                        "asNeededBoolean": True,
                        "doseAndRate": [{"doseQuantity": {"value": 500, "unit": "mg"}}],
                    }
                ],
            },
            order
            | {"id": "p", "intent": "proposal", "medicationCodeableConcept": {"text": "Statin"}},
            hospital | {"id": "soon", "status": "planned", "period": {"start": later}},
            hospital | {"id": "here", "status": "in-progress", "period": {"start": today}},
            goal("walk", "Walk"),
            goal("slip", "Slip", "entered-in-error"),
            goal("dream", "Marathon", "cancelled"),
            care_team(
                {
                    "role": [concept("care-team-role", "point-of-contact")],
                    "member": {"display": "Gone Person"},
                    "period": {"end": "2020-01-01"},
                },
                {
                    "role": [concept("http://snomed.info/sct", "768820003")],
                    "member": {"display": "Present Person"},
                },
            ),
            plan(
                goals=("walk", "slip", "dream"),
                activity=[
                    {
                        "detail": {
                            "status": "not-started",
                            "doNotPerform": True,
                            "code": {"text": "NSAIDs"},
                        }
                    },
                    {"detail": {"status": "entered-in-error", "code": {"text": "Error"}}},
                ],
            ),
        )
        page = await at.client.get(f"{at.ref('CarePlan/plan')}/$summary", headers=HTML)
    first, _, rest = page.text.partition("</section>")
    assert "DO NOT GIVE: Warfarin" in first
    assert "DO NOT GIVE: Warfarin" in rest
    assert "NOT TO BE DONE: NSAIDs" in rest
    assert "Taper, first 10 mg, then 5 mg" in first
    assert "Aspirin, 500 mg, as needed" in first
    assert f"hospital stay; since {today}" in first
    assert "Present Person" in first
    for text_ in ("Statin", later, "Slip", "Gone Person"):
        assert text_ not in page.text
    assert "Marathon" in rest
    assert "Marathon" not in first


async def test_the_name_of_what_was_restricted_stays_untold_once_it_is_deleted(pair: Pair) -> None:
    secret: dict[str, Any] = {"meta": security("PSY")}
    async with desk(pair) as at:
        await at.put(
            goal("walk", "Walk"),
            goal("hidden", "Secret goal", **secret),
            condition("hidden", "Secret condition", **secret),
            plan(
                goals=(),
                goal=[
                    reference("Goal/walk"),
                    {"reference": at.ref("Goal/hidden"), "display": "Secret goal"},
                ],
                addresses=[
                    {"reference": at.ref("Condition/hidden"), "display": "Secret condition"}
                ],
            ),
        )
        url = f"{at.ref('CarePlan/plan')}/$summary"
        assert "Secret" not in (await at.client.get(url, headers=HTML)).text
        for each in ("Goal/hidden", "Condition/hidden"):
            assert (await at.client.delete(at.ref(each))).is_success
        page = (await at.client.get(url, headers=HTML)).text
        assert "Walk" in page
        assert "Secret" not in page
