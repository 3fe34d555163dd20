"""Whose word counts about consent: organizations and a consent authority, each trying what is not its own to say."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.authentication.scopes import CONSENT_AUTHORITY
from app.fhir.codes import PART_2_DISCLOSURE, PROVIDER_ACCESS, REVIEW_REASON
from app.fhir.ids import new_id
from tests.builders.access_world import (
    EVERYTHING,
    Registered,
    World,
    condition,
    coverage,
    encounter,
    security,
    world as a_world,
)
from tests.builders.consents import actor, consent, deny, label, permit
from tests.builders.practices import organization, patient, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import topic_based
from tests.conftest import BASE
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
Resource = dict[str, Any]
JSON_PATCH = {"content-type": "application/json-patch+json"}
SUD = security("SUD")["security"]
TEXT = {"text": "Decision"}
AS_DOCUMENTED = re.findall(
    r"--role consent-authority .*?--scopes '([^']+)'",
    Path("docs/smart.md").read_text("utf-8"),
    re.DOTALL,
)


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, base_url=BASE) as found:
        registry = Registered(
            "Organization/registry", "consent-authority", (*EVERYTHING, CONSENT_AUTHORITY)
        )
        found.authority.known["registry"] = registry
        await found.put("admin", organization("registry"))
        yield found


class Person:
    """A patient of north's whom general treats, plan-a covers and the agency knows; general made a labelled record."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.id = new_id()
        self.record = f"sud-{self.id}"

    async def arrive(self) -> None:
        await self.world.put(
            "admin",
            patient(self.id, ref("PractitionerRole/role-n")),
            encounter(f"e-{self.id}", self.id, "general"),
            encounter(f"ec-{self.id}", self.id, "city"),
            coverage(f"v-{self.id}", self.id, "plan-a"),
        )
        await self.world.put("general", self.labelled(self.record))

    def labelled(self, id_: str, **more: Any) -> Resource:
        return condition(id_, self.id, meta={"security": SUD}, **more)

    def permission(self, to: str | None = "Organization/north", **more: Any) -> Resource:
        """For content of 42 CFR Part 2."""
        rule = permit(securityLabel=label("42CFRPart2"))
        if to is not None:
            rule["actor"] = actor(to)
        return self.consent(PART_2_DISCLOSURE, provision=rule, **more)

    def consent(self, *categories: str, **more: Any) -> Resource:
        subject = ref(f"Patient/{self.id}")
        own: Resource = {"id": new_id(), "patient": subject, "policyRule": {"text": "Policy"}}
        return {**consent(*categories), **own, **more}

    async def says(self, who: str, given: Resource) -> None:
        await self.world.put(who, given)

    async def sees(self, who: str, reference: str | None = None) -> bool:
        answer = await self.world.get(who, f"/{reference or f'Condition/{self.record}'}")
        assert answer.status_code in (200, 404), answer.text
        return answer.status_code == 200

    async def tasks(self) -> list[str]:
        """The statuses of what asks somebody to decide on a proposal."""
        await self.world.server.engine.drain()
        code = f"{REVIEW_REASON}|proposed-consent"
        url = f"/Task?patient=Patient/{self.id}&code={code}"
        found = (await self.world.get("admin", url)).json().get("entry", [])
        return [each["resource"]["status"] for each in found]


@pytest.fixture
async def person(world: World) -> Person:
    found = Person(world)
    await found.arrive()
    return found


def ways(given: Resource) -> list[tuple[str, str, Any, dict[str, str]]]:
    """Every way to make a Consent: method, URL, body and headers."""
    url, nameless = f"/Consent/{given['id']}", {k: v for k, v in given.items() if k != "id"}
    criteria = f"patient={given['patient']['reference']}&status=draft"
    request = {"method": "PUT", "url": url[1:]}
    found: list[tuple[str, str, Any, dict[str, str]]] = [
        ("POST", "/Consent", nameless, {}),
        ("PUT", url, given, {}),
        ("POST", "/Consent", nameless, {"If-None-Exist": criteria}),
        ("PUT", f"/Consent?{criteria}", nameless, {}),
    ]
    entry = [{"request": request, "resource": given}]
    return [
        *found,
        *(
            ("POST", "/", {"resourceType": "Bundle", "type": kind, "entry": entry}, {})
            for kind in ("batch", "transaction")
        ),
    ]


# Permissions


@pytest.mark.parametrize(
    "to",
    [
        "Organization/north",
        "Organization/north/_history/1",
        f"{BASE}/Organization/north",
        "PractitionerRole/role-n",
        "Practitioner/dr-n",
    ],
)
async def test_nobody_permits_itself_to_have_what_is_labelled(person: Person, to: str) -> None:
    for method, url, body, headers in ways(person.permission(to)):
        answer = await person.world.ask("north", method, url, body, headers=headers)
        if answer.status_code == 200:
            answer_of_batch = answer.json()["entry"][0]["response"]
            assert answer_of_batch["status"].startswith("403"), answer.text
        else:
            outcome = assert_outcome(answer, 403, "forbidden", "Consent.provision")
            assert "proposed" in outcome["issue"][0]["diagnostics"]
    assert not await person.sees("north")
    assert await person.world.found("admin", f"/Consent?patient=Patient/{person.id}") == []


async def test_a_permission_opens_what_its_writer_has_made(person: Person) -> None:
    of_city = f"city-{person.id}"
    await person.says("city", person.labelled(of_city))
    await person.says("general", person.permission())
    assert await person.sees("north")
    assert not await person.sees("north", f"Condition/{of_city}")
    # For everybody is for everybody else.
    await person.says("city", person.permission(to=None))
    assert await person.sees("north", f"Condition/{of_city}")


async def test_a_permission_for_everybody_is_none_for_its_writer(person: Person) -> None:
    own = f"own-{person.id}"
    await person.says("north", person.labelled(own))
    # By name it is refused, to who has custody of such a record too.
    answer = await person.world.ask("north", "POST", "/Consent", person.permission())
    outcome = assert_outcome(answer, 403, "forbidden", "Consent.provision")
    assert "never by its recipient" in outcome["issue"][0]["diagnostics"]
    await person.says("north", person.permission(to=None))
    assert await person.sees("plan-a", f"Condition/{own}")
    assert not await person.sees("north")


@pytest.mark.parametrize("to", ["Organization/south", None])
async def test_who_made_nothing_of_it_permits_nothing(person: Person, to: str | None) -> None:
    for who in ("north", "plan-a"):
        answer = await person.world.ask(who, "POST", "/Consent", person.permission(to))
        assert_outcome(answer, 403, "forbidden", "Consent.provision")


async def test_where_nothing_is_refused_a_permission_opens_nothing_and_anybody_records_it(
    person: Person,
) -> None:
    """The plan has made no record: it tells what the patient agreed to, but takes no refusal back."""
    given = person.consent(provision=permit(actor=actor("Organization/south")))
    answer = await person.world.ask("plan-a", "POST", "/Consent", given)
    assert answer.status_code == 201, answer.text
    await person.says("registry", person.consent(provision=deny()))
    answer = await person.world.ask("plan-a", "POST", "/Consent", given)
    outcome = assert_outcome(answer, 403, "forbidden", "Consent.provision")
    assert "has none of them" in outcome["issue"][0]["diagnostics"]


async def test_a_consent_authority_permits_what_it_likes(person: Person) -> None:
    given = person.permission()
    without = await person.world.ask("registry", "POST", "/Consent", given, scopes=EVERYTHING[0])
    assert_outcome(without, 403, "forbidden", "Consent.provision")
    await person.says("registry", given)
    assert await person.sees("north")
    # It is the authority's now, whoever has recorded it first.
    mine = person.permission("Organization/south")
    await person.says("general", mine)
    await person.says("registry", mine | {"dateTime": "2026-01-02"})
    answer = await person.world.ask("general", "DELETE", f"/Consent/{mine['id']}")
    assert_outcome(answer, 403, "forbidden")


async def test_a_proposal_counts_for_nothing_until_the_authority_has_decided(
    person: Person,
) -> None:
    given = person.permission(status="proposed")
    await person.says("north", given)
    assert not await person.sees("north")
    assert await person.tasks() == ["requested"]
    by_itself = given | {"status": "active"}
    answer = await person.world.ask("north", "PUT", f"/Consent/{given['id']}", by_itself)
    assert_outcome(answer, 403, "forbidden", "Consent.provision")
    remains = [{"op": "replace", "path": "/status", "value": "active"}]
    answer = await person.world.ask(
        "north", "PATCH", f"/Consent/{given['id']}", remains, headers=JSON_PATCH
    )
    assert_outcome(answer, 403, "forbidden", "Consent.provision")
    assert await person.tasks() == ["requested"]
    await person.says("registry", by_itself)
    assert await person.sees("north")
    assert await person.tasks() == ["completed"]


async def test_a_proposal_that_is_withdrawn_asks_nobody_any_more(person: Person) -> None:
    given = person.permission(status="proposed")
    await person.says("north", given)
    assert await person.tasks() == ["requested"]
    answer = await person.world.ask("north", "DELETE", f"/Consent/{given['id']}")
    assert answer.status_code == 204, answer.text
    assert await person.tasks() == ["completed"]


@pytest.mark.parametrize(
    "to",
    [
        "https://other.example/fhir/Organization/north",
        "http://carerelay.test/other/Organization/north",
        "Practitioner/north",
        "urn:uuid:0c3151bd-1cbf-4d64-b04d-cd9187a4c6e0",
    ],
)
async def test_only_the_same_reference_is_the_same_recipient(person: Person, to: str) -> None:
    await person.says("registry", person.permission(to))
    assert not await person.sees("north")
    await person.says("registry", person.permission(f"{BASE}/Organization/north"))
    assert await person.sees("north")


# Refusals


async def test_a_date_to_come_overrides_no_refusal(person: Person) -> None:
    await person.says("general", person.permission(dateTime="2099-01-01"))
    assert await person.sees("north")
    refusal = deny(securityLabel=label("42CFRPart2"))
    later = person.consent(PART_2_DISCLOSURE, provision=refusal, dateTime="2098-01-01")
    await person.says("registry", later)
    assert not await person.sees("north")


async def test_who_is_refused_does_not_undo_it(person: Person) -> None:
    await person.says("registry", person.consent(provision=deny()))
    assert not await person.sees("north", f"Patient/{person.id}")
    # Neither by name, nor by a permission for everybody: its own does not count for itself.
    for rule in (permit(actor=actor("Organization/general")), permit()):
        given = person.consent(provision=rule, dateTime="2099-01-01")
        await person.world.ask("general", "POST", "/Consent", given)
        await person.world.ask("city", "POST", "/Consent", given)
    assert not await person.sees("north", f"Patient/{person.id}")
    assert not await person.sees("plan-a", f"Patient/{person.id}")


def undoings(given: Resource) -> list[tuple[str, str, Any, dict[str, str]]]:
    """Ways to take a refusal back, in part or altogether."""
    url = f"/Consent/{given['id']}"
    narrower = given["provision"] | {"period": {"end": "2026-02-01"}}
    excepted = given["provision"] | {"provision": [permit(actor=actor("Organization/south"))]}
    whole = {"request": {"method": "DELETE", "url": url[1:]}}
    transaction = {"resourceType": "Bundle", "type": "transaction", "entry": [whole]}
    inactive = [{"op": "replace", "path": "/status", "value": "inactive"}]
    return [
        ("DELETE", url, None, {}),
        ("PUT", url, given | {"status": "inactive"}, {}),
        ("PUT", url, given | {"status": "entered-in-error"}, {}),
        ("PUT", url, given | {"provision": narrower}, {}),
        ("PUT", url, given | {"provision": excepted}, {}),
        ("PUT", url, given | {"provision": permit()}, {}),
        ("PUT", url, given | {"dateTime": "2020-01-01"}, {}),
        ("PATCH", url, inactive, JSON_PATCH),
        ("DELETE", f"/Consent?_id={given['id']}", None, {}),
        ("POST", "/", transaction, {}),
    ]


async def test_a_refusal_is_taken_back_by_a_consent_authority_alone(person: Person) -> None:
    given = person.consent(provision=deny(actor=actor("Organization/general")))
    await person.says("general", given)
    for who in ("general", "city"):
        for method, url, body, headers in undoings(given):
            answer = await person.world.ask(who, method, url, body, headers=headers)
            # From the other hospital it is hidden, and to delete what is absent is no error.
            assert answer.status_code == 403 or who == "city", (method, url, answer.text)
    left = (await person.world.get("admin", f"/Consent/{given['id']}")).json()
    assert left["meta"]["versionId"] == "1"
    answer = await person.world.ask("registry", "DELETE", f"/Consent/{given['id']}")
    assert answer.status_code == 204, answer.text
    # Who had recorded it does not bring it back in other words.
    again = given | {"provision": permit()}
    answer = await person.world.ask("general", "PUT", f"/Consent/{given['id']}", again)
    assert_outcome(answer, 403, "forbidden")


@pytest.mark.parametrize("who", ["general", "plan-a"])
async def test_a_refusal_that_binds_others_is_its_writers_to_take_back(
    person: Person, who: str
) -> None:
    given = person.consent(provision=deny(actor=actor("Organization/north")))
    await person.says(who, given)
    assert not await person.sees("north", f"Patient/{person.id}")
    answer = await person.world.ask(who, "DELETE", f"/Consent/{given['id']}")
    assert answer.status_code == 204, answer.text
    assert await person.sees("north", f"Patient/{person.id}")


async def test_a_refusal_that_a_practice_records_binds_no_plan(person: Person) -> None:
    await person.says("north", person.consent(provision=deny()))
    assert not await person.sees("north", f"Patient/{person.id}")
    assert await person.sees("plan-a", f"Patient/{person.id}")
    await person.says("registry", person.consent(provision=deny()))
    assert not await person.sees("plan-a", f"Patient/{person.id}")


async def test_it_keeps_no_notice_from_a_plan_either(person: Person, receiver: Receiver) -> None:
    whole = topic_based(content="full-resource", endpoint=f"{receiver.url}/plan")
    answer = await person.world.ask("plan-a", "POST", "/Subscription", whole)
    assert answer.status_code == 201, answer.text
    await person.world.server.worker.drain()
    await person.says("general", person.consent(provision=deny()))
    await person.says("general", encounter(new_id(), person.id, "general"))
    await person.world.server.worker.drain()
    (notice,) = receiver.events
    assert notice.json["entry"][1]["resource"]["subject"] == ref(f"Patient/{person.id}")
    await person.says("registry", person.consent(provision=deny()))
    await person.says("general", encounter(new_id(), person.id, "general"))
    await person.world.server.worker.drain()
    assert len(receiver.events) == 1


# Labels


def unlabellings(given: Resource) -> list[tuple[str, str, Any, dict[str, str]]]:
    """Ways to take a record's label away."""
    url = f"/Condition/{given['id']}"
    meta = {"name": "meta", "valueMeta": {"security": SUD}}
    remove = [{"op": "remove", "path": "/meta/security"}]
    other = [{"op": "replace", "path": "/meta/security/0/system", "value": "urn:another"}]
    return [
        ("POST", f"{url}/$meta-delete", {"resourceType": "Parameters", "parameter": [meta]}, {}),
        ("PATCH", url, remove, JSON_PATCH),
        ("PATCH", url, other, JSON_PATCH),
        (
            "POST",
            "/",
            {
                "resourceType": "Bundle",
                "type": "transaction",
                "entry": [
                    {
                        "request": {"method": "PATCH", "url": url[1:]},
                        "resource": {
                            "resourceType": "Parameters",
                            "parameter": [
                                {
                                    "name": "operation",
                                    "part": [
                                        {"name": "type", "valueCode": "delete"},
                                        {
                                            "name": "path",
                                            "valueString": "Condition.meta.security[0]",
                                        },
                                    ],
                                }
                            ],
                        },
                    }
                ],
            },
            {},
        ),
    ]


async def test_a_label_is_taken_away_by_who_made_the_record(person: Person) -> None:
    await person.says("registry", person.permission())
    given = person.labelled(person.record)
    for method, url, body, headers in unlabellings(given):
        answer = await person.world.ask("north", method, url, body, headers=headers)
        assert_outcome(answer, 403, "forbidden", "Condition.meta.security")
    # Neither by making it anew.
    answer = await person.world.ask("north", "DELETE", f"/Condition/{person.record}")
    assert answer.status_code == 204, answer.text
    plain = condition(person.record, person.id)
    assert (
        await person.world.ask("north", "PUT", f"/Condition/{person.record}", plain)
    ).status_code == 403
    await person.says("general", given)
    for method, url, body, headers in unlabellings(given):
        answer = await person.world.ask("general", method, url, body, headers=headers)
        assert answer.status_code == 200, answer.text
        await person.says("general", given)


@pytest.mark.parametrize("code", ["SUD", "R"])
async def test_who_may_read_a_labelled_record_may_add_to_it_under_its_label(
    person: Person, code: str
) -> None:
    """The words that it finds there are not its own to change, and no reason to refuse what it adds."""
    given = condition(new_id(), person.id, meta=security(code))
    await person.says("general", given)
    rule = permit(securityLabel=label(code), actor=actor("Organization/north"))
    await person.says("registry", person.consent(PART_2_DISCLOSURE, provision=rule))
    await person.says("registry", person.consent(provision=rule))
    added = given | {"note": [{"text": "Seen today"}]}
    await person.says("north", added)
    stored = (await person.world.get("admin", f"/Condition/{given['id']}")).json()
    assert stored["note"] == added["note"]
    assert stored["meta"]["security"] == security(code)["security"]


async def test_a_like_coding_of_another_system_is_not_the_label(person: Person) -> None:
    await person.says("registry", person.permission())
    given = person.labelled(person.record)
    url = f"/Condition/{person.record}"
    for like in ({"code": "SUD"}, {"system": "urn:oid:2.16.840.1.113883.5.4", "code": "SUD"}):
        added = given | {"meta": {"security": [SUD[0], like]}}
        await person.says("north", added)
        answer = await person.world.ask("north", "POST", f"{url}/$meta-delete", meta_of(SUD[0]))
        assert_outcome(answer, 403, "forbidden", "Condition.meta.security")
        instead = [{"op": "replace", "path": "/meta/security", "value": [like]}]
        answer = await person.world.ask("north", "PATCH", url, instead, headers=JSON_PATCH)
        assert_outcome(answer, 403, "forbidden", "Condition.meta.security")
    await person.says("general", given | {"note": [{"text": "Seen today"}]})


async def test_who_only_added_to_a_record_does_not_take_its_label_away(person: Person) -> None:
    made = person.labelled(new_id())
    await person.says("admin", made)
    await person.says("registry", person.permission())
    await person.says("north", made | {"note": [{"text": "Seen today"}]})
    method, url, body, headers = unlabellings(made)[0]
    answer = await person.world.ask("north", method, url, body, headers=headers)
    assert_outcome(answer, 403, "forbidden", "Condition.meta.security")


@pytest.mark.parametrize("label_", [SUD[0], security("V")["security"][0]], ids=["SUD", "V"])
async def test_nobody_hides_a_record_from_who_made_it(person: Person, label_: Any) -> None:
    plain = condition(new_id(), person.id)
    url = f"/Condition/{plain['id']}"
    await person.says("plan-a", plain)
    for method, at, body, headers in (
        ("PUT", url, plain | {"meta": {"security": [label_]}}, {}),
        ("POST", f"{url}/$meta-add", meta_of(label_), {}),
        ("PATCH", url, [{"op": "add", "path": "/meta/security", "value": [label_]}], JSON_PATCH),
    ):
        answer = await person.world.ask("north", method, at, body, headers=headers)
        assert_outcome(answer, 403, "forbidden", "Condition.meta.security")
    assert (await person.world.get("plan-a", url)).status_code == 200
    # Who made it may close it; the most confidential of all to itself as well.
    is_closed = label_["code"] == "V"
    await person.world.ask("plan-a", "POST", f"{url}/$meta-add", meta_of(label_))
    assert (await person.world.get("admin", url)).json()["meta"]["security"] == [label_]
    assert (await person.world.get("plan-a", url)).status_code == (404 if is_closed else 200)
    assert (await person.world.get("north", url)).status_code == 404
    # And a consent authority opens it again, as long as its token says that it is one.
    opening = ("POST", f"{url}/$meta-delete", meta_of(label_))
    without = await person.world.ask("registry", *opening, scopes=EVERYTHING[0])
    assert without.status_code == (404 if is_closed else 403)
    opened = await person.world.ask("registry", *opening)
    assert opened.status_code == 200, opened.text
    assert (await person.world.get("plan-a", url)).status_code == 200


async def test_who_made_a_record_reads_it_under_its_label(person: Person) -> None:
    """As long as its patient is its own, and as far as that one has not refused it; nobody else does so."""
    own, other = person.labelled(f"own-{person.id}"), f"Condition/{person.record}"
    place = f"Condition/{own['id']}"
    await person.says("north", own)
    assert await person.sees("north", place)
    assert await person.world.found("north", f"/Condition?patient={person.id}") == [place]
    assert not await person.sees("north", other)
    assert not await person.sees("plan-a", place)
    await person.says("north", own | {"note": [{"text": "Seen today"}]})
    answer = await person.world.ask("north", "POST", f"/{place}/$meta-delete", meta_of(SUD[0]))
    assert answer.status_code == 200, answer.text
    assert await person.sees("plan-a", place)
    await person.says("north", own)

    refusal = person.consent(PROVIDER_ACCESS, provision=deny())
    await person.says("registry", refusal)
    assert not await person.sees("north", place)
    await person.says("registry", refusal | {"status": "inactive"})
    assert await person.sees("north", place)
    await person.says("admin", patient(person.id, ref("PractitionerRole/role-s")))
    assert not await person.sees("north", place)


def meta_of(label_: Any) -> Resource:
    meta = {"name": "meta", "valueMeta": {"security": [label_]}}
    return {"resourceType": "Parameters", "parameter": [meta]}


async def test_a_registry_registered_as_documented_decides_and_closes_its_tasks(
    person: Person,
) -> None:
    proposal = person.permission(status="proposed")
    await person.says("plan-a", proposal)
    await person.world.server.engine.drain()
    ask = partial(person.world.ask, "registry", scopes=AS_DOCUMENTED[0])
    code = f"{REVIEW_REASON}|proposed-consent"
    answer = await ask("GET", f"/Task?patient={person.id}&code={code}")
    (entry,) = answer.json()["entry"]
    task = entry["resource"]
    url, focus = f"/Task/{task['id']}", f"/{task['focus']['reference']}"
    assert (await ask("GET", url)).status_code == 200
    assert (await ask("GET", f"/Patient/{person.id}")).status_code == 200
    assert (await ask("PUT", url, task | {"status": "in-progress"})).status_code == 200
    answer = await ask("PUT", focus, proposal | {"status": "active"})
    assert answer.status_code == 200, answer.text
    assert await person.sees("north")
    assert await person.tasks() == ["completed"]
    done = (await ask("GET", url)).json() | {"output": [{"type": TEXT, "valueString": "Granted"}]}
    assert (await ask("PUT", url, done)).status_code == 200


async def test_what_asks_for_a_decision_is_not_for_others_to_close(person: Person) -> None:
    proposal = person.permission(status="proposed")
    await person.says("plan-a", proposal)
    await person.world.server.engine.drain()
    found = f"/Task?patient=Patient/{person.id}&code={REVIEW_REASON}|proposed-consent"
    entry = (await person.world.get("north", found)).json()["entry"][0]
    task = entry["resource"]
    url = f"/Task/{task['id']}"
    for method, body in (
        ("PUT", task | {"status": "cancelled"}),
        ("PUT", task | {"code": {"text": "Something else"}}),
        ("DELETE", None),
    ):
        assert_outcome(await person.world.ask("north", method, url, body), 403, "forbidden")
    of_north = {name: value for name, value in task.items() if name not in ("id", "meta")}
    answer = await person.world.ask("north", "POST", "/Task", of_north)
    assert_outcome(answer, 403, "forbidden")
    assert await person.tasks() == ["requested"]
    await person.says("registry", task | {"status": "in-progress"})
    await person.says("registry", proposal | {"status": "rejected"})
    assert await person.tasks() == ["completed"]


async def test_a_consent_authority_takes_labels_away_and_nothing_else(person: Person) -> None:
    given = person.labelled(person.record)
    changed = given | {"code": {"text": "Nothing"}}
    answer = await person.world.ask("registry", "PUT", f"/Condition/{person.record}", changed)
    assert_outcome(answer, 403, "forbidden")
    for method in ("DELETE", "PUT"):
        url = f"/Condition/{person.record if method == 'DELETE' else new_id()}"
        body = None if method == "DELETE" else given | {"id": url.rpartition("/")[2]}
        answer = await person.world.ask("registry", method, url, body)
        assert_outcome(answer, 403, "forbidden")
    for meta in ({"tag": [{"code": "z"}]}, {"profile": ["http://example.org/p"]}):
        value = {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": meta}]}
        url = f"/Condition/{person.record}/$meta-add"
        assert_outcome(await person.world.ask("registry", "POST", url, value), 403, "forbidden")
    method, url, body, headers = unlabellings(given)[0]
    answer = await person.world.ask("registry", method, url, body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert await person.sees("north")


async def test_a_consent_authority_reads_whom_it_speaks_for_and_writes_no_records(
    person: Person,
) -> None:
    assert await person.sees("registry", f"Patient/{person.id}")
    for given in (patient(person.id), encounter(new_id(), person.id), organization("registry")):
        url = f"/{given['resourceType']}/{given['id']}"
        assert_outcome(await person.world.ask("registry", "PUT", url, given), 403, "forbidden")
