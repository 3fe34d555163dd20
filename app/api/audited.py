"""What is put on record at the doors of FHIR: each request and each entry of a Bundle, answered or refused.

A write is recorded with its commit (app/store/commit.py), one row for each change; here are the rest: what was read,
what changed nothing, what failed. The answer waits for its row.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from app.api import audit_events, exchange, understood
from app.audit.entry import (
    BY_CONSENT,
    FAILED,
    OK,
    REFUSED,
    AuditedRequest,
    asked,
    asking,
    entry,
    is_id,
    patients_in,
    with_patients,
)
from app.audit.log import AuditLog
from app.audit.recorded import (
    UNKNOWN,
    Recorded,
    is_stranger,
    outcome_of,
    patient_of,
    refuse,
)
from app.audit.refusal_counter import LONGEST_LINE
from app.authentication.caller import Caller
from app.consent import judgement, redisclosure
from app.context import Context
from app.errors import FhirError
from app.interactions.result import InteractionResult
from app.runtime import pace
from app.runtime.mongo import Document

T = TypeVar("T")
Handler = Callable[[Request, Context], Awaitable[T]]

# Of these without a query, the entity says all that the request line would.
_SELF_EXPLAINING = frozenset(
    {
        "login",
        "read",
        "vread",
        "create",
        "update",
        "patch",
        "delete",
        "history-instance",
        "transaction",
    }
)


# Of a page about many patients the question is kept and not whom it found, as IHE BALP has it: to name fifty would cost
# more than the page itself.
_FEW = 10
_QUESTIONS = frozenset({"search-type", "search-system", "history-type", "history-system"})
_ABOUT = re.compile(
    r"(?:^|[?& ])(?:[a-z-]+\.)*(?:patient|subject|beneficiary)(?:%3A|:)?(?:Patient)?=([^&\s]+)"
)


async def run(what: str | None, handler: Handler[T], request: Request, context: Context) -> T:
    """Answer a request by its handler and put it on record as the interaction `what`, unless that is None.

    What is not understood of it (understood.py) is refused first, on record as well. Raises Unavailable where that must
    be done and cannot.
    """
    audit = context.services.audit
    if audit is None or what is None or _is_to_come(request, context):
        understood.check(what, request, context)
        return await handler(request, context)
    if request.path_params.get("type") == "AuditEvent":
        handler = audit_events.handler(what, request)  # type: ignore[assignment]
    if request.method == "POST" and request.scope["path"].rstrip("/").endswith("/_search"):
        request, form = await _with_form(request)
    else:
        form = ""
    focus = _focus(request)
    now = _asked(request, what, context.caller, form)
    with audit.together:
        async with Recorded(audit, what, now, focus):
            understood.check(what, request, context)
            result = await handler(request, context)
            # Rehearsed reads of a transaction are told to nobody.
            if not now.rows and not context.write_scope.writing:
                rows = await _told(audit, what, request, context, result, now, focus)
                await audit.record(rows)
    return result


def _is_to_come(request: Request, context: Context) -> bool:
    """Whether a read is only tried, of what its transaction is about to write: nobody is told anything yet."""
    place = (request.path_params.get("type"), request.path_params.get("id"))
    return place in context.write_scope.creating


async def refused(request: Request, error: FhirError) -> FhirError:
    """Put a request on record that was refused before it was looked at; returns what to answer.

    Whoever it comes from is a stranger, unless `scope["caller"]` says who.
    """
    audit: AuditLog | None = request.app.state.services.audit
    if audit is None:
        return error
    what = "login" if error.status == 401 else "request"
    with asking(_asked(request, what, request.scope.get("caller", UNKNOWN))):
        try:
            row = entry(what, audit.now(), outcome=outcome_of(error), status=error.status)
            await refuse(audit, row)
        except FhirError as failure:
            return failure
    return error


async def administer(
    request: Request, caller: Caller, act: Callable[[], Awaitable[T]], *, what: str
) -> T:
    """Do what is asked of the admin API and put it on record, with the Consents that the answer needed."""
    audit: AuditLog | None = request.app.state.services.audit
    if audit is None:
        return await act()
    async with Recorded(audit, what, _asked(request, what, caller), None):
        with redisclosure.collecting() as consents:
            result = await act()
        row = entry(what, audit.now())
        row["k"] += [f"{BY_CONSENT}:Consent/{each}" for each in consents]
        whose = {judgement.patient_of(each).partition("/")[2] for each in consents.values()}
        await audit.record(with_patients(row, whose) if whose else [row])
    return result


async def login(request: Request, client_id: str | None, status: int) -> None:
    """Put on record that a client was given a token, or refused one. Raises Unavailable as `run` does."""
    audit: AuditLog | None = request.app.state.services.audit
    if audit is None:
        return
    caller = Caller(client_id) if client_id is not None else UNKNOWN
    with asking(_asked(request, "login", caller)):
        if status < 400:
            await audit.record([entry("login", audit.now(), status=status)])
        else:
            await refuse(audit, entry("login", audit.now(), outcome=REFUSED, status=status))


async def bind(
    audit: AuditLog | None,
    address: str,
    caller: Caller | None,
    subscriptions: Sequence[str] = (),
    *,
    refused: int | None = None,
) -> None:
    """Put on record that a websocket is about to hear Subscriptions, or was `refused` with a close code.

    `caller` is None where nobody is known to be behind what was shown. Raises Unavailable as `run` does.
    """
    if audit is None:
        return
    with asking(AuditedRequest(caller or UNKNOWN, address, "", "")):
        outcome = OK if refused is None else REFUSED
        row = entry("bind", audit.now(), outcome=outcome, status=refused)
        row["k"] += [f"u:{each}" for each in subscriptions]
        await (audit.record([row]) if refused is None else refuse(audit, row))


async def _told(
    audit: AuditLog,
    what: str,
    request: Request,
    context: Context,
    result: object,
    now: AuditedRequest,
    focus: str | None,
) -> list[Document]:
    """The rows of an answer, with the patients that it tells of. How an export is doing tells of nobody."""
    if isinstance(result, Response):
        outcome = FAILED if result.status_code >= 500 else OK
        told = entry(what, audit.now(), outcome=outcome, status=result.status_code)
        told["k"].append(f"x:{request.path_params['export']}")
        return [told]
    assert isinstance(result, InteractionResult)  # noqa: S101 - nothing else is answered
    patients = patient_of(focus)
    version = None
    stored = result.stored
    if stored is not None:
        focus, version = stored.reference, stored.version
    row = entry(what, audit.now(), status=result.status, focus=focus, version=version)
    row["k"] += [f"{BY_CONSENT}:{each}" for each in redisclosure.noted()]
    if focus is None and (
        resource_type := request.path_params.get("target") or request.path_params.get("type")
    ):
        row["t"] = resource_type
    body = result.body
    if body is not None and result.status != 304:
        text = body if isinstance(body, str) else body.decode()
        base_url = "" if stored is not None else context.base_url
        found = await pace.aside(len(text), patients_in, text, base_url)
        many = what in _QUESTIONS and len(found) > _FEW
        patients |= _asked_about(now) if many else found
    return with_patients(row, patients)


def _asked(request: Request, what: str, caller: Caller, form: str = "") -> AuditedRequest:
    scope = request.scope
    line = ""
    if scope["query_string"] or form or what not in _SELF_EXPLAINING:
        query = scope["query_string"].decode("latin-1")
        line = " ".join(
            part
            for part in (scope["method"], scope["path"] + (f"?{query}" if query else ""), form)
            if part
        )
        if is_stranger(caller):
            line = line[:LONGEST_LINE]
    client = scope.get("client")
    outer = asked.get()
    if outer is not None:  # an entry of a Bundle
        return AuditedRequest(caller, outer.address, outer.request_id, line)
    return AuditedRequest(caller, client[0] if client else "", scope.get("request_id", ""), line)


def _focus(request: Request) -> str | None:
    path = request.path_params
    type_, id_ = path.get("type"), path.get("id")
    return f"{type_}/{id_}" if type_ and id_ and is_id(id_) else None


def _asked_about(now: AuditedRequest) -> set[str]:
    """The ids of the patients that a search names."""
    values = (unquote(found[1]) for found in _ABOUT.finditer(now.line))
    ids = (each.rpartition("/")[2] for value in values for each in value.split(","))
    return {each for each in ids if is_id(each)}


async def _with_form(request: Request) -> tuple[Request, str]:
    """The request with its body to be read again, and the body: the search that it asks for."""
    body = await exchange.read_body(request, exchange.MAX_FORM_BYTES, may_be_empty=True)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive), body.decode("utf-8", "replace")
