"""Criteria that lead through other resources, on a real database: chains, `_has`, absolute references."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search.extract import extract
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.matching import criteria as criteria_
from app.subscriptions.matching.criteria import demanded
from app.subscriptions.matching.criteria_index import CriteriaIndex
from app.subscriptions.matching.match_context import MatchContext
from tests.builders.subscriptions import encounter
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo
BASE = "https://hub.example/fhir"
SETTINGS = Settings(base_url=BASE)
PATIENT = {
    "resourceType": "Patient",
    "generalPractitioner": [{"reference": "Organization/practice"}],
    "name": [{"family": "Okafor"}],
    "birthDate": "1941-05-17",
}
PRACTICE = {
    "resourceType": "Organization",
    "partOf": {"reference": f"{BASE}/Organization/network"},
    "type": [{"coding": [{"system": "urn:kinds", "code": "prov"}]}],
}
CONDITION = {
    "resourceType": "Condition",
    "code": {"coding": [{"system": "http://snomed.info/sct", "code": "84114007"}]},
    "subject": {"reference": "Patient/p1"},
}
GROUP = {
    "resourceType": "Group",
    "type": "person",
    "actual": True,
    "member": [{"entity": {"reference": "Patient/p1"}}],
}


class CountingStore:
    """A store that counts what is asked of it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if name == "find":
            self.asked += 1
        return found


@pytest.fixture(scope="module")
async def filled(mongod: str) -> AsyncIterator[Store]:
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    resources: dict[str, dict[str, Any]] = {
        "p1": PATIENT,
        "practice": PRACTICE,
        "c1": CONDITION,
        "g1": GROUP,
    }
    for id_, resource in resources.items():
        kind = str(resource["resourceType"])
        await store.commit([Change("create", kind, id_, dict(resource))])
    yield store
    await mongo.close()


def stay(store: Any, **more: Any) -> MatchContext:
    resource = {"id": "e1", **encounter(**more)}
    return MatchContext(store, BASE, "Encounter", extract("Encounter", resource))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("patient.general-practitioner=Organization/practice", True, id="one-step"),
        pytest.param("patient.general-practitioner=practice", True, id="bare-id"),
        pytest.param("patient.general-practitioner=Organization/other", False, id="another"),
        pytest.param("subject:Patient.general-practitioner=practice", True, id="typed"),
        pytest.param("subject:Group.identifier=practice", False, id="other-type"),
        pytest.param(
            "patient.general-practitioner:Organization.partof=Organization/network",
            True,
            id="two-steps-and-our-own-base",
        ),
        pytest.param(
            "patient.general-practitioner:Organization.type=urn:kinds|prov", True, id="token"
        ),
        pytest.param("patient.family=oka", True, id="beginning-of-a-string"),
        pytest.param("patient.family=smith", False, id="another-string"),
        pytest.param("patient.birthdate=lt1950", True, id="date"),
        pytest.param("patient._id=p1", True, id="id"),
        pytest.param("patient._has:Condition:patient:code=84114007", True, id="has"),
        pytest.param("patient._has:Condition:patient:code=1", False, id="has-not"),
        pytest.param("patient._has:Group:member:_id=g1", True, id="member-of-a-group"),
        pytest.param("patient._has:Group:member:_id=g2", False, id="not-of-another"),
        pytest.param("patient.family=oka&class=EMER", False, id="and"),
        pytest.param("patient=Patient/p1", True, id="relative"),
        pytest.param(f"patient={BASE}/Patient/p1", True, id="absolute"),
        pytest.param("_id=e1", True, id="own-id"),
        pytest.param("_id=e2", False, id="not-own-id"),
    ],
)
async def test_criteria_through_other_resources(filled: Store, text: str, expected: bool) -> None:
    compiled = criteria_.classic(f"Encounter?{text}", SETTINGS)
    index = CriteriaIndex(SETTINGS, {"s": compiled}.get)
    index.add("s", compiled)
    for subject in ("Patient/p1", f"{BASE}/Patient/p1"):
        facts = stay(filled, subject={"reference": subject})
        assert await index.matching("Encounter", facts, ()) == (["s"] if expected else [])


async def test_many_practices_cost_one_look_along_the_chain(filled: Store) -> None:
    """Each subscribes to the stays of its own patients."""
    known = {
        f"s{number}": criteria_.classic(
            f"Encounter?patient.general-practitioner=Organization/o{number}", SETTINGS
        )
        for number in range(200)
    }
    known["mine"] = criteria_.classic(
        "Encounter?patient.general-practitioner=Organization/practice", SETTINGS
    )
    index = CriteriaIndex(SETTINGS, known.get)
    for name, compiled in known.items():
        index.add(name, compiled)
    counting = CountingStore(filled)
    facts = stay(counting)
    assert await index.candidates("Encounter", facts) == {"mine"}
    assert await index.matching("Encounter", facts, ()) == ["mine"]
    assert counting.asked == 1
    for name in list(known):
        index.remove(name, known.pop(name))
    unasked = CountingStore(filled)
    assert await index.candidates("Encounter", stay(unasked)) == set()
    assert unasked.asked == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("class=IMP", ("class=IMP",), id="token"),
        pytest.param("patient=p1", ("subject=Patient/p1",), id="reference"),
        pytest.param("_id=a,b", ("_id=a", "_id=b"), id="ids"),
        pytest.param("class:not=IMP", None, id="negated"),
        pytest.param("date=2026", None, id="date"),
        pytest.param(
            "patient.organization=o1",
            (">patient>Patient>organization=Organization/o1",),
            id="chained",
        ),
        pytest.param("patient.family=oka", None, id="chained-to-a-beginning"),
    ],
)
def test_the_terms_that_a_parameter_demands(text: str, expected: tuple[str, ...] | None) -> None:
    name, _, value = text.partition("=")
    found = criteria_.condition("Encounter", (name, value), SETTINGS)
    assert demanded(found, BASE) == expected


async def test_a_chain_is_followed_as_things_are_at_that_moment(filled: Store) -> None:
    compiled = criteria_.classic("Encounter?patient.general-practitioner=practice", SETTINGS)
    index = CriteriaIndex(SETTINGS, {"s": compiled}.get)
    assert await index.holds(compiled, stay(filled), ())
    previous = await filled.read("Patient", "p1")
    assert previous is not None
    moved = {**PATIENT, "generalPractitioner": [{"reference": "Organization/other"}]}
    await filled.commit([Change("update", "Patient", "p1", moved, previous)])
    assert not await index.holds(compiled, stay(filled), ())
