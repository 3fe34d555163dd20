"""The primary care providers of a patient at a moment.

The sources are tried in the order of CARERELAY_ATTRIBUTION, and the first that names a provider wins (docs/routing.md).
Resources count as they are now, their periods at the requested moment; nothing is cached from one event to the next,
because yesterday's PCP would receive what is no longer theirs to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple

from app.attribution import claims as claims_
from app.attribution.claims import Claim, Record, Source
from app.attribution.practices import Provider, Resolved, resolve, with_endpoints
from app.records.reader import Reader
from app.search import spans
from app.settings import Settings

# Whether a Subscription names a provider (a reference) as its filter.
Listening = Callable[[str], bool]
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Attribution:
    """The providers who receive a patient's notices, latest first, and the problems found (review reasons).

    `patient` is a reference, after merges were followed; `way` are all the patients that led there.
    """

    patient: str
    providers: tuple[Provider, ...] = ()
    problems: tuple[str, ...] = ()
    way: tuple[str, ...] = ()


async def primary_care(
    store: Reader,
    patient: str,
    at: datetime,
    settings: Settings,
    *,
    listening: Listening | None = None,
) -> Attribution:
    """The PCPs of a patient (`Patient/p1`) with their endpoints, in four rounds of concurrent reads.

    A practice that hears nothing (`unheard`) is a problem.
    """
    found = await attributed(store, patient, at, settings)
    providers = await with_endpoints(store, found.providers, _base(settings))
    problems = [*found.problems, *dict.fromkeys(unheard(providers, listening).values())]
    return replace(found, providers=tuple(providers), problems=tuple(problems))


def unheard(providers: Iterable[Provider], listening: Listening | None) -> dict[str, str]:
    """The practices that hear nothing, each with the problem: `no-endpoint`, or one that nobody uses.

    One of a practice's providers is enough. Notices go to Subscriptions; where `listening` is None nobody knows of
    these, and an Endpoint counts as a way to tell.
    """
    found: dict[str, str] = {}
    reached: set[str] = set()
    for provider in providers:
        if is_listening(provider, listening) or (listening is None and provider.endpoints):
            reached.add(provider.practice)
        elif provider.endpoints:
            found[provider.practice] = "nobody-listens"
        else:
            found.setdefault(provider.practice, "no-endpoint")
    return {practice: problem for practice, problem in found.items() if practice not in reached}


def is_listening(provider: Provider, listening: Listening | None) -> bool:
    """Whether a Subscription names a provider, as far as `listening` knows."""
    return listening is not None and any(listening(each) for each in provider.references)


async def attributed(store: Reader, patient: str, at: datetime, settings: Settings) -> Attribution:
    """The PCPs of a patient without their endpoints: what filters need, in two rounds of reading, or three."""
    return await judged(store, await claims_.read(store, patient, _base(settings)), at, settings)


async def judged(store: Reader, record: Record, at: datetime, settings: Settings) -> Attribution:
    """`attributed` from a record that has been read already."""
    problems = ["merged-patient"] if len(record.way) > 1 else []
    if not record.known:
        problems.append("unknown-patient")
    ended: set[str] = set()
    over = False
    order, base_url = ranks(settings), _base(settings)
    for rank in order:
        claims = of_rank(rank, await _claims(store, record, rank.source, settings))
        current = standing(claims, ended, at)
        if not current:
            continue
        resolved = await resolve(store, current, rank.source, at, base_url)
        over = over or resolved.ended
        if resolved.providers:
            providers, several = told_of(resolved)
            problems += ["several-pcps"] if several else []
            said = standing(by_providers(order, record.claims), ended, at)
            if said and not rank.is_providers:
                staff = await resolve(store, said, "care-team", at, base_url)
                providers = with_staff(providers, staff)
            return Attribution(record.patient, providers, tuple(problems), record.way)
    problems.append("pcp-period-ended" if ended or over else "no-pcp")
    return Attribution(record.patient, (), tuple(problems), record.way)


class Rank(NamedTuple):
    """A source as far as it has the same weight: what providers say in CareTeams has less than all the others."""

    source: Source
    is_providers: bool = False


def ranks(settings: Settings) -> Sequence[Rank]:
    """The sources in their order, and behind them what practices and hospitals say themselves."""
    known: dict[str, Source] = {
        "care-team": "care-team",
        "general-practitioner": "general-practitioner",
        "group": "group",
    }
    found = [Rank(known[name]) for name in settings.attribution.split(",")]
    own = Rank("care-team", is_providers=True)
    return [*found, own] if Rank("care-team") in found else found


def of_rank(rank: Rank, claims: Sequence[Claim]) -> list[Claim]:
    """The claims of a source that have the rank's weight."""
    return [claim for claim in claims if claim.from_provider == rank.is_providers]


def by_providers(
    order: Sequence[Rank], claims: Mapping[Source, Sequence[Claim]]
) -> Sequence[Claim]:
    """What practices and hospitals say themselves, where it counts."""
    return [
        claim for rank in order if rank.is_providers for claim in of_rank(rank, claims[rank.source])
    ]


def with_staff(providers: Sequence[Provider], staff: Resolved) -> tuple[Provider, ...]:
    """The providers; where a practice says who of its staff it is for the patient, those in its place."""
    found: dict[Provider, None] = {}
    for provider in providers:
        own = [
            each
            for each in staff.providers
            if each.organization and each.organization == provider.organization
        ]
        found.update(dict.fromkeys(own or [provider]))
    return tuple(found)


async def _claims(
    store: Reader, record: Record, source: Source, settings: Settings
) -> Sequence[Claim]:
    if source == "group":
        return await claims_.of_rosters(store, record.memberships, _base(settings))
    return record.claims[source]


def standing(claims: Sequence[Claim], ended: set[str], at: datetime) -> list[Claim]:
    """The claims of one source that hold at a moment. `ended` collects the references whose claims have ended."""
    current = [claim for claim in claims if spans.holds(claim.span, at)]
    # An undated claim of a lesser source does not restore a provider whose claim in a better source has ended.
    current = [c for c in current if c.span != spans.ALWAYS or c.reference not in ended]
    held = {claim.reference for claim in current}
    ended |= {c.reference for c in claims if spans.has_ended(c.span, at)} - held
    return current


def told_of(resolved: Resolved) -> tuple[tuple[Provider, ...], bool]:
    """The providers who receive notices, latest first, and whether a person should choose among them.

    Of several practices only the one that took over last counts; where the dates do not decide, all do: a notice too
    many can be put right, one too few cannot.
    """
    ordered = sorted(resolved.providers, key=_since, reverse=True)
    practices = {provider.practice for provider in ordered}
    if len(practices) == 1:
        return tuple(ordered), resolved.ambiguous
    newest = [provider for provider in ordered if _since(provider) == _since(ordered[0])]
    is_clear = len({provider.practice for provider in newest}) == 1
    return tuple(newest if is_clear else ordered), True


def _since(provider: Provider) -> datetime:
    return provider.since or _LONG_AGO


def _base(settings: Settings) -> str:
    return settings.base_url.rstrip("/")
