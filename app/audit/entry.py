"""The fields of an audit entry before it is linked into a chain: a small document, cheap to make.

at    when                       what  read, search-type, create ... login, bind, delivery, administration
o     outcome 0, 4 or 8          s     HTTP status or close code, where there was one
k     who and what, for searches:  c:<client>  g:<organization>  p:<patient id>  e:<Type/id>  u:<Subscription id>
          x:<export id>  x:<export id>/<file>.ndjson  o:<outcome>, where it is no success
v     version of what `e` names  t     resource type, where no resource is named
r     role of the caller         ip    address of the caller, or of the endpoint of a delivery
rq    X-Request-Id               q     request line with search values   m  what happened, in words without data
n     how many similar refusals this one sums up, the first of them at `since`   (refusal_counter.py)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from urllib.parse import urlencode

from app.authentication.caller import SERVER, Caller
from app.records.versions import ResourceVersion
from app.runtime.mongo import Document

Outcome = Literal["0", "4", "8"]
OK: Outcome = "0"
REFUSED: Outcome = "4"
FAILED: Outcome = "8"

# The kind of key that names a Consent without which content of 42 CFR Part 2 could not be disclosed.
BY_CONSENT = "b"

# The most patients that one entry names; for more there are several entries.
PATIENTS_AT_ONCE = 200
# `"Patient/1` and `"Patient","id":"1`; without the quote in front, which is everywhere, it is found four times as fast.
_PATIENT = re.compile(r'Patient(?:/|","id":")([A-Za-z0-9.\-]{1,64})')


@dataclass(slots=True)
class AuditedRequest:
    """The request that is being answered.

    `line` holds search values: it is kept in the audit and nowhere else; empty where the other fields suffice.

    `rows` counts the entries recorded for it so far, so that nothing is recorded twice.
    """

    caller: Caller
    address: str
    request_id: str
    line: str
    rows: int = 0


# The server's own work has none.
asked: ContextVar[AuditedRequest | None] = ContextVar("asked", default=None)


@contextmanager
def asking(now: AuditedRequest) -> Iterator[None]:
    """Make this the current request while the context is open."""
    token = asked.set(now)
    try:
        yield
    finally:
        asked.reset(token)


def spell_out(parameters: Sequence[tuple[str, str]]) -> None:
    """Add to the current request what a token in its line stands for."""
    now = asked.get()
    if now is not None:
        now.line = f"{now.line} {urlencode(parameters)}"


def entry(
    what: str,
    at: datetime,
    *,
    outcome: Outcome = OK,
    status: int | None = None,
    focus: str | None = None,
    version: int | None = None,
) -> Document:
    """A new entry for the current request, or for the server itself."""
    now = asked.get()
    caller = now.caller if now is not None else SERVER
    keys = of_caller(caller)
    if focus is not None:
        keys.append(f"e:{focus}")
    if outcome != OK:
        keys.append(f"o:{outcome}")
    row: Document = {"at": at, "what": what, "o": outcome, "k": keys}
    if status is not None:
        row["s"] = status
    if version is not None:
        row["v"] = version
    role = getattr(caller, "role", None)
    if role is not None:
        row["r"] = str(role)
    if now is not None:
        row["rq"] = now.request_id
        row["ip"] = now.address
        if now.line:
            row["q"] = now.line
    return row


def of_caller(caller: Caller) -> list[str]:
    """The keys of a client and its organization."""
    keys = [f"c:{caller.client_id}"]
    if caller.organization is not None:
        keys.append(f"g:{caller.organization}")
    return keys


def count(entries: Sequence[Document]) -> None:
    """Count these entries as recorded for the current request."""
    if (now := asked.get()) is not None:
        now.rows += len(entries)


def of_change(method: str, stored: ResourceVersion, previous: str) -> list[Document]:
    """The entries of a committed change; `previous` is the text that it replaced."""
    row = entry(method, stored.at, focus=stored.reference, version=stored.version)
    patients = patients_in(stored.text) | patients_in(previous)
    if stored.type == "Patient":
        patients.add(stored.id)
    return with_patients(row, patients)


def with_patients(row: Document, patients: Iterable[str]) -> list[Document]:
    """The row with the patients it is about; several rows for more than PATIENTS_AT_ONCE."""
    ids = sorted(patients)
    if len(ids) <= PATIENTS_AT_ONCE:
        row["k"] += [f"p:{each}" for each in ids]
        return [row]
    return [
        {**row, "k": [*row["k"], *(f"p:{each}" for each in ids[start : start + PATIENTS_AT_ONCE])]}
        for start in range(0, len(ids), PATIENTS_AT_ONCE)
    ]


def patients_in(text: str, base_url: str = "") -> set[str]:
    """The ids of the patients of this server that a stored JSON text refers to, or that are in it.

    Searching the text of a page of fifty Encounters costs a twentieth of decoding it.
    """
    found = set()
    for match in _PATIENT.finditer(text):
        begin = match.start()
        before = text[begin - 1]
        if before == '"' or (before == "/" and text.endswith(f'"{base_url}/', 0, begin)):
            found.add(match[1])
    return found


def is_id(text: str) -> bool:
    return bool(text) and text.isascii() and text.replace("-", "").replace(".", "").isalnum()


def values(row: Document, kind: str) -> Sequence[str]:
    """The values of a row's keys of one kind, without the prefix of the kind."""
    return [key[2:] for key in row["k"] if key[0] == kind]
