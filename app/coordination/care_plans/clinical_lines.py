"""What a document says of a patient's record: problems, medications, allergies and the like, one line for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.lines import joined
from app.coordination.care_plans.phrases import Phrases
from app.coordination.care_plans.record import PlanRecord
from app.fhir.codes import RISK_TIERS
from app.fhir.json import Resource

_SYSTEMS = {
    "http://hl7.org/fhir/sid/icd-10": "ICD-10",
    "http://hl7.org/fhir/sid/icd-10-cm": "ICD-10-CM",
    "http://snomed.info/sct": "SNOMED CT",
    "http://www.nlm.nih.gov/research/umls/rxnorm": "RxNorm",
}
# The parts of an address that a Coverage is told by.
_PLAN_CLASS = "plan"


def condition_line(condition: Resource, say: Phrases, *, codes: bool = False) -> str:
    """A Condition with its status, severity and onset, and with its codes where these are wanted."""
    onset = words.choice(condition, "onset")
    verified = condition.get("verificationStatus")
    sure = "confirmed" in words.codes(verified)
    return words.listing(
        (
            words.title(condition) or say("a condition without a name"),
            _codes(condition.get("code")) if codes else "",
            say.concept(condition.get("clinicalStatus")),
            "" if sure else say.concept(verified),
            say.concept(condition.get("severity")),
            say("since {start}", start=onset) if onset else "",
            _notes(condition),
        )
    )


def _codes(concept: Mapping[str, Any] | None) -> str:
    """The codes of a concept, each with the name of its system."""
    found = [
        f"{_SYSTEMS[coding['system']]} {coding['code']}"
        for coding in (concept or {}).get("coding", ())
        if coding.get("system") in _SYSTEMS and "code" in coding
    ]
    return f"[{'; '.join(found)}]" if found else ""


def _notes(resource: Resource) -> str:
    return words.listing(note.get("text", "") for note in resource.get("note", ()))


def medication_line(medication: Resource, record: PlanRecord, say: Phrases) -> str:
    """A medication: name, dose, what for, who prescribed it and when."""
    reasons = [
        *(words.reference(each, record.names) for each in medication.get("reasonReference", ())),
        words.concept(medication.get("reasonCode")),
    ]
    status = medication.get("status")
    prescriber = medication.get("requester") or medication.get("informationSource")
    since = words.day(medication.get("authoredOn")) or words.choice(medication, "effective")
    return joined(
        (
            medication_title(medication, record, say),
            doses_of(medication, say),
            "" if status == "active" else say.code(status),
            say.labelled("for", words.listing(reasons)),
            say.labelled("by", words.reference(prescriber, record.names)),
            since,
            _notes(medication),
        )
    )


def medication_title(medication: Resource, record: PlanRecord, say: Phrases) -> str:
    """The name of a medication, after the word that it must not be given where that is what was ordered."""
    name = words.concept(medication.get("medicationCodeableConcept")) or words.reference(
        medication.get("medicationReference"), record.names
    )
    name = name or say("a medication without a name")
    return say("DO NOT GIVE: {name}", name=name) if medication.get("doNotPerform") else name


def doses_of(medication: Resource, say: Phrases) -> str:
    """The dosages of a medication, in the order in which they are to be followed."""
    found = [*medication.get("dosageInstruction", ()), *medication.get("dosage", ())]
    found.sort(key=lambda each: each.get("sequence", 0))
    return words.listing(dosage(each, say) for each in found)


def dosage(value: Mapping[str, Any], say: Phrases) -> str:
    """A Dosage: its text, else dose, route, timing and what else it says."""
    if "text" in value:
        return str(value["text"])
    most = value.get("maxDosePerPeriod", {})
    shares = [words.quantity(most.get(each)) for each in ("numerator", "denominator")]
    doses = [words.choice(each, "dose") for each in value.get("doseAndRate", ())]
    return words.listing(
        (
            *doses,
            words.concept(value.get("route")),
            words.timing(value.get("timing", {})),
            say("as needed") if value.get("asNeededBoolean") else "",
            say.labelled("as needed", words.concept(value.get("asNeededCodeableConcept"))),
            say.labelled("at most", " / ".join(shares)) if all(shares) else "",
            str(value.get("patientInstruction", "")),
        )
    )


def allergy_line(allergy: Resource, say: Phrases) -> str:
    """An allergy: to what, how dangerous it is, and what it did."""
    criticality = allergy.get("criticality")
    verified = allergy.get("verificationStatus")
    sure = "confirmed" in words.codes(verified)
    return joined(
        (
            words.title(allergy) or say("an allergy without a name"),
            say.labelled("criticality", say.code(criticality)),
            *(_reaction(each, say) for each in allergy.get("reaction", ())),
            "" if sure else say.concept(verified),
            say.labelled("last seen", words.day(allergy.get("lastOccurrence"))),
            _notes(allergy),
        )
    )


def _reaction(reaction: Mapping[str, Any], say: Phrases) -> str:
    shown = words.concept(reaction.get("manifestation")) or str(reaction.get("description", ""))
    severity = say.code(reaction.get("severity"))
    return say.labelled("reaction", f"{shown} ({severity})" if severity else shown)


def directive_line(directive: Resource, record: PlanRecord, say: Phrases) -> str:
    """An advance directive: which, what is agreed to or refused, who may decide, since when, and where the paper is."""
    if directive["resourceType"] == "DocumentReference":
        kept = words.reference(directive.get("custodian"), record.names)
        name = str(directive.get("description", "")) or words.concept(directive.get("type"))
        return joined((name, words.day(directive.get("date")), say.labelled("kept by", kept)))
    provision = directive.get("provision", {})
    name = words.concept(directive.get("category")) or words.concept(directive.get("scope"))
    actors = [
        joined(
            (
                words.reference(each.get("reference"), record.names),
                words.concept(each.get("role")),
            )
        )
        for each in provision.get("actor", ())
    ]
    source = directive.get("sourceAttachment", {}).get("title", "")
    subjects = words.concept(provision.get("code"))
    stated = say.code(provision.get("type"))
    return joined(
        (
            name or say("an advance directive without a name"),
            f"{stated}: {subjects}" if stated and subjects else subjects,
            say.labelled("names", words.listing(actors)),
            words.day(directive.get("dateTime")),
            say.period(provision.get("period")),
            say.labelled("paper", str(source)),
        )
    )


def stay_line(encounter: Resource, record: PlanRecord, say: Phrases) -> str:
    """A stay: kind, hospital, days, reason, where the patient went, and that it goes on."""
    hospital = words.reference(encounter.get("serviceProvider"), record.names) or words.listing(
        words.reference(each.get("location"), record.names)
        for each in encounter.get("location", ())
    )
    reasons = [
        words.concept(encounter.get("reasonCode")),
        *(words.reference(each, record.names) for each in encounter.get("reasonReference", ())),
        *(
            words.reference(each.get("condition"), record.names)
            for each in encounter.get("diagnosis", ())
        ),
    ]
    left = say.concept(encounter.get("hospitalization", {}).get("dischargeDisposition"))
    status = encounter.get("status")
    return joined(
        (
            say.concept(encounter.get("class")),
            words.concept(encounter.get("type")),
            hospital,
            say.period(encounter.get("period")),
            say.labelled("reason", words.listing(dict.fromkeys(reasons))),
            say.labelled("discharged to", left),
            "" if status == "finished" else say.code(status),
        )
    )


def coverage_line(coverage: Resource, record: PlanRecord, say: Phrases) -> str:
    """A Coverage: its kind, who pays, the plan, the member's number and the period."""
    payors = [words.reference(each, record.names) for each in coverage.get("payor", ())]
    plans = [
        str(each.get("name") or each.get("value", ""))
        for each in coverage.get("class", ())
        if _PLAN_CLASS in words.codes(each.get("type"))
    ]
    return joined(
        (
            words.concept(coverage.get("type")),
            words.listing(payors),
            say.labelled("plan", words.listing(plans)),
            say.labelled("member number", str(coverage.get("subscriberId", ""))),
            say.period(coverage.get("period")),
        )
    )


def observation_line(observation: Resource, say: Phrases) -> str:
    """An Observation: what, the value or its parts, what that means, and the day."""
    parts = [
        say.labelled(words.concept(each.get("code")), words.choice(each, "value"))
        for each in observation.get("component", ())
    ]
    value = words.choice(observation, "value") or words.listing(parts)
    return joined(
        (
            say.labelled(words.title(observation), value)
            or words.title(observation)
            or say("without a name"),
            say.concept(observation.get("interpretation")),
            words.day(observation.get("effectiveDateTime") or observation.get("issued")),
            _notes(observation),
        )
    )


def resource_line(resource: Resource, record: PlanRecord, say: Phrases) -> str:
    """A resource of the record, of whatever type: its title, value, status and date."""
    if resource["resourceType"] == "Observation":
        return observation_line(resource, say)
    if resource["resourceType"] == "Condition":
        return condition_line(resource, say)
    when = next(
        (
            words.day(resource[name])
            for name in ("performedDateTime", "effectiveDateTime", "authoredOn", "date", "issued")
            if name in resource
        ),
        "",
    )
    return joined(
        (
            words.title(resource)
            or words.concept(resource.get("category"))
            or say("without a name"),
            words.choice(resource, "value"),
            words.concept(resource.get("outcome")),
            say.code(resource.get("status")),
            when,
        )
    )


# Risk, with what it means


def tier_line(codes: Iterable[str], name: str, say: Phrases) -> str:
    """The member's risk tier, with its place among all tiers where it is one of ours."""
    known = next((code for code in codes if code in RISK_TIERS), None)
    if known is None:
        return name
    place = say(
        "tier {place} of {count}, from low to very high",
        place=RISK_TIERS.index(known) + 1,
        count=len(RISK_TIERS),
    )
    return f"{name} ({place})"


def risk_lines(risk: Resource, say: Phrases) -> list[str]:
    """A RiskAssessment, a line for each prediction: of what, how likely, within which time, and why."""
    made = words.choice(risk, "occurrence")
    method = words.concept(risk.get("method")) or words.concept(risk.get("code"))
    lines = [
        joined(
            (
                words.concept(each.get("outcome")) or say("risk"),
                say.concept(each.get("qualitativeRisk")),
                _likelihood(each, say),
                say.labelled("within", words.choice(each, "when")),
                say.labelled("because", str(each.get("rationale", ""))),
            )
        )
        for each in risk.get("prediction", ())
    ]
    about = joined(
        (method, made, say.labelled("to lower it", str(risk.get("mitigation", ""))), _notes(risk))
    )
    return [*lines, about] if about else lines


def _likelihood(prediction: Mapping[str, Any], say: Phrases) -> str:
    """The probability in words for people: of a hundred like this member, how many."""
    found = prediction.get("probabilityDecimal")
    relative = prediction.get("relativeRisk")
    parts = []
    if found is not None:
        # By R4 a decimal may be a percentage as well; above 1 it can be nothing else.
        percent = float(found) * (1 if float(found) > 1 else 100)
        shown = f"{percent:.0f}" if percent >= 1 else f"{percent:.2g}"
        parts.append(say("about {number} of 100 members like this one", number=shown))
    elif "probabilityRange" in prediction:
        parts.append(words.choice(prediction, "probability"))
    if relative is not None:
        parts.append(say("{times} times the usual risk", times=relative))
    return words.listing(parts)


# The answers of a health risk assessment


def answer_pairs(response: Resource, say: Phrases) -> list[tuple[str, str]]:
    """All questions that were asked, in their order, with their answers; one without an answer says so."""
    return list(_answers(response.get("item", ()), say))


def _answers(items: Iterable[Mapping[str, Any]], say: Phrases) -> Iterable[tuple[str, str]]:
    for item in items:
        answers = item.get("answer", ())
        nested = [*item.get("item", ()), *(each for a in answers for each in a.get("item", ()))]
        question = str(item.get("text") or say("Question {number}", number=item.get("linkId", "")))
        if answers:
            yield question, words.listing(_answer(each, say) for each in answers)
        elif not nested:
            yield question, say("not answered")
        yield from _answers(nested, say)


def _answer(answer: Mapping[str, Any], say: Phrases) -> str:
    if "valueBoolean" in answer:
        return say("yes") if answer["valueBoolean"] else say("no")
    return words.choice(answer, "value") or words.reference(answer.get("valueReference"), {})
