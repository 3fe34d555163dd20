"""The store as far as it is about some patients: every way to read it, with others' records beside theirs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from app.authentication.caller import SERVER
from app.authorization.subject_store import SubjectStore
from app.context import Context
from app.errors import Forbidden
from app.fhir.ids import new_id
from app.interactions import interactions
from app.records.reader import ResourceStore
from app.records.versions import HistoryRange
from app.store.store import Store
from tests.builders.practices import ref
from tests.conftest import Server

pytestmark = pytest.mark.mongo
Resource = dict[str, Any]


class Ward:
    """Two patients, with records of the one, of the other, of both and of nobody."""

    def __init__(self, server: Server, client: httpx.AsyncClient) -> None:
        self.n = new_id()
        self.client = client
        self.one, self.other = f"Patient/one-{self.n}", f"Patient/other-{self.n}"
        self.mark = {"coding": [{"system": "urn:ward", "code": self.n}]}
        self.whole = Context(server.services, SERVER, "")
        self.about = self.whole.about([self.one])

    @property
    def marked(self) -> dict[str, str]:
        """The filter on what is of this ward."""
        return {"terms": f"code=urn:ward|{self.n}"}

    @property
    def visits(self) -> dict[str, str]:
        return {"terms": f"service-type=urn:ward|{self.n}"}

    async def put(self, type_: str, id_: str, **elements: Any) -> str:
        resource = {"resourceType": type_, "id": f"{id_}-{self.n}", **elements}
        answer = await self.client.put(f"/{type_}/{resource['id']}", json=resource)
        assert answer.status_code in (200, 201), answer.text
        return f"{type_}/{resource['id']}"

    async def condition(self, id_: str, patient: str) -> str:
        return await self.put("Condition", id_, subject=ref(patient), code=self.mark)

    async def visit(self, id_: str, *patients: str) -> str:
        there = [{"actor": ref(each), "status": "accepted"} for each in patients]
        more: Resource = {"status": "proposed", "serviceType": [self.mark], "participant": there}
        return await self.put("Appointment", id_, **more)


@pytest.fixture
async def ward(server: Server, client: httpx.AsyncClient) -> Ward:
    found = Ward(server, client)
    for each in (found.one, found.other):
        assert (await client.put(f"/{each}", json=_patient(each))).status_code == 201
    return found


def _patient(reference: str) -> Resource:
    return {"resourceType": "Patient", "id": reference.partition("/")[2]}


def key(reference: str) -> tuple[str, str]:
    type_, _, id_ = reference.partition("/")
    return type_, id_


async def by_id(store: ResourceStore, *references: str) -> set[str]:
    """Those that are there, by every way that takes an id; all ways agree."""
    many = set(await store.read_many([key(each) for each in references]))
    alone = {each for each in references if await store.read(*key(each)) is not None}
    pinned = {each for each in references if await store.vread(*key(each), 1) is not None}
    past = {each for each in references if await store.history(HistoryRange(*key(each)), 10) != []}
    assert many == alone == pinned == past
    return many


async def by_search(store: ResourceStore, type_: str, filter_: dict[str, Any]) -> set[str]:
    """Those that every kind of search finds; all kinds agree."""
    found = {each.reference for each in await store.search(type_, filter_, 0)}
    rows = await store.find(type_, filter_, projection={"_id": 1})
    (together,) = await store.find_together([(type_, filter_, {"_id": 1})])
    batched = []
    async with store.batches(type_, filter_, projection={"_id": 1}) as read:
        while some := await read(1):
            batched += some
    for each in (rows, together, batched):
        assert {f"{type_}/{row['_id']}" for row in each} == found
    assert await store.count(type_, filter_) == len(found)
    return found


async def test_what_is_about_others_is_not_there(ward: Ward) -> None:
    store = ward.about.store
    mine, theirs = await ward.condition("a", ward.one), await ward.condition("b", ward.other)
    practice = await ward.put("Organization", "o", name="A practice")
    nobodys = await ward.put("Task", "t", status="requested", intent="order")
    every = (mine, theirs, practice, nobodys, ward.one, ward.other)
    assert await by_id(store, *every) == {mine, practice, ward.one}
    assert await by_search(store, "Condition", ward.marked) == {mine}
    assert await by_search(store, "Patient", {"terms": {"$exists": True}}) == {ward.one}
    # What it owns it may read, though it is about nobody; what is about others it cannot own.
    owning = ward.about.owning(nobodys).owning(theirs).store
    assert await by_id(owning, nobodys, theirs) == {nobodys}


async def test_what_is_about_others_besides_is_not_there(ward: Ward) -> None:
    """Those that come first in a search take nobody's place."""
    shared = [await ward.visit(f"{n}", ward.one, ward.other) for n in range(3)]
    mine = await ward.visit("9", ward.one)
    assert await by_id(ward.about.store, mine, *shared) == {mine}
    assert await by_search(ward.about.store, "Appointment", ward.visits) == {mine}
    found = await ward.about.store.search("Appointment", ward.visits, 1, sort=[("_id", 1)])
    assert [each.reference for each in found] == [mine]
    both = ward.whole.about([ward.one, ward.other])
    assert await by_search(both.store, "Appointment", ward.visits) == {mine, *shared}


async def test_a_version_counts_by_what_it_says_itself(ward: Ward) -> None:
    """Of a record that was another patient's the versions of then are that one's."""
    moved = await ward.condition("m", ward.other)
    assert await ward.condition("m", ward.one) == moved
    store = ward.about.store
    assert await store.vread(*key(moved), 1) is None
    assert [each.version for each in await store.history(HistoryRange(*key(moved)), 9)] == [2]
    assert (await ward.client.delete(f"/{moved}")).status_code == 204
    gone = await store.read(*key(moved))
    assert gone is not None
    assert gone.deleted


async def test_memberships_are_the_patients_own(ward: Ward) -> None:
    members = [{"entity": ref(ward.one)}, {"entity": ref(ward.other)}]
    group = await ward.put("Group", "g", type="person", actual=True, member=members)
    store = ward.about.store
    rows = await store.find("group_members", {"_id.g": key(group)[1]})
    assert [row["_id"]["m"] for row in rows] == [f"member={ward.one}"]
    assert await store.read(*key(group)) is None
    assert await by_search(store, "Group", {"terms": {"$exists": True}}) == set()


async def test_a_limited_context_is_only_ever_limited_further(ward: Ward) -> None:
    theirs = await ward.condition("b", ward.other)
    widened = ward.about.about([ward.one, ward.other])
    assert await by_id(widened.store, theirs, ward.one) == {ward.one}
    assert await by_id(widened.about([ward.other]).store, theirs, ward.one) == set()


async def test_what_is_written_is_about_the_patients_too(ward: Ward) -> None:
    theirs = await ward.condition("b", ward.other)
    mine: Resource = {"resourceType": "Condition", "id": key(theirs)[1], "subject": ref(ward.one)}
    new: Resource = {"resourceType": "Condition", "id": f"new-{ward.n}", "subject": ref(ward.other)}
    for resource in (mine, new):
        with pytest.raises(Forbidden):
            await interactions.update(ward.about, "Condition", resource["id"], resource)
    new["subject"] = ref(ward.one)
    assert (await interactions.update(ward.about, "Condition", new["id"], new)).status == 201


def test_it_judges_by_every_method_of_the_store() -> None:
    """What it would inherit, it has not judged."""
    public = {
        name for name, value in vars(Store).items() if not name.startswith("_") and callable(value)
    }
    assert public - vars(SubjectStore).keys() == {"prepare", "reindex"}
