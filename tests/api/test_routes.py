"""The router's table: every interaction says what the audit calls it."""

from __future__ import annotations

import pytest

from app.api.router import ENDPOINTS
from app.audit.balp import KINDS

ROUTES = [
    pytest.param(code, handler, id=f"{verb} {path or '/'}")
    for path, endpoint in ENDPOINTS
    for verb, (code, handler) in endpoint.routes.items()
]


@pytest.mark.parametrize(("code", "handler"), ROUTES)
def test_each_route_is_recorded_by_a_code_that_the_audit_knows(
    code: str | None, handler: object
) -> None:
    """Nothing but the CapabilityStatement tells of nobody."""
    if code is None:
        assert getattr(handler, "__name__", "") == "metadata"
    else:
        assert code in KINDS
