"""A stand-in for a practice's endpoint: takes every notification, shows it, keeps it readable.

Knows R4 rest-hook (https://hl7.org/fhir/R4/subscription.html) and the notification Bundles of the
R4 Backport guide (https://hl7.org/fhir/uv/subscriptions-backport/STU1.1/notifications.html).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.errors import BadRequest
from app.fhir import json as fhir_json
from app.fhir.json import Resource

KEPT = 10_000  # the oldest make way


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came. `event_number` and `focus` are those of its last event."""

    received_at: datetime
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    kind: str
    event_number: int | None = None
    focus: str | None = None
    resource: Resource | None = None

    def line(self) -> str:
        """For the terminal: when, how, where, what."""
        clock = self.received_at.astimezone().strftime("%H:%M:%S.%f")[:-3]
        number = "" if self.event_number is None else f" #{self.event_number}"
        # The address of the server is the same on every line: only Type/id is news.
        focus = "" if self.focus is None else f" {'/'.join(self.focus.split('/')[-2:])}"
        return f"{clock} {self.method} {self.path} {self.kind}{number}{focus}"

    def to_json(self) -> dict[str, Any]:
        """As GET /received shows it; a JSON body is passed on digit by digit."""
        if self.resource is not None:
            body: object = msgspec.Raw(self.body)
        else:
            body = self.body.decode(errors="replace") or None
        return {
            "received_at": self.received_at.isoformat(timespec="milliseconds"),
            "method": self.method,
            "path": self.path,
            "kind": self.kind,
            "event_number": self.event_number,
            "focus": self.focus,
            "headers": self.headers,
            "body": body,
        }


@dataclass(slots=True)
class Receiver:
    """What the endpoint answers, and what it has received; `on_receipt` is called for each."""

    status: int = 200
    delay: float = 0.0
    on_receipt: Callable[[Received], None] | None = None
    received: deque[Received] = field(default_factory=lambda: deque(maxlen=KEPT))

    def app(self) -> Starlette:
        """The endpoint as an ASGI application: everything is taken, /received shows it."""
        return Starlette(
            routes=[
                Route("/received", self._show, methods=["GET"]),
                Route("/{path:path}", self._take, methods=["POST", "PUT"]),
            ]
        )

    async def _take(self, request: Request) -> Response:
        came = understand(request, await request.body(), datetime.now(UTC))
        self.received.append(came)
        if self.on_receipt is not None:
            self.on_receipt(came)
        if self.delay:
            await asyncio.sleep(self.delay)
        return Response(status_code=self.status)

    async def _show(self, request: Request) -> Response:
        listed = msgspec.json.encode([came.to_json() for came in self.received])
        return Response(listed, media_type="application/json")


def understand(request: Request, body: bytes, received_at: datetime) -> Received:
    """Tell what a request is: a kind of notification Bundle, a resource, or an empty POST."""
    kind, event_number, focus = "empty", None, None
    resource: Resource | None = None
    if body:
        kind = "unreadable"
        try:
            resource = fhir_json.decode(body)
        except BadRequest:
            resource = None
    if resource is not None:
        kind = str(resource.get("resourceType", "unreadable"))
        focus = f"{kind}/{resource['id']}" if "id" in resource else None
        status = _subscription_status(resource)
        if status is not None:
            kind, event_number, focus = _notification(status)
    return Received(
        received_at=received_at,
        method=request.method,
        path=request.url.path,
        headers=dict(request.headers),
        body=body,
        kind=kind,
        event_number=event_number,
        focus=focus,
        resource=resource,
    )


def _subscription_status(bundle: Resource) -> Resource | None:
    """The status that opens a notification Bundle; in R4 it is a Parameters resource."""
    if bundle.get("resourceType") != "Bundle" or not bundle.get("entry"):
        return None
    first: Resource = bundle["entry"][0].get("resource", {})
    return first if first.get("resourceType") == "Parameters" else None


def _notification(status: Resource) -> tuple[str, int | None, str | None]:
    """(type, number of the last event, its focus) of a SubscriptionStatus in R4's Parameters."""
    kind, number, focus = "notification", None, None
    for parameter in status.get("parameter", []):
        if parameter.get("name") == "type":
            kind = parameter.get("valueCode", kind)
        if parameter.get("name") == "notification-event":
            for part in parameter.get("part", []):
                if part.get("name") == "event-number":
                    number = int(part["valueString"])
                elif part.get("name") == "focus":
                    focus = part["valueReference"].get("reference")
    return kind, number, focus


def receiver_server(receiver: Receiver) -> uvicorn.Server:
    """A quiet HTTP server for it; run it with the sockets it should listen on."""
    return uvicorn.Server(
        uvicorn.Config(receiver.app(), access_log=False, log_level="warning", lifespan="off")
    )


def run_receiver(receiver: Receiver, listener: socket.socket) -> None:
    """Receive until SIGINT or SIGTERM."""
    try:
        receiver_server(receiver).run(sockets=[listener])
    except KeyboardInterrupt:
        return
