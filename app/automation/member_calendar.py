"""The calendar by which days of a member count: that of the member's own time zone, where it is known.

It is the zone that the Patient states or else the first of its addresses (extension timezone), else
CARERELAY_TIME_ZONE where that is another than UTC. What is written with less than a time is a day already. Without a
zone a time counts as the day that it is written with, and a day has ended when it has everywhere on Earth, so that
nobody is told too early that something is late.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from app.automation import patient_resources
from app.context import Context
from app.fhir.instants import moved, span
from app.fhir.json import Resource
from app.fhir.time_zones import zone_of

# What a setting says that nobody has set.
_UNKNOWN = "UTC"
# Zones reach from 12 hours behind to 14 ahead.
_EVERYWHERE = timedelta(hours=36)


@dataclass(frozen=True, slots=True)
class MemberCalendar:
    """Days in a zone; None where it is not known."""

    zone: tzinfo | None = None

    def day(self, text: str | None) -> date | None:
        """The first day that a date or dateTime names; None where there is none, or none that terms can be added to."""
        return patient_resources.day(self.local(text))

    def last_day(self, text: str | None) -> date | None:
        """The same of an end; of a month or year the last day."""
        return patient_resources.last_day(self.local(text))

    def local(self, text: str | None) -> str | None:
        """A dateTime as the day that it is in the zone; anything else as it is."""
        if text is None or self.zone is None or len(text) <= 10:
            return text
        try:
            return self.day_of(span(text)[0]).isoformat()
        except (ValueError, OverflowError):
            return text

    def with_days(self, resource: Resource) -> Resource:
        """A resource with days in the place of times in its period."""
        period = resource.get("period")
        if not period:
            return resource
        days = {name: self.local(period[name]) for name in ("start", "end") if name in period}
        return {**resource, "period": {**period, **days}}

    def day_of(self, moment: datetime) -> date:
        return moment.astimezone(self.zone or UTC).date()

    def over_at(self, last: date) -> datetime:
        """When a day has ended."""
        if self.zone is None:
            return datetime.combine(last, time(), UTC) + _EVERYWHERE
        after = moved(last, timedelta(days=1))
        try:
            return datetime.combine(after, time(), self.zone).astimezone(UTC)
        except OverflowError:  # the zone leads beyond the calendar
            return datetime.combine(after, time(), UTC)


async def calendar_of(context: Context, patient: str) -> MemberCalendar:
    """The calendar of a patient (`Patient/p1`)."""
    stored = await context.store.read(*patient.split("/", 1))
    record = {} if stored is None or stored.deleted else stored.resource()
    for stated in (record, *record.get("address", ())):
        if zone := zone_of(stated):
            return MemberCalendar(zone)
    default = context.settings.time_zone
    return MemberCalendar(None if default == _UNKNOWN else ZoneInfo(default))
