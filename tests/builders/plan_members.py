"""Invented members of a plan with what worklists ask about, and the answer to each question by hand.

Unless a member says otherwise it is riverside's patient, has a plan of care in force, was assessed 100 days ago and has
been a member for 400 days: nobody has to see to it. Days are counted from the server's today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from app.fhir.codes import ATTRIBUTION_PERIOD
from tests.builders.consents import consent, deny, permit
from tests.builders.members import CODES, EXTENSIONS, HRA, concept
from tests.builders.practices import care_team, organization, panel, practitioner, ref, role

Resource = dict[str, Any]
Make = Callable[["Day", str], list[Resource]]
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"


@dataclass(frozen=True)
class Day:
    """The server's today, and days from it."""

    today: date

    def __call__(self, days: int) -> str:
        return (self.today + timedelta(days=days)).isoformat()

    def noon(self, days: int) -> str:
        return f"{self(days)}T12:00:00Z"

    def period(self, start: int, end: int | None = None) -> Resource:
        return {"start": self(start)} | ({} if end is None else {"end": self(end)})


@dataclass(frozen=True)
class Member:
    """`besides` is made besides what every member has, but for what is `without` (gp, plan, hra, coverage).

    `found` are the questions that find the member, `admitted` the hospitals of the admissions of the last 30 days.
    """

    name: str
    found: str = ""
    besides: Make = lambda day, name: []
    without: str = ""
    patient: Callable[[Day], Resource] = lambda day: {}
    admitted: str = ""
    emergencies: int = 0
    readmissions: int = 0
    counts: bool = True


def stay(
    class_: str, start: int, end: int | None = None, *, at: str = "general", **more: Any
) -> Make:
    def make(day: Day, name: str) -> list[Resource]:
        period = {"start": day.noon(start)} | ({} if end is None else {"end": day.noon(end)})
        return [
            {
                "resourceType": "Encounter",
                "id": f"{name}-{class_.lower()}{-start}",
                "status": "in-progress" if end is None else "finished",
                "class": {"system": ACT_CODE, "code": class_},
                "subject": ref(f"Patient/{name}"),
                "period": period,
                "serviceProvider": ref(f"Organization/{at}"),
                **more,
            }
        ]

    return make


def all_of(*parts: Make) -> Make:
    return lambda day, name: [each for part in parts for each in part(day, name)]


def plan(start: int, end: int | None, status: str = "active", intent: str = "plan") -> Make:
    return lambda day, name: [
        {
            "resourceType": "CarePlan",
            "id": f"{name}-plan",
            "status": status,
            "intent": intent,
            "subject": ref(f"Patient/{name}"),
            "period": day.period(start, end),
        }
    ]


def assessed(days: int, status: str = "completed", form: Resource | None = None) -> Make:
    return lambda day, name: [
        {
            "resourceType": "QuestionnaireResponse",
            "id": f"{name}-hra",
            "status": status,
            "subject": ref(f"Patient/{name}"),
            "authored": day(days),
            **(form or {"questionnaire": HRA}),
        }
    ]


def covered(start: int, end: int | None = None, by: str = "plan", status: str = "active") -> Make:
    return lambda day, name: [
        {
            "resourceType": "Coverage",
            "id": f"{name}-coverage",
            "status": status,
            "beneficiary": ref(f"Patient/{name}"),
            "payor": [ref(f"Organization/{by}")],
            "period": day.period(start, end),
        }
    ]


def enrolled(start: int, end: int | None = None, reason: str | None = None) -> Make:
    def make(day: Day, name: str) -> list[Resource]:
        episode: Resource = {
            "resourceType": "EpisodeOfCare",
            "id": f"{name}-episode",
            "status": "active" if end is None else "finished",
            "type": [concept("episode-type", "case-management")],
            "patient": ref(f"Patient/{name}"),
            "period": day.period(start, end),
        }
        if reason is not None:
            code = concept("episode-end-reason", reason)
            url = f"{EXTENSIONS}episode-end-reason"
            episode["extension"] = [{"url": url, "valueCodeableConcept": code}]
        return [episode]

    return make


def consented(provision: Resource, *categories: str) -> Make:
    return lambda day, name: [
        {
            **consent(*categories, provision=provision),
            "id": f"{name}-consent",
            "patient": ref(f"Patient/{name}"),
        }
    ]


def team(
    code: str = "453231000124104", *, until: int | None = None, who: str = "riverside"
) -> Make:
    def make(day: Day, name: str) -> list[Resource]:
        made = care_team(f"{name}-team", name, f"Organization/{who}", code)
        if until is not None:
            made["participant"][0]["period"] = day.period(-300, until)
        return [made]

    return make


def doctor(reference: str, until: int | None = None) -> Callable[[Day], Resource]:
    def make(day: Day) -> Resource:
        named = ref(reference)
        if until is not None:
            period = day.period(-300, until)
            named["extension"] = [{"url": ATTRIBUTION_PERIOD, "valuePeriod": period}]
        return {"generalPractitioner": [named]}

    return make


TAG = {"meta": {"tag": [{"system": f"{CODES}assessment-kind", "code": "health-risk-assessment"}]}}
AT_HOME = {"hospitalization": {"dischargeDisposition": {"coding": [{"code": "home"}]}}}

MEMBERS = [
    Member("well"),
    # Primary care
    Member("nobodys", "no-pcp", without="gp", patient=lambda day: {"name": [{"text": "=1+1"}]}),
    Member("left-doctor", "no-pcp", patient=doctor("Organization/riverside", -1)),
    Member("doctors-role-over", "no-pcp", patient=doctor("PractitionerRole/retired")),
    Member("doctors-role", patient=doctor("PractitionerRole/working")),
    Member("by-team", besides=team(), without="gp"),
    Member("team-of-others", "no-pcp", besides=team("17561000"), without="gp"),
    Member("team-over", "no-pcp", besides=team(until=-1), without="gp"),
    Member("team-said-so", "no-pcp", besides=team(until=-1)),
    Member("on-roster", without="gp"),
    Member("off-roster", "no-pcp", without="gp"),
    # Plans of care
    Member("planless", "no-care-plan", without="plan"),
    Member("drafted", "no-care-plan", besides=plan(-30, None, "draft"), without="plan"),
    Member("ordered", "no-care-plan", besides=plan(-30, None, intent="order"), without="plan"),
    Member("planned-later", "no-care-plan", besides=plan(5, None), without="plan"),
    Member("plan-over", "no-care-plan care-plan-overdue", besides=plan(-90, -5), without="plan"),
    # Assessments
    Member("never-asked", "hra-overdue", besides=covered(-100), without="hra coverage"),
    Member("new-member", besides=covered(-80), without="hra coverage"),
    Member("asked-long-ago", "hra-overdue", besides=assessed(-400), without="hra"),
    Member("asked-by-tag", besides=assessed(-10, form=TAG), without="hra"),
    Member("not-answered", "hra-overdue", besides=assessed(-10, "in-progress"), without="hra"),
    Member("enrolled-late", "hra-overdue", besides=enrolled(-100), without="hra"),
    Member("enrolled-now", besides=enrolled(-10), without="hra"),
    # Hospital
    Member("inside", "in-hospital", besides=stay("IMP", -2), admitted="general"),
    Member("watched", "in-hospital", besides=stay("OBSENC", -1)),
    Member(
        "gone-home",
        besides=stay("IMP", -2, -1, at="city", status="in-progress", **AT_HOME),
        admitted="city",
    ),
    Member("emergency", besides=stay("EMER", -1, -1), emergencies=1),
    Member("called-off", besides=stay("IMP", -3, -2, status="cancelled")),
    Member("unseen", "no-follow-up", besides=stay("IMP", -10, -5), admitted="general"),
    Member("seen", besides=all_of(stay("IMP", -10, -5), stay("VR", -3, -3)), admitted="general"),
    Member(
        "seen-too-early",
        "no-follow-up",
        besides=all_of(stay("IMP", -10, -5), stay("AMB", -5, -5)),
        admitted="general",
    ),
    Member(
        "back-again",
        "readmission no-follow-up",
        besides=all_of(stay("IMP", -20, -15), stay("ACUTE", -5, -2, at="city")),
        admitted="general city",
        readmissions=1,
    ),
    Member(
        "moved-on",
        "no-follow-up",
        besides=all_of(stay("IMP", -12, -8), stay("IMP", -8, -4, at="city")),
        admitted="general city",
    ),
    Member(
        "back-late",
        "in-hospital",
        besides=all_of(stay("IMP", -60, -50), stay("IMP", -10)),
        admitted="general",
    ),
    Member(
        "nursed",
        "in-hospital",
        besides=all_of(stay("IMP", -20, -15), stay("NONAC", -12)),
        admitted="general general",
    ),
    # Consent
    Member("refuser", "opt-out", besides=consented(deny(), "pcp-notification")),
    Member("agreed", besides=consented(permit(), "case-management")),
    Member(
        "refused-once", besides=consented(deny(period={"end": "2020-01-01"}), "provider-access")
    ),
    Member("ended-it", "opt-out", besides=enrolled(-200, -50, "opted-out")),
    # Who does not count
    Member("dead", without="gp plan", patient=lambda day: {"deceasedBoolean": True}, counts=False),
    Member("unused", without="gp plan", patient=lambda day: {"active": False}, counts=False),
    Member(
        "double",
        without="gp plan",
        patient=lambda day: {"link": [{"type": "replaced-by", "other": ref("Patient/well")}]},
        counts=False,
    ),
    Member("former", besides=covered(-400, -10), without="gp plan coverage", counts=False),
    Member("of-another", besides=covered(-400, by="other"), without="gp coverage", counts=False),
    Member(
        "cancelled",
        besides=covered(-400, status="cancelled"),
        without="gp plan coverage",
        counts=False,
    ),
]


def resources(day: Day) -> Iterator[Resource]:
    """Everything that is stored."""
    for name in ("plan", "other", "riverside", "general", "city"):
        yield organization(name)
    yield practitioner("dr-who")
    yield role("working", "dr-who", "riverside")
    yield role("retired", "dr-who", "riverside", active=False)
    yield panel("roster", "Organization/riverside", "Patient/on-roster", "Patient/off-roster") | {
        "member": [
            {"entity": ref("Patient/on-roster")},
            {"entity": ref("Patient/off-roster"), "period": day.period(-300, -1)},
        ]
    }
    for member in MEMBERS:
        yield from _of(member, day)


def _of(member: Member, day: Day) -> Iterator[Resource]:
    without = member.without.split()
    usual = {} if "gp" in without else {"generalPractitioner": [ref("Organization/riverside")]}
    own = {"resourceType": "Patient", "id": member.name, "birthDate": "1950-02-01"}
    yield {**own, **usual, **member.patient(day)}
    for name, make in (
        ("plan", plan(-90, 90)),
        ("hra", assessed(-100)),
        ("coverage", covered(-400)),
    ):
        if name not in without:
            yield from make(day, member.name)
    yield from member.besides(day, member.name)


def expected(question: str) -> list[str]:
    """The members whom a question has to find."""
    return sorted(each.name for each in MEMBERS if each.counts and question in each.found.split())
