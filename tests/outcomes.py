"""The one way tests look at a failure."""

from __future__ import annotations

from typing import Any

import httpx

from app.errors import Issue
from app.fhir.json import Resource
from app.fhir.validation import check


def assert_outcome(
    response: httpx.Response, status: int, code: str, expression: str | None = None
) -> dict[str, Any]:
    """The answer is an OperationOutcome with this status and an issue of this code (at this element)."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/fhir+json")
    outcome: dict[str, Any] = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    assert outcome["issue"]
    for issue in outcome["issue"]:
        assert set(issue) <= {"severity", "code", "diagnostics", "expression", "details"}
        assert issue["diagnostics"]
    found = [
        (issue["code"], path)
        for issue in outcome["issue"]
        for path in issue.get("expression", [None])
    ]
    assert any(c == code and (expression is None or path == expression) for c, path in found), (
        outcome
    )
    return outcome


def errors_in(resource: Resource) -> list[Issue]:
    """What R4's definitions refuse in a resource, whatever they warn of."""
    return [issue for issue in check(resource) if issue.severity == "error"]
