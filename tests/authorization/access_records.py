"""What lies in the database of the access matrix, made of minimal resources of every type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.fhir.definitions import SUPPORTED_TYPES
from tests.authorization.access_table import ABOUT, AGREED, DIRECTORY, MANY, SENDERS, Record
from tests.builders.access_world import World, contract, coverage, designated, encounter, security
from tests.builders.minimal_resources import minimal
from tests.builders.practices import patient, ref
from tests.conftest import BASE

Resource = dict[str, Any]

SYSTEM = "urn:planted"
# The types that are asked for through every door, not through the main ones alone.
PRINCIPAL = (
    "CarePlan",
    "CareTeam",
    "Communication",
    "Condition",
    "Coverage",
    "Encounter",
    "Observation",
    "Patient",
    "Task",
)
# What a DocumentReference may attach.
PAPERS = ("Binary", "Bundle")
# Made by the server, by the world or by rules of their own.
_APART = frozenset({"AuditEvent", "Subscription", "Patient", "Group"})
# Of the types whose every resource is seen by all, or by none, these stand for the others.
_SAMPLES = (
    DIRECTORY
    | SENDERS
    | {
        *("Library", "Measure", "Medication", "Questionnaire", "ValueSet"),
        *("Contract", "MessageHeader", "Person", "Schedule", "Slot"),
    }
)
_FORMS = {
    "relative": "Patient/{}",
    "absolute": f"{BASE}/Patient/{{}}",
    "versioned": "Patient/{}/_history/1",
    "elsewhere": "http://elsewhere.example/fhir/Patient/{}",
}


def planned() -> list[Record]:
    """Everything that is planted; ids tell what each is."""
    made = [
        Record("Patient", each, (each,), label=label)
        for each, label in (("pn", ""), ("ps", ""), ("pb", ""), ("px", ""))
    ]
    for type_ in SUPPORTED_TYPES:
        if type_ in _APART:
            continue
        if type_ not in ABOUT:
            made += [Record(type_, f"any-{type_}")] if type_ in _SAMPLES else []
            continue
        made += [Record(type_, f"of-{each}", (each,)) for each in ("pn", "ps")]
        if type_ != "Provenance":  # it is nothing without something that it is about
            made.append(Record(type_, "of-nobody"))
        if type_ in MANY:
            made += [
                Record(type_, "of-two", ("pn", "ps")),
                Record(type_, "of-two-own", ("pn", "pb")),
            ]
        if type_ in PRINCIPAL:
            made += _variants(type_)
    made += [
        Record("Binary", "sent-by-north", author="north"),
        Record("Bundle", "sent-by-general", author="general"),
        *(Record(type_, f"for-{each}", (each,)) for type_ in PAPERS for each in ("pn", "ps")),
        *(Record(type_, "for-pb", ("pb",), author="city") for type_ in PAPERS),
        Record("Bundle", "for-pn-r", ("pn",), label="R"),
        Record("Contract", "of-agency", parties=("agency", "plan-b")),
        Record("Contract", "of-bureau", parties=("bureau",)),
        Record("Group", "agreed", ("pn",), parties=("agency", "plan-b")),
        Record("Subscription", "sent-by-north", author="north"),
        Record("Subscription", "sent-by-agency", author="agency"),
        Record("Group", "list-n", ("pn",), owner="agency"),
        Record("Group", "list-s", ("ps",), owner="bureau"),
        Record("Group", "of-north", ("pn",), owner="north"),
        Record("Group", "of-plan-b", ("ps",), owner="plan-b"),
        Record("Group", "of-nobody", ("pn",)),
        Record("Organization", "very-restricted", label="V"),
    ]
    return made


def _variants(type_: str) -> list[Record]:
    made = [
        Record(type_, "of-pb", ("pb",)),
        Record(type_, "of-px", ("px",)),
        Record(type_, "sent-n", ("pn",), author="general"),
        Record(type_, "sent-s", ("ps",), author="city"),
        Record(type_, "sent-b", ("pb",), author="city"),
        Record(type_, "label-r", ("pn",), label="R"),
        Record(type_, "label-v", ("pn",), label="V"),
        Record(type_, "sent-r", ("pn",), author="general", label="R"),
        *(
            Record(type_, f"by-{form}", ("pn",), form=form)
            for form in ("absolute", "versioned", "elsewhere")
        ),
    ]
    if type_ == "Encounter":
        made += [
            Record(type_, f"at-{where}-{each}", (each,), owner=where)
            for where, each in (
                ("general", "pn"),
                ("city", "ps"),
                ("general", "pb"),
                ("city", "pb"),
            )
        ]
    return made


def resource_of(record: Record) -> Resource:
    """The resource that a record stands for; its tag is its secret."""
    type_ = record.resource_type
    made = minimal(type_) | {"id": record.id}
    if type_ == "Consent":
        made["status"] = "draft"
    if type_ == "Encounter":
        made |= {"status": "planned"}
    if record.owner:
        made |= _owned(type_, record.owner)
    if type_ == "Contract" and record.parties:
        agency, *plans = (ref(f"Organization/{each}") for each in record.parties)
        made |= {"status": "executed", "authority": [agency]}
        made["subject"] = [ref("Group/agreed"), *plans] if plans else [ref("Group/list-s")]
    named = [ref(_FORMS[record.form].format(each)) for each in record.about]
    if type_ == "Group":
        made |= {"actual": True, "type": "person", "member": [{"entity": each} for each in named]}
    elif named and (path := ABOUT.get(type_)):
        _name(made, path, named, is_list=type_ in MANY)
    if type_ == "Patient":
        made |= _person(record.id)
    meta: Resource = {
        "tag": [{"system": SYSTEM, "code": "x"}, {"system": "urn:id", "code": record.id}]
    }
    whole: Resource = made | {"meta": meta | (security(record.label) if record.label else {})}
    return whole


def _owned(type_: str, owner: str) -> Resource:
    organization = ref(f"Organization/{owner}")
    owned: dict[str, Resource] = {
        "Encounter": {"serviceProvider": organization},
        "Group": {"managingEntity": organization},
        "Coverage": {"payor": [organization]},
        "Endpoint": {"managingOrganization": organization},
        "Location": {"managingOrganization": organization},
        "HealthcareService": {"providedBy": organization},
        "Organization": {"name": owner},
    }
    return owned[type_]


def _name(made: Resource, path: str, named: Sequence[Resource], *, is_list: bool) -> None:
    if path == "participant.actor":
        made["participant"] = [{"actor": each, "status": "accepted"} for each in named]
    else:
        made[path] = list(named) if is_list else named[0]


def _person(id_: str) -> Resource:
    found = {"identifier": [{"system": "urn:mrn", "value": id_}], "name": [{"family": f"F{id_}"}]}
    side = {"pn": "n", "pb": "n", "ps": "s"}.get(id_)
    if side:
        found["generalPractitioner"] = [ref(f"PractitionerRole/role-{side}")]
    return found


def entry(method: str, url: str, resource: Resource | None = None, **more: Any) -> Resource:
    made: Resource = {"request": {"method": method, "url": url, **more}}
    return made | ({"resource": resource} if resource else {})


def bundle(kind: str, *entries: Resource) -> Resource:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def attaching(record: Record) -> Resource:
    """The DocumentReference that attaches a Binary or Bundle."""
    return {
        "resourceType": "DocumentReference",
        "id": f"attaches-{record.resource_type}-{record.id}",
        "status": "current",
        "subject": ref(_FORMS[record.form].format(record.about[0])),
        "content": [{"attachment": {"url": record.reference}}],
    }


async def plant(world: World, records: Sequence[Record]) -> None:
    """Everything as its author sends it; the ties of `pb` first, for city is to write of it."""
    await world.put(
        "admin",
        patient("pb"),
        encounter("tie-general", "pb", "general"),
        encounter("tie-city", "pb", "city"),
        coverage("tie-plan", "pb", "plan-a"),
        designated("tie-list", "agency", "pb"),
        contract("tie-contract", "tie-list", "agency", *sorted(AGREED["agency"])),
    )
    ordered = sorted(records, key=lambda each: each.resource_type != "Patient")
    for author in dict.fromkeys(each.author for each in ordered):
        own = [each for each in ordered if each.author == author]
        made = [resource_of(each) for each in own]
        made += [attaching(each) for each in own if each.resource_type in PAPERS and each.about]
        urls = [f"{each['resourceType']}/{each['id']}" for each in made]
        entries = [entry("PUT", url, each) for url, each in zip(urls, made, strict=True)]
        answer = await world.ask(author, "POST", "/", bundle("transaction", *entries))
        assert answer.status_code == 200, answer.text
        answers = zip(urls, answer.json()["entry"], strict=True)
        failed = {url: got for url, got in answers if got["response"]["status"][0] != "2"}
        assert not failed, failed
