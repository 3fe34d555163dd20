"""What a question of `$worklist` is asked about, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, tzinfo

from app.context import Context
from app.coordination.workbench.population import Population


@dataclass(frozen=True, slots=True)
class Finding:
    """One member who needs something: `since` when and by which day (`due`), and the records that say so."""

    patient: str
    reason: str
    since: date | None = None
    due: date | None = None
    records: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """The order of findings, and what tells one of a question from another."""
        return self.patient, " ".join(self.records)


@dataclass(frozen=True, slots=True)
class Period:
    """The moments from `start` to `end`, in days of the `zone`; `now` and `today` are the server's."""

    start: datetime
    end: datetime
    now: datetime
    zone: tzinfo

    @property
    def today(self) -> date:
        return self.now.astimezone(self.zone).date()


@dataclass(frozen=True, slots=True)
class Asked:
    """One call: about whom, when, and within how many days after a discharge somebody has to be seen."""

    context: Context
    population: Population
    period: Period
    within: int

    @property
    def base_url(self) -> str:
        return self.context.settings.base_url.rstrip("/")
