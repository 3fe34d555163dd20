"""The share of admissions and discharges with a notice received in time: by practice, hospital and month."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from app.context import Context
from app.proof.notice import local
from app.proof.stays import KINDS, EventKind, Happening

# Days after the day of the event on which receipt still counts.
WINDOW = 2
UNKNOWN = "unknown"
STRATIFIERS = ("practice", "hospital", "month")
# The value of each stratifier; None means all.
Key = tuple[str | None, str | None, str | None]
TOTAL: Key = (None, None, None)


@dataclass(slots=True)
class Tally:
    """`late` were received after the window; what is left was never received."""

    denominator: int = 0
    numerator: int = 0
    late: int = 0

    @property
    def share(self) -> Decimal | None:
        """The share, rounded to four decimals; None without an event."""
        if not self.denominator:
            return None
        return (Decimal(self.numerator) / self.denominator).quantize(Decimal("0.0001"))


@dataclass(slots=True)
class Timeliness:
    """Tallies by event and key: the total, each stratum, and each combination of strata; `names` of references."""

    tallies: dict[EventKind, dict[Key, Tally]] = field(
        default_factory=lambda: {kind: {TOTAL: Tally()} for kind in KINDS}
    )
    names: dict[str, str] = field(default_factory=dict)

    def add(self, happening: Happening) -> None:
        key = (
            happening.practice or UNKNOWN,
            happening.hospital or UNKNOWN,
            happening.day.isoformat()[:7],
        )
        after = None if happening.received is None else (happening.received - happening.day).days
        for each in _keys(key):
            tally = self.tallies[happening.kind].setdefault(each, Tally())
            tally.denominator += 1
            tally.numerator += after is not None and after <= WINDOW
            tally.late += after is not None and after > WINDOW

    def strata(self, kind: EventKind, stratifier: str) -> list[tuple[str, Tally]]:
        """The values of one stratifier with their tallies, in order."""
        index = STRATIFIERS.index(stratifier)
        found = []
        for key, tally in self.tallies[kind].items():
            value = key[index]
            if value is not None and sum(each is not None for each in key) == 1:
                found.append((value, tally))
        return sorted(found, key=lambda each: each[0])

    def combinations(self, kind: EventKind) -> list[tuple[list[str], Tally]]:
        """The combinations of practice, hospital and month that have events, in order."""
        full = [
            ([each for each in key if each is not None], tally)
            for key, tally in self.tallies[kind].items()
        ]
        return sorted(
            ((key, tally) for key, tally in full if len(key) == len(STRATIFIERS)),
            key=lambda each: each[0],
        )


def _keys(key: tuple[str, str, str]) -> Iterable[Key]:
    practice, hospital, month = key
    return (TOTAL, (practice, None, None), (None, hospital, None), (None, None, month), key)


async def measure(context: Context, happenings: AsyncIterator[Happening]) -> Timeliness:
    """Count the events, and read the names of their practices and hospitals."""
    found = Timeliness()
    async for happening in happenings:
        found.add(happening)
    references = {
        value
        for tallies in found.tallies.values()
        for key in tallies
        for value in key[:2]
        if value is not None and "/" in value
    }
    found.names = await names_of(context, references)
    return found


async def names_of(context: Context, references: Iterable[str]) -> dict[str, str]:
    """What people call practices and hospitals, as far as the caller may read them."""
    keys = [(kind, id_) for kind, _, id_ in (each.partition("/") for each in sorted(references))]
    base_url = context.settings.base_url.rstrip("/")
    return {
        reference: _name(stored.resource(), base_url)
        for reference, stored in (await context.store.read_many(keys) if keys else {}).items()
        if not stored.deleted
    }


def _name(resource: dict[str, object], base_url: str) -> str:
    name = resource.get("name")
    if isinstance(name, str):
        return name
    if isinstance(name, list) and name and isinstance(name[0], dict):
        first = name[0]
        given = " ".join(first.get("given", ()))
        return str(first.get("text") or f"{given} {first.get('family', '')}".strip())
    return local(resource.get("practitioner"), base_url) or ""
