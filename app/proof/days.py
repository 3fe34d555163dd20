"""Local calendar days of a facility: the days that measures count.

The zone is that of the Encounter's Location or Organization (extension timezone), else the offset that its times are
written with, else CARERELAY_TIME_ZONE. A time in Z has no such offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime, tzinfo
from zoneinfo import ZoneInfo

from app.fhir import instants
from app.fhir.json import Resource
from app.fhir.time_zones import zone_of
from app.proof.notice import local
from app.records.reader import Reader

# The elements that lead from a place to its owners.
_OWNERS = ("partOf", "managingOrganization")


class Zones:
    """The time zones of facilities, each read once."""

    def __init__(self, store: Reader, base_url: str, default: str) -> None:
        self._store = store
        self._base_url = base_url
        self._default = ZoneInfo(default)
        self._known: dict[tuple[str, ...], ZoneInfo | None] = {}

    async def of(self, encounter: Resource) -> tzinfo:
        """The zone of an Encounter's facility."""
        places = tuple(_places(encounter, self._base_url))
        if places not in self._known:
            self._known[places] = await self._stated(places)
        return self._known[places] or _offset(encounter) or self._default

    async def _stated(self, places: Sequence[str]) -> ZoneInfo | None:
        """The zone of the first of the places that states one itself, or whose owner does."""
        found = await self._read(places)
        owners = {
            place: [
                owner
                for name in _OWNERS
                if (owner := local(resource.get(name), self._base_url)) is not None
            ]
            for place, resource in found.items()
        }
        above = await self._read([each for several in owners.values() for each in several])
        for place in places:
            candidates = [found.get(place, {})]
            candidates += [above.get(owner, {}) for owner in owners.get(place, ())]
            zone = next((zone for each in candidates if (zone := zone_of(each))), None)
            if zone is not None:
                return zone
        return None

    async def _read(self, references: Sequence[str]) -> dict[str, Resource]:
        keys = [(kind, id_) for kind, _, id_ in (each.partition("/") for each in references)]
        found = await self._store.read_many(keys) if keys else {}
        return {name: each.resource() for name, each in found.items() if not each.deleted}


def day_of(text: str, zone: tzinfo) -> date | None:
    """The local day of a date or dateTime; a date is the day itself. None for less than a day."""
    if len(text) < 10:
        return None
    try:
        return local_day(instants.span(text, zone)[0], zone)
    except (ValueError, OverflowError):
        return None


def local_day(moment: datetime, zone: tzinfo) -> date:
    """The calendar day of a moment."""
    return moment.astimezone(zone).date()


def _places(encounter: Resource, base_url: str) -> Iterator[str]:
    locations = [each for each in encounter.get("location", ()) if isinstance(each, dict)]
    current = sorted(locations, key=lambda each: each.get("status") != "active")
    for reference in (
        *(each.get("location") for each in current),
        encounter.get("serviceProvider"),
    ):
        found = local(reference, base_url)
        if found is not None and found.startswith(("Location/", "Organization/")):
            yield found


def _offset(encounter: Resource) -> tzinfo | None:
    period = encounter.get("period", {})
    for text in (period.get("start"), period.get("end")):
        if isinstance(text, str) and len(text) > 19 and not text.endswith("Z"):
            try:
                return instants.moment(text).tzinfo
            except ValueError:
                continue
    return None
