"""What a Consent says, whatever the question: whom its permissions and refusals name, and whether labels matter."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from app.consent import provisions
from app.consent.provisions import Provision
from app.fhir.json import Resource


def names_actors(consent: Resource) -> bool:
    """Whether any provision depends on the recipient."""
    return any("actor" in each for each, _ in _nested(consent.get("provision", {}), None))


def names_labels(consent: Resource) -> bool:
    """Whether any provision is about labelled content."""
    return any("securityLabel" in each for each, _ in _nested(consent.get("provision", {}), None))


# The references that a provision names; None for one about everybody.
Actors = Collection[str] | None


def permitted(consent: Resource) -> list[Actors]:
    """Whom each permission of a Consent is for."""
    root = consent.get("provision", {})
    found: list[Actors] = (
        [None] if provisions.base_rule(consent) is provisions.Effect.PERMIT else []
    )
    return found + [actors for each, actors in _nested(root, None) if each.get("type") == "permit"]


def refused(consent: Resource) -> list[Actors]:
    """Whom each refusal of a Consent is about; a rule whose effect is unknown may be one."""
    if not provisions.is_understood(consent):
        return [None]
    root = consent.get("provision", {})
    found: list[Actors] = [None] if provisions.base_rule(consent) is provisions.Effect.DENY else []
    return found + [actors for each, actors in _nested(root, None) if each.get("type") == "deny"]


def _nested(provision: Provision, within: Actors) -> Iterator[tuple[Provision, Actors]]:
    """A provision and its exceptions, each with those whom it is about: its actors, else those of the one around it."""
    actors = within
    if "actor" in provision:
        actors = [
            each.get("reference", {}).get("reference", "").partition("/_history/")[0]
            for each in provision["actor"]
        ]
    yield provision, actors
    for each in provision.get("provision", ()):
        yield from _nested(each, actors)


def with_local_references(consent: Resource, base_url: str) -> Resource:
    """The Consent with relative references wherever its provisions name something on this server."""
    if not base_url or "provision" not in consent:
        return consent
    return {**consent, "provision": _with_local(consent["provision"], f"{base_url.rstrip('/')}/")}


def _with_local(provision: Provision, base: str) -> Provision:
    found = dict(provision)
    for element in ("actor", "data"):
        for each in (items := [dict(item) for item in found.get(element, ())]):
            if "reference" in each.get("reference", {}):
                named = each["reference"]["reference"].removeprefix(base)
                each["reference"] = {**each["reference"], "reference": named}
        if items:
            found[element] = items
    if "provision" in found:
        found["provision"] = [_with_local(each, base) for each in found["provision"]]
    return found
