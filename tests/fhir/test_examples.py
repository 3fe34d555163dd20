"""The examples: valid, complete in themselves, US Core shaped, and marked as invented.

US Core's rules are restated here by hand (http://hl7.org/fhir/us/core/STU6.1/), so that a mistake
in our own reading of its profiles cannot hide a mistake in the data.
"""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fhir.resources.R4B import get_fhir_model_class

from app.fhir.validation import check

EXAMPLES = Path(__file__).parents[2] / "examples"
PANEL = sorted((EXAMPLES / "panel").glob("*.json"))
STAY = sorted((EXAMPLES / "stay").glob("0*.json"))
US_CORE = "http://hl7.org/fhir/us/core/StructureDefinition/us-core-"
INVENTED = ("http://carerelay.example/tags", "invented")
PCP = {("http://snomed.info/sct", "453231000124104"), ("http://snomed.info/sct", "446050000")}
POINT_OF_CONTACT = ("http://carerelay.example/CodeSystem/care-team-role", "point-of-contact")
NPI = "http://hl7.org/fhir/sid/us-npi"
CARE_PLAN_CATEGORY = "http://hl7.org/fhir/us/core/CodeSystem/careplan-category"
HEALTH_CONCERN = "http://hl7.org/fhir/us/core/CodeSystem/condition-category"
PROBLEM = "http://terminology.hl7.org/CodeSystem/condition-category"

# Profile -> elements that have to be there; a dotted path in every repetition of its first part.
MANDATORY = {
    "careplan": "text.status text.div status intent category subject goal addresses careTeam",
    "careteam": "status subject participant participant.role participant.member telecom",
    "condition-problems-health-concerns": "category code subject clinicalStatus",
    "coverage": "identifier status type subscriberId beneficiary relationship payor class period",
    "encounter": "identifier.system identifier.value status class type subject participant.type"
    " participant.individual period location.location serviceProvider",
    "goal": "lifecycleStatus description subject startDate target.dueDate",
    "location": "name status",
    "organization": "active name telecom address",
    "patient": "identifier.system identifier.value name.family name.given gender birthDate"
    " address.line address.city address.state address.postalCode telecom communication.language",
    "practitioner": "identifier.system identifier.value name.family",
    "practitionerrole": "practitioner organization code specialty telecom.system telecom.value",
    "questionnaireresponse": "status subject questionnaire authored author item.linkId",
    "relatedperson": "active patient relationship name",
    "servicerequest": "status intent code subject authoredOn requester",
}


def decode(path: Path) -> dict[str, Any]:
    resource: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    return resource


def panel_resources(path: Path) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in decode(path)["entry"]]


def address(resource: dict[str, Any]) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


ON_PANEL = {address(r): r for path in PANEL for r in panel_resources(path)}
STAY_VERSIONS = [decode(path) for path in STAY]
STORY = decode(EXAMPLES / "stay" / "story.json")
EVERYTHING = [*ON_PANEL.values(), *STAY_VERSIONS]


def of_type(resource_type: str) -> list[dict[str, Any]]:
    return [r for r in ON_PANEL.values() if r["resourceType"] == resource_type]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in `value`, itself included."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from nodes(part)


def references(resource: dict[str, Any]) -> list[str]:
    return [node["reference"] for node in nodes(resource) if isinstance(node.get("reference"), str)]


def codings(concepts: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(c["system"], c["code"]) for concept in concepts for c in concept.get("coding", [])}


def has(value: Any, path: str) -> bool:
    """Whether `path` leads to something in `value`, in each of its repetitions."""
    head, _, rest = path.partition(".")
    found = value.get(head)
    if not found and found is not False:
        return False
    parts = found if isinstance(found, list) else [found]
    return not rest or all(has(part, rest) for part in parts)


def profile(resource: dict[str, Any]) -> str | None:
    urls = resource["meta"].get("profile", [])
    return urls[0].removeprefix(US_CORE) if urls else None


def luhn(npi: str) -> bool:
    """The check digit of a National Provider Identifier, which counts the prefix 80840."""
    digits = [int(d) for d in reversed("80840" + npi)]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def endpoints_of_pcp(patient: dict[str, Any]) -> list[dict[str, Any]]:
    """Endpoints of the roles that the patient's general practitioner is, or plays."""
    attributed = {reference["reference"] for reference in patient["generalPractitioner"]}
    roles = [
        role
        for role in of_type("PractitionerRole")
        if address(role) in attributed or role["practitioner"]["reference"] in attributed
    ]
    return [ON_PANEL[e["reference"]] for role in roles for e in role.get("endpoint", [])]


@pytest.mark.parametrize("path", PANEL, ids=lambda path: path.stem)
def test_panel_file_is_a_transaction_of_puts(path: Path) -> None:
    bundle = decode(path)
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "transaction")
    assert not any(issue.severity == "error" for issue in check(bundle))
    for entry in bundle["entry"]:
        url = address(entry["resource"])
        assert entry["request"] == {"method": "PUT", "url": url}
        assert (
            "fullUrl" not in entry
        )  # they refer to one another across files, as records of the server


@pytest.mark.parametrize("path", [*PANEL, *STAY], ids=lambda path: path.stem)
def test_resources_are_valid_r4(path: Path) -> None:
    for resource in panel_resources(path) if path in PANEL else [decode(path)]:
        problems = [issue for issue in check(resource) if issue.severity == "error"]
        assert problems == [], address(resource)
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)


def test_ids_are_unique() -> None:
    assert len(ON_PANEL) == sum(len(panel_resources(path)) for path in PANEL)


def test_files_in_name_order_refer_only_to_what_came_before() -> None:
    """A transaction resolves every order within a file; loading entry by entry needs this one."""
    known: set[str] = set()
    for path in PANEL:
        for resource in panel_resources(path):
            assert set(references(resource)) <= known, address(resource)
            known.add(address(resource))


def test_stay_refers_only_to_the_panel() -> None:
    for version in STAY_VERSIONS:
        assert set(references(version)) <= ON_PANEL.keys()


def test_everything_is_marked_as_invented() -> None:
    unmarked = [
        address(r) for r in EVERYTHING if INVENTED not in codings([{"coding": r["meta"]["tag"]}])
    ]
    assert unmarked == []
    assert STORY["invented"] is True


def test_telephone_numbers_are_fictional() -> None:
    phones = {n["value"] for r in EVERYTHING for n in nodes(r) if n.get("system") == "phone"}
    assert all("-555-01" in phone for phone in phones)


def test_npis_pass_the_check_but_are_of_the_series_not_in_use() -> None:
    npis = [n["value"] for r in EVERYTHING for n in nodes(r) if n.get("system") == NPI]
    assert len(npis) == len(set(npis)) > 0
    for npi in npis:
        assert npi.startswith("2")
        assert len(npi) == 10
        assert luhn(npi), npi


@pytest.mark.parametrize(("npi", "passes"), [("1234567893", True), ("1234567890", False)])
def test_luhn_knows_the_published_sample(npi: str, passes: bool) -> None:
    assert luhn(npi) is passes


@pytest.mark.parametrize("name", MANDATORY)
def test_us_core_elements_are_there(name: str) -> None:
    with_profile = [r for r in EVERYTHING if profile(r) == name]
    assert with_profile != []
    for resource in with_profile:
        missing = [path for path in MANDATORY[name].split() if not has(resource, path)]
        assert missing == [], address(resource)


def test_every_declared_profile_is_checked_here() -> None:
    assert {profile(r) for r in EVERYTHING} - {None} == MANDATORY.keys()


def test_panel_has_what_a_care_team_needs() -> None:
    assert len(of_type("Patient")) >= 12
    practices = {address(e): e["managingOrganization"]["reference"] for e in of_type("Endpoint")}
    assert len(set(practices.values())) == 3
    assert {e["connectionType"]["code"] for e in of_type("Endpoint")} == {"hl7-fhir-rest"}
    facility = {("http://terminology.hl7.org/CodeSystem/v3-RoleCode", "SNF")}
    assert any(facility <= codings(location["type"]) for location in of_type("Location"))


@pytest.mark.parametrize("patient", of_type("Patient"), ids=lambda patient: patient["id"])
def test_member_has_pcp_coverage_plan_and_team(patient: dict[str, Any]) -> None:
    assert len({address(e) for e in endpoints_of_pcp(patient)}) == 1
    extensions = {e["url"] for e in patient["extension"]}
    assert {US_CORE + "race", US_CORE + "ethnicity"} <= extensions

    mine = [r for r in ON_PANEL.values() if address(patient) in references(r)]
    kinds = [r["resourceType"] for r in mine]
    assert kinds.count("CarePlan") == kinds.count("CareTeam") == 1
    covered = [r for r in mine if r["resourceType"] == "Coverage"]
    assert sorted(r["order"] for r in covered) == [1, 2]
    assert all(len(r["payor"]) == 1 for r in covered)
    assert all({"group", "plan"} == class_codes(r) for r in covered)


def class_codes(coverage: dict[str, Any]) -> set[str]:
    return {code for part in coverage["class"] for _, code in codings([part["type"]])}


@pytest.mark.parametrize("team", of_type("CareTeam"), ids=lambda team: team["id"])
def test_care_team_marks_one_pcp_and_one_point_of_contact(team: dict[str, Any]) -> None:
    roles = [codings(participant["role"]) for participant in team["participant"]]
    pcps = [p for p, role in zip(team["participant"], roles, strict=True) if role & PCP]
    assert len(pcps) == 1
    assert sum(POINT_OF_CONTACT in role for role in roles) == 1

    role = ON_PANEL[pcps[0]["member"]["reference"]]
    attributed = ON_PANEL[team["subject"]["reference"]]["generalPractitioner"][0]["reference"]
    assert attributed in {address(role), role["practitioner"]["reference"]}


@pytest.mark.parametrize("plan", of_type("CarePlan"), ids=lambda plan: plan["id"])
def test_care_plan_tells_the_pcp_everything_in_words(plan: dict[str, Any]) -> None:
    assert (CARE_PLAN_CATEGORY, "assess-plan") in codings(plan["category"])
    assert ("http://snomed.info/sct", "734163000") in codings(plan["category"])
    assert (plan["status"], plan["intent"]) == ("active", "plan")
    div = plan["text"]["div"].replace("&amp;", "&")
    for activity in plan["activity"]:
        assert ON_PANEL[activity["reference"]["reference"]]["code"]["text"] in div
    for part in plan["goal"] + plan["addresses"]:
        subject = ON_PANEL[part["reference"]]
        assert (subject.get("description") or subject["code"])["text"] in div


@pytest.mark.parametrize("goal", of_type("Goal"), ids=lambda goal: goal["id"])
def test_goal_serves_a_problem_of_the_plan(goal: dict[str, Any]) -> None:
    """R4 gol-1: a detail needs its measure; and the plan addresses what its goal addresses."""
    for target in goal["target"]:
        assert "measure" in target or not any(key.startswith("detail") for key in target)
    plans = [p for p in of_type("CarePlan") if address(goal) in references(p)]
    assert len(plans) == 1
    assert {a["reference"] for a in goal["addresses"]} <= {
        a["reference"] for a in plans[0]["addresses"]
    }


def test_some_goals_are_the_members_own() -> None:
    voices = {goal["expressedBy"]["reference"].partition("/")[0] for goal in of_type("Goal")}
    assert voices == {"Patient", "RelatedPerson", "Practitioner"}


def test_conditions_are_problems_or_health_concerns() -> None:
    allowed = {(PROBLEM, "problem-list-item"), (HEALTH_CONCERN, "health-concern")}
    assert all(len(codings(r["category"]) & allowed) == 1 for r in of_type("Condition"))
    assert {c for r in of_type("Condition") for c in codings(r["category"])} >= allowed


def test_high_risk_group_counts_its_members() -> None:
    [group] = of_type("Group")
    members = [m["entity"]["reference"] for m in group["member"]]
    assert group["quantity"] == len(members) == len(set(members)) > 1


def test_stay_is_one_encounter_from_arrival_to_discharge() -> None:
    assert {address(v) for v in STAY_VERSIONS} == {STORY["encounter"]}
    assert {json.dumps(v["identifier"]) for v in STAY_VERSIONS} == {
        json.dumps(STAY_VERSIONS[0]["identifier"])
    }
    assert [(v["status"], v["class"]["code"]) for v in STAY_VERSIONS] == [
        ("arrived", "EMER"),
        ("in-progress", "IMP"),
        ("in-progress", "IMP"),
        ("finished", "IMP"),
    ]
    assert [v["classHistory"][0]["class"]["code"] for v in STAY_VERSIONS[1:]] == ["EMER"] * 3
    assert {r["serviceProvider"]["reference"] for r in STAY_VERSIONS} == {STORY["hospital"]}


def test_stay_has_one_active_location_until_discharge() -> None:
    active = [
        [place["location"]["reference"] for place in v["location"] if place["status"] == "active"]
        for v in STAY_VERSIONS
    ]
    assert [len(places) for places in active] == [1, 1, 1, 0]
    assert len({places[0] for places in active[:3]}) == 3
    sites = {ON_PANEL[places[0]]["partOf"]["reference"] for places in active[:3]}
    assert len(sites) == 1


def test_stay_ends_in_a_skilled_nursing_facility() -> None:
    last = STAY_VERSIONS[-1]
    assert "end" in last["period"]
    assert codings([last["hospitalization"]["dischargeDisposition"]]) == {
        ("http://www.nubc.org/patient-discharge", "03"),
        ("http://terminology.hl7.org/CodeSystem/discharge-disposition", "snf"),
    }


def test_story_names_the_files_in_order_and_the_practice_of_the_patient() -> None:
    assert [step["file"] for step in STORY["steps"]] == [path.name for path in STAY]
    assert {v["subject"]["reference"] for v in STAY_VERSIONS} == {STORY["patient"]}
    practice = STORY["practice"]
    role = ON_PANEL[practice["practitionerRole"]]
    assert role["practitioner"]["reference"] == practice["practitioner"]
    assert role["organization"]["reference"] == practice["organization"]
    pcp = endpoints_of_pcp(ON_PANEL[STORY["patient"]])
    assert {address(endpoint) for endpoint in pcp} == {practice["endpoint"]}
    fired = [(f["topic"], f["trigger"]) for step in STORY["steps"] for f in step["fires"]]
    assert fired == [
        ("encounter-admission", "A04"),
        ("encounter-admission", "A06"),
        ("encounter-discharge", "A03"),
    ]


def test_readme_introduces_every_member() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for patient in of_type("Patient"):
        assert f"`{patient['id']}`" in readme
    for path in PANEL:
        assert path.is_file()
        assert path.stem[:2] in readme
