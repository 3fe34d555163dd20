"""Every combination of parameters that US Core asks servers for is served by an index.

Run on a fixed data set: no collection scan, and index keys examined <= 20 x max(rows returned, 10).
http://hl7.org/fhir/us/core/STU6.1/CapabilityStatement-us-core-server.html
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from app.errors import BadRequest
from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search import page
from app.search.explain import explain
from app.search.query import parse
from app.settings import Settings
from app.store.store import Store
from tests.builders.pages import walk
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo

PATIENTS = 120
PER_PATIENT = 8
SYSTEM = "http://codes.example"
ASSERTED = "http://hl7.org/fhir/StructureDefinition/condition-assertedDate"


def concept(code: str) -> dict[str, Any]:
    return {"coding": [{"system": SYSTEM, "code": code}]}


def reference(resource_type: str, number: int) -> dict[str, str]:
    return {"reference": f"{resource_type}/{number}"}


def day(number: int) -> str:
    return f"2026-{number % 12 + 1:02}-{number % 28 + 1:02}"


# What makes a type's n-th resource, beside its id: p is the patient's number, n runs over all of the type.
Make = Callable[[int, int], dict[str, Any]]
CLINICAL: dict[str, Make] = {
    "CarePlan": lambda p, n: {
        "status": "active" if n % 3 else "completed",
        "intent": "plan",
        "category": [concept("assess-plan" if n % 2 else "other")],
        "subject": reference("Patient", p),
        "period": {"start": day(n)},
    },
    "CareTeam": lambda p, n: {
        "status": "active" if n % 2 else "inactive",
        "subject": reference("Patient", p),
        "participant": [{"role": [concept(f"role{n % 90}")]}],
    },
    "Condition": lambda p, n: {
        "clinicalStatus": concept("active" if n % 2 else "resolved"),
        "category": [concept("problem-list-item" if n % 3 else "encounter-diagnosis")],
        "code": concept(f"c{n % 7}"),
        "subject": reference("Patient", p),
        "encounter": reference("Encounter", n),
        "onsetDateTime": day(n),
        "abatementDateTime": day(n + 1),
        "recordedDate": day(n + 2),
        "extension": [{"url": ASSERTED, "valueDateTime": day(n + 3)}],
    },
    "Encounter": lambda p, n: {
        "status": "finished" if n % 2 else "in-progress",
        "identifier": [{"system": SYSTEM, "value": f"v{n}"}],
        "class": {"system": SYSTEM, "code": "IMP" if n % 2 else "AMB"},
        "type": [concept(f"t{n % 3}")],
        "subject": reference("Patient", p),
        "location": [{"location": reference("Location", n % 20)}],
        "hospitalization": {"dischargeDisposition": concept("03" if n % 4 else "01")},
        "period": {"start": day(n), "end": day(n)},
    },
    "Goal": lambda p, n: {
        "lifecycleStatus": "active" if n % 2 else "completed",
        "description": concept(f"g{n % 5}"),
        "subject": reference("Patient", p),
        "target": [{"dueDate": day(n)}],
    },
    "Coverage": lambda p, n: {
        "status": "active",
        "beneficiary": reference("Patient", p),
        "payor": [reference("Organization", 1)],
    },
    "QuestionnaireResponse": lambda p, n: {
        "status": "completed" if n % 2 else "in-progress",
        "questionnaire": f"http://q.example/{n % 3}",
        "subject": reference("Patient", p),
        "authored": day(n),
    },
    "ServiceRequest": lambda p, n: {
        "status": "active" if n % 2 else "completed",
        "intent": "order",
        "category": [concept(f"cat{n % 2}")],
        "code": concept(f"c{n % 4}"),
        "subject": reference("Patient", p),
        "authoredOn": day(n),
    },
    "DocumentReference": lambda p, n: {
        "status": "current" if n % 2 else "superseded",
        "category": [concept(f"cat{n % 2}")],
        "type": concept(f"t{n % 4}"),
        "subject": reference("Patient", p),
        "date": f"{day(n)}T10:00:00Z",
        "context": {"period": {"start": day(n)}},
        "content": [{"attachment": {"title": "x"}}],
    },
    "AllergyIntolerance": lambda p, n: {
        "clinicalStatus": concept("active" if n % 2 else "resolved"),
        "patient": reference("Patient", p),
    },
    "MedicationRequest": lambda p, n: {
        "status": "active" if n % 2 else "stopped",
        "intent": "order" if n % 3 else "plan",
        "medicationCodeableConcept": concept("m"),
        "subject": reference("Patient", p),
        "encounter": reference("Encounter", n),
        "authoredOn": day(n),
    },
    "RelatedPerson": lambda p, n: {
        "patient": reference("Patient", p),
        "name": [{"family": f"Kin{n}", "given": ["Sam"]}],
    },
}
FAMILIES = [f"Fam{number:03}" for number in range(60)]
ADMINISTRATIVE: dict[str, Make] = {
    "Patient": lambda p, n: {
        "identifier": [{"system": SYSTEM, "value": f"m{n}"}],
        "name": [{"family": FAMILIES[n % 60], "given": [f"Given{n % 50}"]}],
        "gender": "female" if n % 2 else "male",
        "birthDate": f"{1930 + n % 60}-{n % 12 + 1:02}-01",
        **({"deceasedDateTime": day(n)} if n % 5 == 0 else {}),
    },
    "Practitioner": lambda p, n: {
        "identifier": [{"system": SYSTEM, "value": f"d{n}"}],
        "name": [{"family": FAMILIES[n % 60]}],
    },
    "PractitionerRole": lambda p, n: {
        "practitioner": reference("Practitioner", n),
        "specialty": [concept(f"s{n % 60}")],
    },
    "Organization": lambda p, n: {
        "name": f"Clinic {n}",
        "address": [{"city": f"City{n % 70}", "state": "NY"}],
    },
    "Location": lambda p, n: {
        "name": f"Ward {n}",
        "address": {"city": f"City{n % 70}", "state": f"S{n % 50}", "postalCode": f"{n:05}"},
    },
}

COMBINATIONS: dict[str, tuple[str, ...]] = {
    "CarePlan": (
        "patient=7&category={s}|assess-plan",
        "patient=7&category={s}|assess-plan&status=active",
        "patient=7&category={s}|assess-plan&date=ge2026-03-01",
        "patient=7&category={s}|assess-plan&status=active&date=ge2026-03-01&date=lt2026-09-01",
    ),
    "CareTeam": ("patient=7&status=active", "patient=7&role={s}|role57", "role={s}|role57"),
    "Condition": (
        "patient=7",
        "patient=7&category=problem-list-item",
        "patient=7&clinical-status=active",
        "patient=7&category=problem-list-item&clinical-status=active",
        "patient=7&category=problem-list-item&encounter=Encounter/58",
        "patient=7&code={s}|c1",
        "patient=7&onset-date=ge2026-03-01",
        "patient=7&abatement-date=ge2026-03-01",
        "patient=7&asserted-date=ge2026-03-01",
        "patient=7&recorded-date=ge2026-03-01",
        "patient=7&_lastUpdated=ge2020-01-01",
    ),
    "Encounter": (
        "_id=57",
        "patient=7",
        "date=ge2026-03-01&patient=7",
        "identifier={s}|v57",
        "class={s}|IMP&patient=7",
        "patient=7&type={s}|t1",
        "patient=7&status=finished",
        "patient=7&location=Location/17",
        "patient=7&discharge-disposition={s}|03",
        "patient=7&_lastUpdated=ge2020-01-01",
    ),
    "Goal": (
        "patient=7",
        "patient=7&lifecycle-status=active",
        "patient=7&target-date=ge2026-03-01",
        "patient=7&description={s}|g2",
    ),
    "Patient": (
        "_id=7",
        "identifier={s}|m7",
        "name=fam007",
        "birthdate=1937-08-01&name=fam007",
        "gender=male&name=fam008",
        "birthdate=1937-08-01&family=fam007",
        "family=fam008&gender=male",
        "death-date=ge2026-01-01&family=fam005",
    ),
    "Practitioner": ("name=fam007", "identifier={s}|d7", "_id=7"),
    "PractitionerRole": ("specialty={s}|s7", "practitioner=Practitioner/7"),
    "Organization": ("name=clinic 17", "address=city7"),
    "Location": (
        "name=ward 17",
        "address=city7",
        "address-city=city7",
        "address-state=s7",
        "address-postalcode=00017",
    ),
    "Coverage": ("patient=7",),
    "QuestionnaireResponse": (
        "_id=57",
        "patient=7",
        "patient=7&questionnaire=http://q.example/1",
        "patient=7&authored=ge2026-03-01",
        "patient=7&status=completed",
    ),
    "ServiceRequest": (
        "_id=57",
        "patient=7",
        "patient=7&category={s}|cat1",
        "patient=7&category={s}|cat1&authored=ge2026-03-01",
        "patient=7&code={s}|c1",
        "patient=7&status=active",
        "patient=7&code={s}|c1&authored=ge2026-03-01",
    ),
    "DocumentReference": (
        "_id=57",
        "patient=7",
        "patient=7&category={s}|cat1",
        "patient=7&category={s}|cat1&date=ge2026-03-01",
        "patient=7&type={s}|t1",
        "patient=7&status=current",
        "patient=7&type={s}|t1&period=ge2026-03-01",
    ),
    "AllergyIntolerance": ("patient=7", "patient=7&clinical-status=active"),
    "RelatedPerson": ("_id=57", "patient=7", "name=kin57", "patient=7&name=kin"),
    "MedicationRequest": (
        "patient=7&intent=order",
        "patient=7&intent=order&status=active",
        "patient=7&intent=order&authoredon=ge2026-03-01",
        "patient=7&intent=order&encounter=Encounter/58",
    ),
}


def population() -> Iterator[dict[str, Any]]:
    for kind, make in CLINICAL.items():
        for number in range(PATIENTS * PER_PATIENT):
            patient = number // PER_PATIENT
            yield {"resourceType": kind, "id": str(number), **make(patient, number)}
    for kind, make in ADMINISTRATIVE.items():
        for number in range(PATIENTS * PER_PATIENT):
            yield {"resourceType": kind, "id": str(number), **make(number, number)}


@pytest.fixture(scope="module")
async def populated(mongod: str) -> AsyncIterator[Store]:
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    changes = [Change("create", r["resourceType"], r["id"], r) for r in population()]
    for start in range(0, len(changes), 500):
        await store.commit(changes[start : start + 500])
    yield store
    await mongo.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resource_type", "text"),
    [
        pytest.param(kind, text, id=f"{kind}?{text}".replace("{s}|", ""))
        for kind, texts in COMBINATIONS.items()
        for text in texts
    ],
)
async def test_combination_is_served_by_an_index(
    populated: Store, resource_type: str, text: str
) -> None:
    pairs = [part.partition("=")[::2] for part in text.format(s=SYSTEM).split("&")]
    query = parse(resource_type, pairs, lenient=False, settings=Settings())
    plans = await explain(populated, query, page.filters(query))
    assert sum(plan.returned for plan in plans) > 0, "the data set has rows for every combination"
    for plan in plans:
        assert "COLLSCAN" not in plan.stages
        assert plan.indexes
    examined = sum(plan.keys_examined for plan in plans)
    returned = sum(plan.returned for plan in plans)
    assert examined <= 20 * max(returned, 10)


async def test_explain_shows_the_plan_where_the_setting_allows(populated: Store) -> None:
    settings = Settings(search_explain=True)
    query = parse(
        "Encounter", [("patient", "7"), ("_explain", "true")], lenient=False, settings=settings
    )
    bundle = json.loads(
        await page.search_type(populated, query, await walk(populated, "Encounter", query.used))
    )
    *matches, outcome = bundle["entry"]
    assert outcome["search"]["mode"] == "outcome"
    (issue,) = outcome["resource"]["issue"]
    assert issue["severity"] == "information"
    shown = issue["diagnostics"]
    for part in ("index terms", '{"terms": "subject=Patient/7"}', f"{len(matches)} rows", "IXSCAN"):
        assert part in shown
    with pytest.raises(BadRequest, match="_explain"):
        parse("Encounter", [("_explain", "true")], lenient=True, settings=Settings())


async def test_explain_counts_the_row_that_tells_of_a_next_page(populated: Store) -> None:
    count = PER_PATIENT - 1
    pairs = [("patient", "7"), ("_count", str(count))]
    query = parse("Encounter", pairs, lenient=False, settings=Settings())
    (plan,) = await explain(populated, query, page.filters(query))
    assert plan.returned == count + 1


async def test_the_times_of_a_page_are_read_without_their_zone(populated: Store) -> None:
    """Which is UTC for all of them: decoding a page takes a third less time."""
    pairs = [("patient", "7"), ("_sort", "_lastUpdated")]
    query = parse("Encounter", pairs, lenient=False, settings=Settings())
    rows = await page.first_rows(populated, query)
    assert len(rows) == PER_PATIENT
    assert {row["at"].tzinfo for row in rows} == {None}
