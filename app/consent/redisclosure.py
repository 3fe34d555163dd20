"""The notice that goes with content of 42 CFR Part 2 that a Consent lets somebody have, and what that Consent is about.

https://www.ecfr.gov/current/title-42/section-2.32: the short form of the notice, and an explanation of the consent.
In notices they are an extension of `meta`, which a Bundle and a single resource carry alike, in whatever channel; with
answers they are a header, since what is read is told as it is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from app.consent import labels
from app.fhir.codes import REDISCLOSURE_NOTICE
from app.fhir.json import Resource

HEADER = "CareRelay-Redisclosure-Notice"
_LONGEST_HEADER = 2_000
NOTICE = "42 CFR part 2 prohibits unauthorized use or disclosure of these records."
_NO_REDISCLOSURE = {
    "system": labels.ACT_CODE,
    "code": "NORDSCLCD",
    "display": "no redisclosure without consent directive",
}
_PART_2 = {"system": labels.ACT_CODE, "code": labels.PART_2}


def with_redisclosure_notice(
    resource: Resource, consents: Iterable[Resource], base_url: str = ""
) -> Resource:
    """A copy of what is disclosed that carries the notice; the resource itself where no Consent was needed."""
    each = {consent["id"]: consent for consent in consents}
    if not each:
        return resource
    meta = resource.get("meta", {})
    known = {coding.get("code") for coding in meta.get("security", ())}
    added = [coding for coding in (_PART_2, _NO_REDISCLOSURE) if coding["code"] not in known]
    place = f"{base_url}/" if base_url else ""
    notice = {
        "url": REDISCLOSURE_NOTICE,
        "extension": [
            {"url": "notice", "valueString": NOTICE},
            *(
                {
                    "url": "consent",
                    "valueReference": {
                        "reference": f"{place}Consent/{id_}",
                        "display": explanation(consent),
                    },
                }
                for id_, consent in each.items()
            ),
        ],
    }
    return {
        **resource,
        "meta": {
            **meta,
            "extension": [*meta.get("extension", ()), notice],
            "security": [*meta.get("security", ()), *added],
        },
    }


def lines(resource: Resource | None) -> Sequence[str]:
    """The notice and the explanations that a resource carries, as lines of text."""
    return [
        part.get("valueString") or part["valueReference"]["display"] for part in _parts(resource)
    ]


def consents_of(resource: Resource | None) -> tuple[str, ...]:
    """The Consents (`Consent/c1`) that the notice of a resource names."""
    named = [part["valueReference"]["reference"] for part in _parts(resource)[1:]]
    return tuple("/".join(each.rsplit("/", 2)[-2:]) for each in named)


def _parts(resource: Resource | None) -> Sequence[Mapping[str, Any]]:
    """The notice, then its Consents; empty for a resource that carries none."""
    extensions = (resource or {}).get("meta", {}).get("extension", ())
    found = [each for each in extensions if each.get("url") == REDISCLOSURE_NOTICE]
    return found[-1]["extension"] if found else ()


# The Consents without which the answer to the current request could not tell what it tells, by id.
_needed: ContextVar[dict[str, Resource] | None] = ContextVar("needed", default=None)


@contextmanager
def collecting() -> Iterator[Mapping[str, Resource]]:
    """Collect the Consents that are needed while the context is open; they are needed around it as well."""
    outer = _needed.get()
    found: dict[str, Resource] = {}
    token = _needed.set(found)
    try:
        yield found
    finally:
        _needed.reset(token)
        if outer is not None:
            outer.update(found)


def note(consents: Iterable[Resource]) -> None:
    """Note Consents without which something could not be told in answer to the current request, if there is one."""
    if (needed := _needed.get()) is not None:
        needed.update((each["id"], each) for each in consents)


def noted() -> Sequence[str]:
    """The Consents (`Consent/c1`) that were noted so far."""
    return [f"Consent/{each}" for each in _needed.get() or ()]


def take_noted() -> list[Resource]:
    """The Consents that were noted so far, which are then noted no more."""
    needed = _needed.get()
    found = list((needed or {}).values())
    if needed is not None:
        needed.clear()
    return found


def header(explanations: Iterable[str]) -> str:
    """The notice with explanations of Consents as the value of a header; where they are too long for it, cut short."""
    text = " ".join((NOTICE, *(f"{each}." for each in explanations)))
    shown = "".join(each if " " <= each <= "~" else "?" for each in text)
    return shown if len(shown) <= _LONGEST_HEADER else f"{shown[: _LONGEST_HEADER - 3]}..."


def headers(consents: Collection[Resource]) -> dict[str, str]:
    """The header of an answer that needed these Consents; none without any."""
    return {HEADER: header(map(explanation, consents))} if consents else {}


def explanation(consent: Resource) -> str:
    """The scope of a Consent in words: what it permits and refuses, to whom, when and for what."""
    given = f", given {consent['dateTime']}" if "dateTime" in consent else ""
    rules = [*_rules(consent.get("provision", {}))] or ["permits disclosure by its policy"]
    return f"Consent/{consent['id']}{given}: {'; '.join(rules)}"


def _rules(provision: Mapping[str, Any]) -> Iterable[str]:
    """The provision and its exceptions, each as a part of a sentence."""
    if "type" in provision:
        verb = "permits" if provision["type"] == "permit" else "refuses"
        yield " ".join((f"{verb} disclosure", *_conditions(provision)))
    for each in provision.get("provision", ()):
        for rule in _rules(each):
            yield f"except that it {rule}" if "type" in provision else rule


def _conditions(provision: Mapping[str, Any]) -> Iterable[str]:
    if of := _codes(provision.get("securityLabel", ())):
        yield f"of records labelled {of}"
    if of := _codes(provision.get("class", ())):
        yield f"of {of}"
    if named := [_name(each.get("reference", {})) for each in provision.get("actor", ())]:
        yield f"to {', '.join(named)}"
    if use := _codes(provision.get("purpose", ())):
        yield f"for {use}"
    period = provision.get("period", {})
    if "start" in period:
        yield f"from {period['start']}"
    if "end" in period:
        yield f"until {period['end']}"


def _codes(codings: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(each.get("display") or each.get("code", "") for each in codings)


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference.get("display") or reference.get("reference", "somebody"))
