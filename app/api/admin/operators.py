"""The operator's API beside FHIR: deliveries and topics as plain JSON; failures are OperationOutcomes.

    GET    /admin/deliveries            ?subscription= &state= &since= &until= &focus= &_count= &_cursor=
    GET    /admin/deliveries/<id>
    POST   /admin/deliveries/<id>/resend
    POST   /admin/deliveries/resend     one of the parameters above at least, or first= and last= with a subscription
    GET    /admin/topics                the topics that were put
    GET, PUT, DELETE  /admin/topics/<name>
    /admin/events, /admin/events/replay: app/api/admin/event_routes.py
    /admin/contracts, /admin/reports/notices.csv: app/api/admin/contract_routes.py
    /admin/clients: app/api/admin/client_routes.py
    /admin/dead-letters: app/api/admin/dead_letter_routes.py
    /admin/clock: app/api/admin/clock_routes.py

With authorization only clients in the role of an administrator come in, but for what `_OPEN` lists: there others find
what is theirs (docs/access.md). A POST or PUT says by Content-Type what it brings, application/json where it brings
nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any

from pymongo.errors import ConnectionFailure
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api import audited, exchange, limits, published
from app.api.admin import (
    client_routes,
    clock_routes,
    contexts,
    contract_routes,
    dead_letter_routes,
    event_routes,
)
from app.authentication.access_tokens import Authority, authenticate
from app.authentication.caller import EVERYBODY, Caller, Role
from app.authorization.rules import PROOF_ROLES, REPORT_ROLES
from app.consent import redisclosure
from app.context import Services
from app.errors import BadRequest, Conflict, FhirError, Forbidden, Unavailable
from app.fhir import json as fhir_json
from app.fhir.instants import range_in
from app.proof import visible_notices
from app.runtime.codec_process import CodecProcess
from app.subscriptions.ledger import ledger_queries
from app.subscriptions.ledger.ledger_queries import STATES, Wanted
from app.subscriptions.ledger.retention import Retention
from app.subscriptions.matching import criteria_check
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.worker import Worker

log = logging.getLogger(__name__)

AdminAnswer = tuple[int, Any]
Handler = Callable[[Request, Services], Awaitable[AdminAnswer]]

_PARAMETERS = frozenset({"subscription", "state", "since", "until", "focus", "first", "last"})
_PAGING = frozenset({"_count", "_cursor"})
_DEFAULT_COUNT, _MOST = 50, 1000


async def list_deliveries(request: Request, services: Services) -> AdminAnswer:
    """The newest first; `next` is the address of the next page."""
    wanted = read_wanted(request.query_params, paging=True)
    count = _number(request.query_params, "_count") or _DEFAULT_COUNT
    rows, more = await visible_notices.page(
        contexts.of_caller(request), wanted, min(count, _MOST), request.query_params.get("_cursor")
    )
    body: dict[str, Any] = {"deliveries": [ledger_queries.shown(row) for row in rows]}
    if more is not None:
        body["next"] = str(request.url.include_query_params(_cursor=more))
    return 200, body


async def read_delivery(request: Request, services: Services) -> AdminAnswer:
    row = await _delivery(request, services)
    return 200, ledger_queries.shown(await visible_notices.one(contexts.of_caller(request), row))


async def resend_one(request: Request, services: Services) -> AdminAnswer:
    row = await _delivery(request, services)
    if row["number"] < 1:
        raise Conflict(f"It is no event of a Subscription: {row['reason']}")
    wanted = Wanted(subscription=row["subscription"], first=row["number"], last=row["number"])
    return await _resend(services, wanted)


async def resend_many(request: Request, services: Services) -> AdminAnswer:
    """`{resent, skipped}`. Without a parameter it would be all that was ever sent: that has to be said."""
    wanted = read_wanted(request.query_params, paging=False)
    if not wanted.condition():
        raise BadRequest("Say which: a subscription, a state, a focus or a time", code="required")
    return await _resend(services, wanted)


async def list_topics(request: Request, services: Services) -> AdminAnswer:
    return 200, {"topics": await services.get(SubscriptionRegistry).topics.list()}


async def read_topic(request: Request, services: Services) -> AdminAnswer:
    return 200, await services.get(SubscriptionRegistry).topics.read(request.path_params["name"])


async def put_topic(request: Request, services: Services) -> AdminAnswer:
    """Known here at once, as `Basic` too; to other processes within a second."""
    resource = await exchange.read_resource(
        request, services.settings.max_resource_bytes, services.get(CodecProcess)
    )
    registry = services.get(SubscriptionRegistry)
    created = await registry.topics.put(
        request.path_params["name"], resource, partial(criteria_check.check_topic, services.store)
    )
    await _publish(request, services)
    return 201 if created else 200, await registry.topics.read(request.path_params["name"])


async def delete_topic(request: Request, services: Services) -> AdminAnswer:
    await services.get(SubscriptionRegistry).topics.delete(request.path_params["name"])
    await _publish(request, services)
    return 204, None


def read_wanted(query: Mapping[str, str], *, paging: bool) -> Wanted:
    """The deliveries that a query asks for. Raises BadRequest for what is not understood."""
    for name in query:
        if name not in _PARAMETERS and not (paging and name in _PAGING):
            raise BadRequest(f"Unknown parameter '{name}'", code="not-supported", expression=name)
    state = query.get("state")
    if state is not None and state not in STATES:
        raise BadRequest(f"A state is one of {', '.join(STATES)}", code="value", expression="state")
    focus = query.get("focus")
    if focus is not None and focus.count("/") != 1:
        raise BadRequest("A focus is written as Type/id", code="value", expression="focus")
    first, last = _number(query, "first"), _number(query, "last")
    if "subscription" not in query and (first is not None or last is not None):
        raise BadRequest("Numbers are those of one subscription", expression="first")
    return Wanted(
        subscription=query.get("subscription"),
        state=state,
        since=range_in(query["since"], "since")[0] if "since" in query else None,
        until=range_in(query["until"], "until")[1] if "until" in query else None,
        focus=focus,
        first=first,
        last=last,
    )


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text)):
        raise BadRequest("Not a number from 1 on", code="value", expression=name)
    return int(text)


async def _delivery(request: Request, services: Services) -> dict[str, Any]:
    kept = services.get(Retention).deliveries
    return await ledger_queries.read(services.mongo, request.path_params["id"], kept)


async def _resend(services: Services, wanted: Wanted) -> AdminAnswer:
    worker = services.get(Worker)

    def active(subscription: str) -> bool:
        return worker.registry.delivery_mode(subscription) == "active"

    return 202, await ledger_queries.resend(services.mongo, wanted, worker.resend, active)


async def _publish(request: Request, services: Services) -> None:
    """Take the topics over as they now are, here and as resources that clients read."""
    await services.get(SubscriptionRegistry).refresh_topics()
    await published.store_topics(contexts.of_server(request))


async def admit(request: Request, services: Services, roles: Collection[Role] = ()) -> Caller:
    """Who asks; with authorization administrators, and who may ask there. Raises Unauthorized or Forbidden."""
    if services.find(Authority) is None:
        request.scope["caller"] = EVERYBODY
        return EVERYBODY
    caller = await authenticate(services.find(Authority), request.headers.get("authorization"))
    request.scope["caller"] = caller
    limits.identify(request.scope, caller.client_id)
    if caller.role != "administrator" and caller.role not in roles:
        raise Forbidden("The admin API is for administrators")
    return caller


# Handlers for others than administrators: they find what is theirs.
_OPEN: Mapping[Handler, Collection[Role]] = {
    list_deliveries: PROOF_ROLES,
    read_delivery: PROOF_ROLES,
    contract_routes.report_notices: REPORT_ROLES,
}


async def _run(handler: Handler, request: Request, services: Services) -> AdminAnswer:
    exchange.check_declared(request)
    return await handler(request, services)


def _endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        services: Services = request.app.state.services
        what = "clients" if request.url.path.startswith("/admin/clients") else "administration"
        caller = None
        try:
            caller = await admit(request, services, _OPEN.get(handler, ()))
            with redisclosure.collecting() as consents:
                status, body = await audited.administer(
                    request, caller, lambda: _run(handler, request, services), what=what
                )
        except FhirError as error:
            if caller is None:
                error = await audited.refused(request, error)
            return exchange.respond_error(error)
        except ConnectionFailure:
            log.warning("database unreachable", extra={"action": "request"})
            return exchange.respond_error(Unavailable("The database does not answer; try again"))
        told = redisclosure.headers(consents.values())
        if isinstance(body, str):
            return Response(body, status, told, media_type="text/csv")
        content = b"" if body is None else fhir_json.encode(body)
        return Response(content, status, told, media_type="application/json" if content else None)

    return endpoint


ROUTES = [
    Route(f"/admin{path}", _endpoint(handler), methods=[method])
    for method, path, handler in (
        ("GET", "/deliveries", list_deliveries),
        ("POST", "/deliveries/resend", resend_many),
        ("GET", "/deliveries/{id}", read_delivery),
        ("POST", "/deliveries/{id}/resend", resend_one),
        ("GET", "/topics", list_topics),
        ("GET", "/topics/{name}", read_topic),
        ("PUT", "/topics/{name}", put_topic),
        ("DELETE", "/topics/{name}", delete_topic),
        *clock_routes.HANDLERS,
        *event_routes.HANDLERS,
        *contract_routes.HANDLERS,
        *client_routes.HANDLERS,
        *dead_letter_routes.HANDLERS,
    )
]
