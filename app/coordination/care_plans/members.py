"""The members of a care plan's teams, its point of contact, and the changes of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import Names, key_of
from app.fhir.codes import POINT_OF_CONTACT
from app.fhir.json import Resource

Participant = Mapping[str, Any]
# The fields of a PlanChange after its kind: what, text, reference, before and after.
Found = tuple[Literal["added", "removed", "changed"], str, str, str, str]

_CARE_COORDINATOR = "768820003"


def teams(state: PlanState) -> list[Resource]:
    """The plan's care teams, as far as the state holds them."""
    return [team for key in state.referred("careTeam") if (team := state.find(key)) is not None]


def members(state: PlanState, today: str = "") -> list[Participant]:
    """The members of the plan's care teams, without those who have left before a day."""
    everybody = [one for team in teams(state) for one in team.get("participant", ())]
    return [one for one in everybody if not today or not _has_left(one, today)]


def _has_left(participant: Participant, today: str) -> bool:
    end = words.day(participant.get("period", {}).get("end"))
    return bool(end) and end < today[: len(end)]


def point_of_contact(state: PlanState, today: str = "") -> Participant | None:
    """The member of the teams to call first: one marked as point of contact, else the care coordinator."""
    everybody = members(state, today)
    stated = next((one for one in everybody if _is_stated(one)), None)
    return stated or next(
        (one for one in everybody if _CARE_COORDINATOR in words.codes(one.get("role"))), None
    )


def _is_stated(participant: Participant) -> bool:
    """Whether a participant is marked by our role code or by an extension, such as that for transitions of care."""
    if POINT_OF_CONTACT in words.codes(participant.get("role")):
        return True
    return any(
        str(extension.get("url", "")).lower().replace("-", "").endswith("pointofcontact")
        and extension.get("valueBoolean") is not False
        for extension in participant.get("extension", ())
    )


def member_name(participant: Participant, names: Names) -> str:
    """The name of a participant's member, else of the organization it acts for."""
    member = participant.get("member") or participant.get("onBehalfOf")
    return words.reference(member, names) or "a member without a name"


def team_changes(before: PlanState, after: PlanState, names: Names) -> Iterable[Found]:
    """Members added, removed or with another role, and another point of contact."""
    old, new = _members(before, names), _members(after, names)
    for key in dict.fromkeys((*new, *old)):
        if key in old and key in new and old[key].keys() == new[key].keys():
            continue
        was, now = (words.listing(side.get(key, {}).values()) for side in (old, new))
        reference = key if key.partition("/")[2] and "|" not in key else ""
        name = _name(key, before, after, names)
        if key not in old:
            yield "added", f"Care team: {name} joined{_as(now)}.", reference, "", now or name
        elif key not in new:
            yield "removed", f"Care team: {name} left{_as(was)}.", reference, was or name, ""
        else:
            text = f"Care team: {name} is now {now or 'without a role'} (was {was or 'without a role'})."
            yield "changed", text, reference, was, now
    yield from _contact_change(before, after, names)


def _as(role: str) -> str:
    return f" ({role})" if role else ""


def _members(state: PlanState, names: Names) -> dict[str, dict[str, str]]:
    """The roles of each member with their ends, each by a key and in words.

    A team that the state does not hold counts as a member itself.
    """
    found: dict[str, dict[str, str]] = {}
    for key, reference in state.referred("careTeam").items():
        team = state.find(key)
        if team is None:
            display = str(reference.get("display", ""))
            found.setdefault(key, {})[display] = display
            continue
        for participant in team.get("participant", ()):
            member = key_of(participant.get("member")) or key_of(participant.get("onBehalfOf"))
            role = words.concept(participant.get("role"))
            end = words.day(participant.get("period", {}).get("end"))
            shown = " ".join(part for part in (role, f"until {end}" if end else "") if part)
            of_role = found.setdefault(member or role, {})
            if "member" in participant and (behalf := participant.get("onBehalfOf")):
                called = words.reference(behalf, names)
                of_role[f"{shown} for {key_of(behalf)}"] = f"{shown} for {called}"
            else:
                of_role[shown] = shown
    return {key: dict(sorted(roles.items())) for key, roles in found.items()}


def _name(key: str, before: PlanState, after: PlanState, names: Names) -> str:
    """The name of a member, or of a team that the states do not hold; a member that is only a role is its key."""
    for state in (after, before):
        team_reference = state.referred("careTeam").get(key)
        if team_reference is not None and state.find(key) is None:
            return words.reference(team_reference, names)
        for team in teams(state):
            for participant in team.get("participant", ()):
                member = participant.get("member") or participant.get("onBehalfOf")
                if key_of(member) == key:
                    return member_name(participant, names)
    return key


def contact_words(state: PlanState, names: Names) -> str:
    """The name of the point of contact, with the teams' own telephone numbers."""
    participant = point_of_contact(state)
    name = member_name(participant, names) if participant else ""
    number = words.listing(words.phone(team) for team in teams(state))
    return words.listing((name, number))


def _contact_change(before: PlanState, after: PlanState, names: Names) -> Iterable[Found]:
    if _contact(before) != _contact(after):
        old, new = contact_words(before, names), contact_words(after, names)
        text = f"Point of contact: {new or 'none'} (was {old or 'none'})."
        yield "changed", text, "", old, new


def _contact(state: PlanState) -> tuple[str, list[str]]:
    participant = point_of_contact(state) or {}
    numbers = [number for team in teams(state) if (number := words.phone(team))]
    return key_of(participant.get("member")), numbers
