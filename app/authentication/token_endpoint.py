"""The token endpoint's logic: an access token in exchange for a signed assertion.

https://www.rfc-editor.org/rfc/rfc6749#section-4.4 and https://hl7.org/fhir/smart-app-launch/backend-services.html
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.authentication.access_tokens import SECONDS, Authority
from app.authentication.jwt import TokenRefused
from app.authentication.scopes import intersect
from app.network.backend_services_client import ASSERTION_TYPE

_MOST_SCOPES = 200


class OAuthError(Exception):
    """An error response of OAuth; the description is our own and repeats nothing of the request."""

    def __init__(self, error: str, description: str, status: int = 400) -> None:
        super().__init__(description)
        self.error = error
        self.status = status

    @property
    def body(self) -> dict[str, str]:
        return {"error": self.error, "error_description": str(self)}


@dataclass(frozen=True, slots=True)
class Grant:
    """The response with an issued token, and its client's id."""

    client_id: str
    body: Mapping[str, Any]


async def grant(authority: Authority, fields: Sequence[tuple[str, str]]) -> Grant:
    """The response to a token request. Raises OAuthError."""
    form = _form(fields)
    if form.get("grant_type") is None:
        raise OAuthError("invalid_request", "'grant_type' is missing")
    if form["grant_type"] != "client_credentials":
        raise OAuthError("unsupported_grant_type", "Only client_credentials are granted")
    if "client_secret" in form or form.get("client_assertion_type") != ASSERTION_TYPE:
        raise OAuthError(
            "invalid_request",
            f"Clients prove themselves with 'client_assertion_type'={ASSERTION_TYPE}",
        )
    assertion = form.get("client_assertion", "")
    if not assertion:
        raise OAuthError("invalid_request", "'client_assertion' is missing")
    try:
        client = await authority.assertions.judge(assertion, authority.token_url)
    except TokenRefused as refused:
        raise OAuthError("invalid_client", str(refused)) from None
    if form.get("client_id", client.client_id) != client.client_id:
        raise OAuthError("invalid_client", "'client_id' is not that of the assertion")
    scopes = intersect(form.get("scope", "").split()[:_MOST_SCOPES], client.scopes)
    if not scopes:
        raise OAuthError("invalid_scope", "None of the scopes asked for is granted to this client")
    return Grant(
        client.client_id,
        {
            "access_token": await authority.issue(client, scopes),
            "token_type": "bearer",
            "expires_in": SECONDS,
            "scope": " ".join(scopes),
        },
    )


def _form(fields: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The fields by name; an empty one counts as absent. Raises OAuthError where one is given twice."""
    form = dict(fields)
    if len(form) < len(fields):
        raise OAuthError("invalid_request", "A field is given more than once")
    return {name: value for name, value in form.items() if value}
