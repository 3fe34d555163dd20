"""Contexts for the routes of `/admin`: the server's own, and that of whoever asks."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request

from app.authentication.caller import SERVER, Caller
from app.context import Context, Services


def of_server(request: Request) -> Context:
    """What an administrator asks the server to do; it is judged by nothing but the right to come in."""
    services: Services = request.app.state.services
    base_url = services.settings.base_url.rstrip("/") or f"{str(request.base_url).rstrip('/')}/fhir"
    return Context(services, SERVER, base_url)


def of_caller(request: Request) -> Context:
    """What a caller may see for itself; an administrator who was let in needs no scopes besides."""
    context = of_server(request)
    caller: Caller = request.scope["caller"]
    return context if caller.role == "administrator" else replace(context, caller=caller)
