"""What Consents and labels come to: each encoding that docs/consent.md lists, judged without a server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from app.consent import labels, provisions
from app.consent.judgement import Judgement, WrittenConsent, decide, directives
from app.consent.provisions import ConsentQuestion
from app.consent.recipients import Recipient
from app.fhir.codes import PROVIDER_ACCESS
from tests.builders.consents import PERIOD_OVER, actor, consent, deny, label, permit

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
PRACTICE = Recipient(
    "PractitionerRole/role",
    "provider",
    frozenset({"PractitionerRole/role", "Practitioner/doc", "Organization/practice"}),
    frozenset(
        {
            *("PractitionerRole/role", "Practitioner/doc", "Organization/practice"),
            "Organization/chain",
        }
    ),
)
STATE = Recipient("Organization/state", "authority", frozenset({"Organization/state"}))
UNKNOWN = Recipient(None)


def written(*consents: Any) -> list[WrittenConsent]:
    """The word of a consent authority."""
    return [WrittenConsent(each) for each in consents]


def judged(
    *consents: Any,
    focus: str = "Encounter/e1",
    labelled: tuple[str, ...] = (),
    recipient: Recipient = PRACTICE,
    topic: str | None = None,
    **more: Any,
) -> Judgement:
    question = ConsentQuestion(focus, frozenset(labelled), recipient, NOW)
    return decide(directives(written(*consents)), question, topic, **more)


def test_without_consent_and_labels_all_may_be_told() -> None:
    assert judged() == Judgement("full")


PERIOD_TO_COME = {"start": "2026-06-02"}
RUNNING = {"start": "2026-06-01", "end": "2026-06-01"}
CODING = [{"coding": [{"system": "http://loinc.org", "code": "11450-4"}]}]
REASON = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
ACTION = "http://terminology.hl7.org/CodeSystem/consentaction"


def policy(code: str) -> dict[str, Any]:
    return {"coding": [{"system": labels.ACT_CODE, "code": code}]}


def purpose(*codes: str) -> list[dict[str, str]]:
    return [{"system": REASON, "code": code} for code in codes]


def action(code: str) -> list[dict[str, Any]]:
    return [{"coding": [{"system": ACTION, "code": code}]}]


def of_class(code: str, system: str = provisions.RESOURCE_TYPES) -> list[dict[str, str]]:
    return [{"system": system, "code": code}]


ENCODINGS = [
    pytest.param(consent(provision=deny()), "withhold", id="root deny"),
    pytest.param(
        consent(provision=deny(), scope="other"), "withhold", id="a scope of somebody's own"
    ),
    pytest.param(consent(provision=deny(), scope="research"), "full", id="scope research"),
    pytest.param(consent(provision=deny(), scope="treatment"), "full", id="scope treatment"),
    pytest.param(consent(provision=permit()), "full", id="root permit"),
    pytest.param(consent(policyRule=policy("OPTOUT")), "withhold", id="policy opt-out"),
    pytest.param(consent(policyRule=policy("OPTIN")), "full", id="policy opt-in"),
    pytest.param(
        consent(policyRule=policy("OPTOUT"), provision=permit(actor=actor("Practitioner/doc"))),
        "full",
        id="policy opt-out, its provision permits the recipient",
    ),
    pytest.param(
        consent(policyRule=policy("OPTOUT"), provision=permit(actor=actor("Practitioner/x"))),
        "withhold",
        id="policy opt-out, its provision permits another",
    ),
    pytest.param(
        consent(policyRule=policy("OPTOUT"), provision=permit()), "id-only", id="contradicts itself"
    ),
    pytest.param(consent(), "full", id="says nothing"),
    pytest.param(
        consent(provision={"purpose": purpose("TREAT")}), "id-only", id="a condition and no type"
    ),
    pytest.param(consent(provision={"period": RUNNING}), "full", id="a period and no rule"),
    pytest.param(consent(provision=deny(period=RUNNING)), "withhold", id="deny today"),
    pytest.param(consent(provision=deny(period=PERIOD_OVER)), "full", id="deny is over"),
    pytest.param(consent(provision=deny(period=PERIOD_TO_COME)), "full", id="deny to come"),
    pytest.param(
        consent(provision=permit(period=RUNNING, provision=[deny(period=PERIOD_OVER)])),
        "full",
        id="nested deny is over",
    ),
    pytest.param(
        consent(provision=deny(provision=[permit(period=PERIOD_OVER)])),
        "withhold",
        id="nested permit is over",
    ),
    pytest.param(
        consent(provision=deny(provision=[permit(actor=actor("Organization/practice"))])),
        "full",
        id="deny but for the recipient's organization",
    ),
    pytest.param(
        consent(provision=deny(provision=[permit(actor=actor("Organization/chain"))])),
        "withhold",
        id="deny but for an organization above",
    ),
    pytest.param(
        consent(provision=deny(provision=[permit(actor=actor("Practitioner/x"))])),
        "withhold",
        id="deny but for another",
    ),
    pytest.param(
        consent(provision=permit(provision=[deny(actor=actor("Practitioner/doc"))])),
        "withhold",
        id="permit but for the recipient",
    ),
    pytest.param(
        consent(provision=permit(provision=[deny(actor=actor("Practitioner/doc/_history/2"))])),
        "withhold",
        id="permit but for the recipient, by a version of it",
    ),
    pytest.param(
        consent(provision=permit(provision=[deny(actor=actor("Organization/chain"))])),
        "withhold",
        id="permit but for an organization above",
    ),
    pytest.param(
        consent(provision=permit(provision=[deny(actor=actor("Practitioner/x"))])),
        "full",
        id="permit but for another",
    ),
    pytest.param(
        consent(provision={"provision": [deny(actor=actor("Practitioner/doc"))]}),
        "withhold",
        id="a frame around a nested deny",
    ),
    pytest.param(
        consent(provision=deny(actor=actor("RelatedPerson/r"))), "full", id="deny for a relative"
    ),
    pytest.param(
        consent(provision=deny(actor=actor("CareTeam/t"))), "id-only", id="deny for a team"
    ),
    pytest.param(
        consent(provision=deny(actor=actor("Organization/practice", "CST"))),
        "id-only",
        id="deny by who keeps the record",
    ),
    pytest.param(
        consent(provision=deny(provision=[permit(actor=actor("CareTeam/t"))])),
        "withhold",
        id="deny but for a team",
    ),
    pytest.param(consent(provision=deny(purpose=purpose("TREAT"))), "withhold", id="no treatment"),
    pytest.param(consent(provision=deny(purpose=purpose("HMARKT"))), "full", id="no marketing"),
    pytest.param(
        consent(provision=deny(purpose=purpose("X"))), "id-only", id="a purpose nobody knows"
    ),
    pytest.param(
        consent(provision=deny(action=action("disclose"))), "withhold", id="no disclosure"
    ),
    pytest.param(consent(provision=deny(action=action("collect"))), "full", id="no collection"),
    pytest.param(consent(provision=deny(action=action("use"))), "full", id="no use"),
    pytest.param(consent(provision=deny(action=action("correct"))), "full", id="no correction"),
    pytest.param(consent(provision=deny(action=action("x"))), "id-only", id="an unknown action"),
    pytest.param(
        consent(provision=deny(**{"class": of_class("Encounter")})),
        "withhold",
        id="class Encounter",
    ),
    pytest.param(
        consent(provision=deny(**{"class": of_class("Condition")})), "full", id="another class"
    ),
    pytest.param(
        consent(provision=deny(**{"class": of_class("x", "urn:x")})), "id-only", id="unknown class"
    ),
    pytest.param(consent(provision=deny(code=CODING)), "id-only", id="content by its code"),
    pytest.param(
        consent(provision=deny(dataPeriod={"start": "2020"})), "id-only", id="content by its date"
    ),
    pytest.param(
        consent(
            provision=deny(
                data=[{"meaning": "instance", "reference": {"reference": "Encounter/e1"}}]
            )
        ),
        "withhold",
        id="this very resource",
    ),
    pytest.param(
        consent(
            provision=deny(
                data=[{"meaning": "instance", "reference": {"reference": "Encounter/x"}}]
            )
        ),
        "full",
        id="another resource",
    ),
    pytest.param(
        consent(
            provision=deny(data=[{"meaning": "related", "reference": {"reference": "Encounter/x"}}])
        ),
        "id-only",
        id="what is related to another",
    ),
    pytest.param(
        consent(provision=permit(), modifierExtension=[{"url": "urn:x"}]), "id-only", id="modified"
    ),
    pytest.param(
        consent(provision=permit(provision=[{"actor": actor("Practitioner/doc")}])),
        "id-only",
        id="an exception without a type",
    ),
    pytest.param(
        consent(provision=deny(securityLabel=label("N"))), "withhold", id="deny from normal"
    ),
    pytest.param(
        consent(provision=deny(securityLabel=label("R"))), "full", id="deny from restricted"
    ),
    pytest.param(
        consent("pcp-notification", provision=deny()), "withhold", id="no notices to the PCP"
    ),
    pytest.param(consent("provider-access", provision=deny()), "withhold", id="no provider access"),
    pytest.param(consent("pcp-notification"), "id-only", id="a category of ours without a rule"),
    pytest.param(consent("part-2", provision=deny()), "full", id="Part 2 and nothing of that kind"),
]


@pytest.mark.parametrize(("given", "verdict"), ENCODINGS)
def test_a_consent_about_an_encounter_told_to_a_practice(given: Any, verdict: str) -> None:
    assert judged(given).verdict == verdict


@pytest.mark.parametrize(
    "status", ["draft", "proposed", "rejected", "inactive", "entered-in-error"]
)
def test_only_an_active_consent_counts(status: str) -> None:
    assert judged(consent(provision=deny(), status=status)) == Judgement("full")


@pytest.mark.parametrize(
    ("base_url", "verdicts"),
    [
        pytest.param("https://hub.example/fhir", ["withhold", "withhold", "withhold"], id="own"),
        # Who is named by another server's URL may be the practice; another server's record is not this one.
        pytest.param("https://other.example/fhir", ["id-only", "full", "full"], id="another's"),
    ],
)
def test_what_is_named_by_a_url_of_this_server_is_its_own(
    base_url: str, verdicts: list[str]
) -> None:
    """Who a provision is about and which record, at its top and in what it excepts."""
    own = "https://hub.example/fhir"
    practice, stay = f"{own}/Organization/practice", f"{own}/Encounter/e1"
    data = [{"meaning": "instance", "reference": {"reference": stay}}]
    question = ConsentQuestion("Encounter/e1", frozenset(), PRACTICE, NOW)
    found = []
    for provision in (
        deny(actor=actor(practice)),
        deny(data=data),
        permit(provision=[deny(actor=actor(practice), data=data)]),
    ):
        given = directives(written(consent(PROVIDER_ACCESS, provision=provision)), base_url)
        found.append(decide(given, question, None).verdict)
    assert found == verdicts


def test_the_reason_names_the_matter_and_the_consent() -> None:
    assert judged(consent("pcp-notification", provision=deny())).reason == (
        "consent-pcp-notification Consent/c1"
    )


@pytest.mark.parametrize(
    ("category", "verdict"),
    [
        pytest.param((), "withhold", id="privacy in general"),
        pytest.param(("pcp-notification",), "full", id="PCP notification"),
        pytest.param(("provider-access",), "full", id="provider access"),
        pytest.param(("case-management",), "full", id="case management"),
    ],
)
def test_a_state_contract_is_kept_though_providers_are_refused(
    category: tuple[str, ...], verdict: str
) -> None:
    given = consent(*category, provision=deny())
    assert judged(given, recipient=STATE, focus="CarePlan/c").verdict == verdict


@pytest.mark.parametrize(
    ("focus", "topic", "verdict"),
    [
        pytest.param(
            "Encounter/e1", "http://x/SubscriptionTopic/encounter-admission", "full", id="stay"
        ),
        pytest.param("CarePlan/c", None, "withhold", id="care plan"),
        pytest.param("Goal/g", None, "withhold", id="goal"),
        pytest.param("EpisodeOfCare/e", None, "withhold", id="enrolment"),
        pytest.param(
            "DocumentReference/d",
            "http://x/SubscriptionTopic/careplan-annual-review",
            "withhold",
            id="by its topic",
        ),
    ],
)
def test_an_opt_out_of_case_management_withholds_what_is_about_it(
    focus: str, topic: str | None, verdict: str
) -> None:
    assert judged(
        consent("case-management", provision=deny()), focus=focus, topic=topic
    ).verdict == (verdict)


def test_nobody_knows_that_an_unnamed_recipient_is_not_the_one_refused() -> None:
    but_one = consent(provision=permit(provision=[deny(actor=actor("Practitioner/x"))]))
    only_one = consent(provision=deny(provision=[permit(actor=actor("Practitioner/x"))]))
    assert judged(but_one, recipient=UNKNOWN).verdict == "withhold"
    assert judged(only_one, recipient=UNKNOWN).verdict == "withhold"


def test_the_newest_consent_about_a_matter_counts() -> None:
    refused = consent("provider-access", provision=deny())
    agreed = consent("provider-access", provision=permit(), dateTime="2026-02-01T09:00:00Z")
    assert judged(refused, agreed).verdict == "full"
    assert judged({**refused, "dateTime": "2026-03"}, agreed).verdict == "withhold"


def test_a_newer_consent_that_is_over_gives_way_to_the_older() -> None:
    refused = consent("provider-access", provision=deny())
    agreed = consent("provider-access", provision=permit(period=PERIOD_OVER), dateTime="2026-02-01")
    assert judged(refused, agreed).verdict == "withhold"


def test_a_newer_consent_about_somebody_else_changes_nothing() -> None:
    refused = consent(provision={"provision": [deny(actor=actor("Practitioner/doc"))]})
    other = consent(
        provision={"provision": [deny(actor=actor("Practitioner/x"))]}, dateTime="2026-02-01"
    )
    assert judged(refused, other).verdict == "withhold"


@pytest.mark.parametrize(
    ("older", "verdict"), [(deny(), "withhold"), (permit(), "id-only"), (None, "id-only")]
)
def test_a_newest_consent_that_is_unclear_leaves_the_older_its_say(
    older: Any, verdict: str
) -> None:
    unclear = consent(provision=deny(action=action("x")), dateTime="2026-02-01")
    before = [consent(provision=older)] if older else []
    assert judged(*before, unclear).verdict == verdict


def test_of_several_matters_the_strictest_counts() -> None:
    agreed = consent("pcp-notification", provision=permit(), dateTime="2026-02-01")
    assert judged(consent(provision=deny()), agreed).verdict == "withhold"


PART_2_PERMIT = consent("part-2", provision=permit(actor=actor("Organization/practice")))


@pytest.mark.parametrize(
    ("given", "labelled", "verdict"),
    [
        pytest.param((), ("N",), "full", id="normal"),
        pytest.param((), ("HTEST",), "full", id="a label of another kind"),
        *(
            pytest.param((), (code,), "id-only", id=code)
            for code in ("42CFRPart2", "ETH", "ETHUD", "SUD", "PSY", "HIV", "SDV", "BH", "R")
        ),
        pytest.param((), ("V",), "withhold", id="V"),
        pytest.param((), ("V", "ETH"), "withhold", id="V and another"),
        pytest.param((PART_2_PERMIT,), ("42CFRPart2", "ETH", "R"), "full", id="part-2 permits"),
        pytest.param((PART_2_PERMIT,), ("V", "ETH"), "withhold", id="part-2 permits, but V"),
        pytest.param((PART_2_PERMIT,), ("PSY",), "id-only", id="part-2 permits something else"),
        pytest.param(
            (PART_2_PERMIT,), ("ETH", "PSY", "R"), "id-only", id="part-2 permits one of two"
        ),
        pytest.param((PART_2_PERMIT,), ("R",), "id-only", id="part-2 permits, but R alone"),
        pytest.param(
            (consent(provision=permit(securityLabel=label("42CFRPart2"))),),
            ("ETH",),
            "full",
            id="privacy permits by label",
        ),
        pytest.param(
            (consent(provision=permit(securityLabel=label("BH"))),),
            ("42CFRPart2",),
            "id-only",
            id="Part 2 has to be named",
        ),
        pytest.param(
            (consent(provision=permit(securityLabel=label("R"))),), ("R",), "full", id="permits R"
        ),
        pytest.param(
            (consent(provision=permit(securityLabel=label("N"))),),
            ("R",),
            "id-only",
            id="permits N",
        ),
        pytest.param(
            (consent(provision=permit(securityLabel=label("R"))),),
            ("ETH",),
            "id-only",
            id="a level is no sensitivity",
        ),
        pytest.param((consent(provision=permit()),), ("ETH",), "id-only", id="a general permit"),
        pytest.param(
            (consent(policyRule=policy("OPTIN")),), ("ETH",), "id-only", id="a general opt-in"
        ),
        pytest.param(
            (consent("part-2", provision=permit(actor=actor("Organization/x"))),),
            ("ETH",),
            "id-only",
            id="part-2 permits another",
        ),
        pytest.param(
            (consent("part-2", provision=permit(period=PERIOD_OVER)),),
            ("ETH",),
            "id-only",
            id="over",
        ),
        pytest.param(
            (consent("part-2", provision=deny()),), ("42CFRPart2",), "withhold", id="part-2 refused"
        ),
        pytest.param(
            (PART_2_PERMIT, consent("part-2", provision=deny(), dateTime="2026-02-01")),
            ("ETH",),
            "withhold",
            id="part-2 revoked",
        ),
        pytest.param(
            (consent(provision=permit(provision=[deny(securityLabel=label("PSY"))])),),
            ("PSY",),
            "withhold",
            id="refused by label",
        ),
        pytest.param(
            (consent(provision=permit(provision=[deny(securityLabel=label("R"))])),),
            ("V",),
            "withhold",
            id="refused from a level on",
        ),
    ],
)
def test_labels_of_the_content(
    given: tuple[Any, ...], labelled: tuple[str, ...], verdict: str
) -> None:
    assert judged(*given, labelled=labelled).verdict == verdict


def test_an_operator_may_have_labelled_content_withheld() -> None:
    found = judged(labelled=("ETH", "R"), labelled_content="withhold")
    assert found == Judgement("withhold", "label ETH R")


def test_labels_are_read_from_their_own_systems() -> None:
    security = [
        *label("ETH", "R"),
        {"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST"},
        {"system": "http://example.org/own", "code": "V"},
        {"code": "PSY"},
        {"code": "R2D2"},
        {"display": "no code"},
    ]
    assert labels.of({"meta": {"security": security}}) == {"ETH", "R", "PSY"}
    assert labels.of({"resourceType": "Patient"}) == labels.of(None) == frozenset()


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        pytest.param(consent(provision=deny(actor=actor("Practitioner/x"))), True, id="plain"),
        pytest.param(consent(), True, id="nothing"),
        pytest.param(consent(provision={"period": RUNNING}), True, id="only a period"),
        pytest.param(consent(provision=deny(code=CODING)), False, id="a code"),
        pytest.param(consent(provision={"purpose": purpose("TREAT")}), False, id="no type"),
        pytest.param(
            consent(provision=permit(provision=[deny(purpose=purpose("X"))])), False, id="nested"
        ),
        pytest.param(consent(modifierExtension=[{"url": "urn:x"}]), False, id="modified"),
        pytest.param(
            consent(provision=deny(modifierExtension=[{"url": "urn:x"}])), False, id="rule-modified"
        ),
        pytest.param(consent(provision=deny(dataPeriod=RUNNING)), False, id="a period of the data"),
        pytest.param(
            consent(policyRule=policy("OPTOUT"), provision=permit()), False, id="contradiction"
        ),
        pytest.param(consent("case-management"), False, id="ours without a rule"),
    ],
)
def test_what_a_person_has_to_look_at(given: Any, understood: bool) -> None:
    assert all(each.is_understood for each in directives(written(given))) is understood


def test_an_authority_administers() -> None:
    given = consent(provision=deny(purpose=purpose("HOPERAT")))
    assert judged(given).verdict == "full"
    assert judged(given, recipient=replace(STATE)).verdict == "withhold"
