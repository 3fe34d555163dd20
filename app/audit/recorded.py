"""The audit of a request: its refusal or failure, and each write of a batch, recorded when it ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import TypeVar

from app.audit.entry import FAILED, REFUSED, AuditedRequest, Outcome, asked, entry
from app.audit.log import AuditLog
from app.authentication.caller import NOBODY, Caller
from app.errors import FhirError
from app.network.rate_limit import site
from app.runtime.mongo import Document

T = TypeVar("T")
# The caller of a request that is not authenticated.
UNKNOWN = Caller("unknown")


class Recorded:
    """Makes a request the current one while it is open, and records a failure inside."""

    __slots__ = ("_audit", "_focus", "_now", "_outer", "_token", "_what")

    def __init__(self, audit: AuditLog, what: str, now: AuditedRequest, focus: str | None) -> None:
        self._audit = audit
        self._what = what
        self._now = now
        self._focus = focus

    async def __aenter__(self) -> None:
        self._outer = asked.get()
        self._token = asked.set(self._now)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if isinstance(error, FhirError):
                await refuse(self._audit, self._row(outcome_of(error), error.status))
            elif isinstance(error, Exception):
                await self._audit.record([self._row(FAILED, 500)])
        finally:
            asked.reset(self._token)
            if self._outer is not None:
                self._outer.rows += self._now.rows

    def _row(self, outcome: Outcome, status: int) -> Document:
        now = self._audit.now()
        row = entry(self._what, now, outcome=outcome, status=status, focus=self._focus)
        return with_place(row, self._focus)


async def write(
    audit: AuditLog | None, caller: Caller, method: str, url: str, act: Callable[[], Awaitable[T]]
) -> T:
    """Run one write of a batch and record it."""
    outer = asked.get()
    if audit is None or outer is None:
        return await act()
    what = {"POST": "create", "PUT": "update", "PATCH": "patch"}.get(method, "delete")
    now = AuditedRequest(caller, outer.address, outer.request_id, f"{method} {url}")
    place = url.partition("?")[0].strip("/")
    focus = place if place.count("/") == 1 else None
    async with Recorded(audit, what, now, focus):
        result = await act()
        if not now.rows:
            await audit.record([with_place(entry(what, audit.now(), focus=focus), focus)])
    return result


async def refuse(audit: AuditLog, row: Document) -> None:
    """Record a refusal of the current request; those that anybody could cause without end may only be counted."""
    now = asked.get()
    assert now is not None  # noqa: S101 - every caller sets it
    if is_stranger(now.caller):
        await audit.refuse(row, client=None, address=site(now.address))
    elif row["s"] == 429:
        await audit.refuse(row, client=now.caller.client_id, address="")
    else:
        await audit.record([row])


def is_stranger(caller: Caller) -> bool:
    """Whether the caller is not authenticated."""
    return caller is UNKNOWN or caller is NOBODY


def patient_of(focus: str | None) -> set[str]:
    """The id of the Patient that the request names; empty for any other resource."""
    return {focus.removeprefix("Patient/")} if focus and focus.startswith("Patient/") else set()


def with_place(row: Document, focus: str | None) -> Document:
    """The row with the patient that the request names."""
    row["k"] += [f"p:{each}" for each in patient_of(focus)]
    return row


def outcome_of(error: FhirError) -> Outcome:
    """The outcome code of a failure: refused, or failed where the server is to blame."""
    return FAILED if error.status >= 500 else REFUSED
