"""The answer of one Consent to one question: by its base rule, its provisions and their exceptions.

https://hl7.org/fhir/R4/consent.html: a provision nested in another is an exception to it. A part of a provision that
the server does not evaluate makes it uncertain: a refusal then counts as far as it may hold, a permission not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any

from app.consent import labels
from app.consent.labels import Labels
from app.consent.recipients import Recipient
from app.fhir.instants import END
from app.fhir.json import Resource
from app.search import spans

Provision = Mapping[str, Any]

RESOURCE_TYPES = "http://hl7.org/fhir/resource-types"
# policyRule of the v3 consent directives: the base rule, where the root provision has no type.
_POLICIES = {"OPTIN": "permit", "OPTINR": "permit", "OPTOUT": "deny", "OPTOUTE": "deny"}
# Purposes of use (v3-ActReason): of notices to providers, of those to authorities besides, and foreign ones.
_CARE = frozenset({"TREAT", "CAREMGT", "COC", "ETREAT"})
_ADMINISTRATION = frozenset({"HOPERAT", "HPAYMT", "COVERAGE", "MEMADMIN", "POPHLTH", "GOV"})
_FOREIGN = frozenset(
    {
        *("HMARKT", "HRESCH", "BIORCH", "CLINTRCH", "CLINTRCHNPC", "CLINTRCHPC", "PRECLINTRCH"),
        *("DSRCH", "POARCH", "TRANSRCH", "CLINTRL", "FAMRQT", "PATRQT", "PWATRNY", "SUPNWK"),
        *("HLEGAL", "TRAIN", "FRAUD", "PATADMIN"),
    }
)
# Roles of actors that hold, wrote or witnessed; an actor in any other role counts as a recipient.
_NO_RECIPIENTS = frozenset({"CST", "AUT", "ENT", "INF", "WIT", "TRANS", "GRANTOR", "CONSENTER"})
_ADDRESSABLE = ("Practitioner", "PractitionerRole", "Organization")
_NEVER_ADDRESSED = ("Patient", "RelatedPerson", "Device")
_ACTIONS = {"access": True, "disclose": True, "collect": False, "use": False, "correct": False}


class ProvisionMatch(IntEnum):
    """Whether a condition holds of a question."""

    NO = 0
    MAYBE = 1
    YES = 2


class Effect(IntEnum):
    """The effect of a Consent, the stricter the greater; NOTHING where it does not answer."""

    NOTHING = 0
    PERMIT = 1
    UNSURE = 2
    DENY = 3


@dataclass(frozen=True, slots=True)
class ConsentQuestion:
    """May this resource (`Encounter/e1` with its labels) be disclosed to the recipient at that time?

    `custodian` is the organization whose record it is (`Organization/o1`), None where it is none's. `whole_of` asks
    about one sensitivity instead: may content with this label be disclosed in full?
    """

    focus: str
    labels: Labels
    recipient: Recipient
    at: datetime
    whole_of: str | None = None
    custodian: str | None = None

    @property
    def focus_type(self) -> str:
        return self.focus.partition("/")[0]


def answer(consent: Resource, question: ConsentQuestion, *, names_label: bool = False) -> Effect:
    """The effect of a Consent, whatever its status and category. `names_label`: its category names labelled content."""
    if "modifierExtension" in consent:
        return Effect.UNSURE
    base, root = base_rule(consent), consent.get("provision", {})
    if not _runs(root, question.at):
        return Effect.NOTHING
    if "type" not in root and base is not Effect.NOTHING:
        root = {**root, "type": "deny" if base is Effect.DENY else "permit"}
    found = _of_provision(root, question, names_label)
    if "policyRule" not in consent or base is Effect.NOTHING:
        return found
    if found is Effect.PERMIT and base is Effect.DENY and not _is_conditional(root):
        return Effect.UNSURE
    if found is Effect.NOTHING and (base is Effect.DENY or question.whole_of is None):
        return base
    return found


def is_understood(consent: Resource) -> bool:
    """Whether no part of it is uncertain, whatever the question."""
    if "modifierExtension" in consent:
        return False
    root = consent.get("provision", {})
    if not says_something(consent) and _is_conditional(root):
        return False
    contradicts = base_rule(consent) is Effect.DENY and root.get("type") == "permit"
    return _is_clear(root) and not (contradicts and not _is_conditional(root))


def says_something(consent: Resource) -> bool:
    """Whether it has any rule at all: a policy, a type, or exceptions."""
    root = consent.get("provision", {})
    return base_rule(consent) is not Effect.NOTHING or "type" in root or bool(root.get("provision"))


def is_running(consent: Resource, at: datetime) -> bool:
    """Whether the period of its root provision takes in a moment."""
    return _runs(consent.get("provision", {}), at)


def _runs(provision: Provision, at: datetime) -> bool:
    return spans.holds(spans.of(provision.get("period")), at)


def base_rule(consent: Resource) -> Effect:
    """What its policy says where no provision does."""
    codings = consent.get("policyRule", {}).get("coding", ())
    said = {_POLICIES[each["code"]] for each in codings if each.get("code") in _POLICIES}
    if "deny" in said:
        return Effect.DENY
    return Effect.PERMIT if said else Effect.NOTHING


def _of_provision(provision: Provision, question: ConsentQuestion, names_label: bool) -> Effect:
    """The effect of a provision with its exceptions; NOTHING where it is not about the question."""
    if not _runs(provision, question.at):
        return Effect.NOTHING
    match = min(test(provision, question) for test in _TESTS)
    if "modifierExtension" in provision:
        match = min(match, ProvisionMatch.MAYBE)
    if match is ProvisionMatch.NO:
        return Effect.NOTHING
    names_label = names_label or "securityLabel" in provision
    nested = provision.get("provision", ())
    # Of several exceptions the strictest counts.
    exception = max(
        (_of_provision(each, question, names_label) for each in nested), default=Effect.NOTHING
    )
    own = _own(provision, match)
    if own is Effect.PERMIT and question.whole_of is not None and not names_label:
        own = Effect.NOTHING
    if exception is Effect.NOTHING:
        return own
    if match is ProvisionMatch.MAYBE:
        # The provision, and with it the exception, may not apply: the stricter counts, a permission not at all.
        strictest = max(own, Effect.UNSURE if exception is Effect.DENY else exception)
        return Effect.NOTHING if strictest is Effect.PERMIT else strictest
    return max(own, exception) if exception is Effect.UNSURE else exception


def _own(provision: Provision, match: ProvisionMatch) -> Effect:
    type_ = provision.get("type")
    if type_ == "permit":
        return Effect.PERMIT if match is ProvisionMatch.YES else Effect.NOTHING
    if type_ == "deny":
        return Effect.DENY if match is ProvisionMatch.YES else Effect.UNSURE
    # Without a type it is a frame for its exceptions, or a rule whose effect is unknown.
    is_frame = "provision" in provision or not _is_conditional(provision)
    return Effect.NOTHING if is_frame else Effect.UNSURE


# Conditions: each is a function of a provision and the question


def _among(tests: Iterable[ProvisionMatch]) -> ProvisionMatch:
    """Whether any of the values of one element matches; without values there is no condition."""
    found = list(tests)
    return max(found) if found else ProvisionMatch.YES


def _actor(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    permits = provision.get("type") == "permit"
    return _among(_is_actor(each, question, permits) for each in provision.get("actor", ()))


def _is_actor(actor: Mapping[str, Any], question: ConsentQuestion, permits: bool) -> ProvisionMatch:
    roles = {coding.get("code") for coding in actor.get("role", {}).get("coding", ())}
    reference = actor.get("reference", {}).get("reference", "")
    if roles & _NO_RECIPIENTS:
        return ProvisionMatch.MAYBE
    # An absolute reference is one to another server (`with_local_references`), and equal to none of ours.
    type_, _, id_ = reference.partition("/_history/")[0].partition("/")
    if not id_ or "/" in id_ or type_ not in (*_ADDRESSABLE, *_NEVER_ADDRESSED):
        return ProvisionMatch.MAYBE
    recipient = question.recipient
    if recipient.reference is None:
        # The unknown recipient may be the one that is refused, and is never taken for one that is permitted.
        return _known(not permits and type_ in _ADDRESSABLE)
    known = recipient.itself if permits else recipient.around
    return ProvisionMatch.YES if f"{type_}/{id_}" in known else ProvisionMatch.NO


def _action(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    return _among(
        _known(_ACTIONS.get(coding.get("code", "")))
        for action in provision.get("action", ())
        for coding in action.get("coding", [{}])
    )


def _purpose(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    ours = _CARE | _ADMINISTRATION if question.recipient.kind == "authority" else _CARE
    others = (_FOREIGN | _ADMINISTRATION) - ours
    return _among(
        ProvisionMatch.YES
        if coding.get("code") in ours
        else _known(False if coding.get("code") in others else None)
        for coding in provision.get("purpose", ())
    )


def _class(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    return _among(
        _known(coding.get("code") == question.focus_type)
        if coding.get("system") == RESOURCE_TYPES
        else ProvisionMatch.MAYBE
        for coding in provision.get("class", ())
    )


def _label(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    permits = provision.get("type") == "permit"
    return _among(
        _is_labelled(coding, question, permits) for coding in provision.get("securityLabel", ())
    )


def _is_labelled(
    coding: Mapping[str, Any], question: ConsentQuestion, permits: bool
) -> ProvisionMatch:
    code = next(iter(labels.codes([coding])), None)
    if code is None:
        return ProvisionMatch.MAYBE
    if code in labels.LEVELS:
        if question.whole_of is not None:
            return _known(permits and code == question.whole_of)
        actual, limit = labels.level(question.labels), labels.LEVELS.index(code)
        # A permission reaches up to its level, a refusal begins there.
        return _known(actual <= limit if permits else actual >= limit)
    about = question.labels if question.whole_of is None else {question.whole_of}
    return _known(bool(labels.covered(code, by_permission=permits) & about))


def _data(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    return _among(_is_data(each, question) for each in provision.get("data", ()))


def _is_data(data: Mapping[str, Any], question: ConsentQuestion) -> ProvisionMatch:
    reference = data.get("reference", {}).get("reference", "")
    if reference == question.focus:
        return ProvisionMatch.YES
    return _known(False if data.get("meaning") == "instance" and reference else None)


def _uncertain(provision: Provision, question: ConsentQuestion) -> ProvisionMatch:
    """MAYBE for conditions on the content (`code`, `dataPeriod`), which are not evaluated."""
    return (
        ProvisionMatch.MAYBE
        if "code" in provision or "dataPeriod" in provision
        else ProvisionMatch.YES
    )


def _known(value: bool | None) -> ProvisionMatch:
    return (
        ProvisionMatch.MAYBE
        if value is None
        else ProvisionMatch.YES
        if value
        else ProvisionMatch.NO
    )


Test = Callable[[Provision, ConsentQuestion], ProvisionMatch]
_TESTS: tuple[Test, ...] = (_actor, _action, _purpose, _class, _label, _data, _uncertain)
_CONDITIONS = ("actor", "action", "purpose", "class", "securityLabel", "data", "code", "dataPeriod")


def _is_conditional(provision: Provision) -> bool:
    return any(name in provision for name in _CONDITIONS)


def _is_clear(provision: Provision) -> bool:
    """Whether no condition of a provision or its exceptions is uncertain by itself."""
    if "modifierExtension" in provision:
        return False
    nobody = ConsentQuestion("Basic/-", labels.NONE, Recipient("Organization/-"), END)
    if ProvisionMatch.MAYBE in (test(provision, nobody) for test in _TESTS):
        return False
    return all("type" in each and _is_clear(each) for each in provision.get("provision", ()))
