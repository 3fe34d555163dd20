"""No record hangs on the wrong person: random Bundles against an oracle written over bundle.html#references.

https://hl7.org/fhir/R4/bundle.html#references, docs/decisions/0032-references-of-bundles.md. The oracle knows people,
not targets: each Patient of a Bundle and of ours is somebody, and each Encounter is somebody's by the specification.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.builders.bundles import bundle, entry, identified, visit
from tests.conftest import BASE

NORTH, SOUTH, URN = "https://north.example/fhir", "https://south.example/fhir", "urn:uuid:"
ROOTS = (NORTH, SOUTH, BASE, URN, None)
# Ids that every server has given: to somebody of ours the first two, and the last to nobody here.
IDS = ("1", "2", "3")
REFUSED = "refused"


@dataclass(frozen=True)
class Person:
    """A Patient entry: somebody, under an id of the source's, sent by one of the methods."""

    name: str
    root: str | None
    id: str
    method: str

    def full_url(self, token: str) -> str | None:
        return _full_url(self.root, "Patient", f"{token}-{self.id}", self.name)


@dataclass(frozen=True)
class Stay:
    """An Encounter entry, and how it refers to its patient: by a root and an id, relative where there is no root."""

    number: str
    root: str | None
    to_root: str | None
    to_id: str
    to_urn: int
    version: str

    def full_url(self, token: str) -> str | None:
        return _full_url(self.root, "Encounter", f"{token}-{self.number}", self.number)

    def reference(self, token: str, people: list[Person]) -> str:
        if self.to_root == URN:
            named = [each.full_url(token) for each in people if each.root == URN]
            if named:
                return str(named[self.to_urn % len(named)])
        place = f"Patient/{token}-{self.to_id}{self.version}"
        return place if self.to_root in (None, URN) else f"{self.to_root}/{place}"


def _full_url(root: str | None, type_: str, id_: str, name: str) -> str | None:
    if root is None:
        return None
    if root == URN:
        return f"{URN}{uuid.uuid5(uuid.NAMESPACE_URL, f'{id_}{name}')}"
    return f"{root}/{type_}/{id_}"


_ROOT = st.sampled_from(ROOTS)
_METHOD = st.sampled_from(["POST", "If-None-Exist", "known", "PUT", "PUT?"])
_PERSON = st.tuples(_ROOT, st.sampled_from(IDS), _METHOD)
_VERSION = st.sampled_from(["", "", "/_history/1"])
_STAY = st.tuples(_ROOT, _ROOT, st.sampled_from(IDS), st.integers(0, 3), _VERSION)


@st.composite
def exports(draw: st.DrawFn) -> tuple[str, list[Person], list[Stay], list[int]]:
    people = [
        Person(f"person-{number}", *each)
        for number, each in enumerate(
            draw(st.lists(_PERSON, max_size=4, unique_by=lambda each: each[:2]))
        )
    ]
    stays = [
        Stay(f"stay-{number}", *each)
        for number, each in enumerate(draw(st.lists(_STAY, min_size=1, max_size=4)))
    ]
    order = draw(st.permutations(range(len(people) + len(stays))))
    return draw(st.sampled_from(["transaction", "transaction", "batch"])), people, stays, order


def whose(token: str, kind: str, people: list[Person], stays: list[Stay], stay: Stay) -> str:
    """Whose a stay is: a name, the absolute URL of somebody elsewhere, or REFUSED."""
    reference = stay.reference(token, people)
    current = reference.partition("/_history/")[0]

    def entered(named: list[Person]) -> str:
        if len(named) != 1:
            return REFUSED  # nobody can tell which
        # A batch has no interdependencies: only what keeps the id that the request gives can be referred to.
        return REFUSED if kind == "batch" and named[0].method != "PUT" else named[0].name

    by_url = [each for each in people if each.full_url(token) == current]
    if current.startswith(URN):
        return entered(by_url)
    if current.startswith((NORTH, SOUTH)):
        return entered(by_url) if by_url else reference
    if current.startswith(BASE):
        return entered(by_url) if by_url else ours(token, stay)
    if stay.root in (NORTH, SOUTH):
        absolute = f"{stay.root}/{current}"
        by_url = [each for each in people if each.full_url(token) == absolute]
        return entered(by_url) if by_url else f"{stay.root}/{reference}"
    # No foreign root. An update without a fullUrl has its new id or none, by which nothing here refers to it.
    here = [
        each
        for each in people
        if each.full_url(token) == f"{BASE}/{current}"
        or (each.root is None and not each.method.startswith("PUT") and each.id == stay.to_id)
    ]
    theirs = [each for each in people if each.root in (NORTH, SOUTH) and each.id == stay.to_id]
    if theirs and stay.root != BASE:
        return REFUSED
    if here:
        return entered(here)
    roots = {each.root for each in people} | {each.root for each in stays}
    if stay.root is None and roots & {NORTH, SOUTH}:
        return REFUSED
    return ours(token, stay)


def ours(token: str, stay: Stay) -> str:
    return f"ours-{stay.to_id}" if stay.to_id != "3" else f"Patient/{token}-3{stay.version}"


def entries(token: str, people: list[Person], stays: list[Stay]) -> Iterator[dict[str, Any]]:
    for each in people:
        value, id_ = f"{token}-{each.name}", f"{token}-{each.id}"
        body, criteria = identified(value, id=id_), f"identifier=urn:test|{value}"
        match each.method:
            case "POST":
                yield entry("POST", "Patient", body, each.full_url(token))
            case "If-None-Exist" | "known":
                yield entry("POST", "Patient", body, each.full_url(token), ifNoneExist=criteria)
            case "PUT":
                id_ = f"{token}-n-{each.name}"
                yield entry("PUT", f"Patient/{id_}", {**body, "id": id_}, each.full_url(token))
            case _:
                # An id would have to be free here, and is not what names it in the Bundle.
                del body["id"]
                yield entry("PUT", f"Patient?{criteria}", body, each.full_url(token))
    for stay in stays:
        number = f"{token}-{stay.number}"
        body = visit(stay.reference(token, people), number, id=number)
        yield entry("POST", "Encounter", body, stay.full_url(token))


async def check(
    client: httpx.AsyncClient, export: tuple[str, list[Person], list[Stay], list[int]]
) -> None:
    kind, people, stays, order = export
    token = uuid.uuid4().hex[:12]
    known = [(f"{token}-{id_}", f"{token}-ours-{id_}") for id_ in IDS[:2]]
    known += [
        (f"{token}-k-{each.name}", f"{token}-{each.name}")
        for each in people
        if each.method == "known"
    ]
    puts = [entry("PUT", f"Patient/{id_}", identified(value, id=id_)) for id_, value in known]
    (await client.post("", json=bundle(*puts))).raise_for_status()

    made = list(entries(token, people, stays))
    answer = await client.post("", json=bundle(*(made[i] for i in order), type=kind))
    expected = {each.number: whose(token, kind, people, stays, each) for each in stays}
    if kind == "transaction" and REFUSED in expected.values():
        assert answer.status_code == 422, answer.text
        expected = dict.fromkeys(expected, REFUSED)
    else:
        assert answer.status_code == 200, answer.text

    query = ",".join(f"urn:visit|{token}-{each.number}" for each in stays)
    found = await client.get(f"/Encounter?identifier={query}&_include=Encounter:subject&_count=50")
    resources = [each["resource"] for each in found.json().get("entry", ())]
    names = {
        f"Patient/{each['id']}": each["identifier"][0]["value"].removeprefix(f"{token}-")
        for each in resources
        if each["resourceType"] == "Patient"
    }
    actual = dict.fromkeys(expected, REFUSED)
    for each in resources:
        if each["resourceType"] == "Encounter":
            number = each["identifier"][0]["value"].removeprefix(f"{token}-")
            reference = each["subject"]["reference"]
            actual[number] = names.get(reference.partition("/_history/")[0], reference)
    assert actual == expected, made


_WAY = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@pytest.mark.slow
@given(exports())
@settings(max_examples=20, **_WAY)  # type: ignore[arg-type]
async def test_no_record_hangs_on_the_wrong_person(
    client: httpx.AsyncClient, export: tuple[str, list[Person], list[Stay], list[int]]
) -> None:
    await check(client, export)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@given(exports())
@settings(max_examples=2_000, **_WAY)  # type: ignore[arg-type]
async def test_no_record_ever_hangs_on_the_wrong_person(
    client: httpx.AsyncClient, export: tuple[str, list[Person], list[Stay], list[int]]
) -> None:
    await check(client, export)
