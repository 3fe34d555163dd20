"""Every failure a client can see, and the one place that turns it into an OperationOutcome.

https://hl7.org/fhir/R4/operationoutcome.html and https://hl7.org/fhir/R4/http.html#Status-Codes

    FhirError
    ├── BadRequest            400  the request cannot be understood (structure, invalid, required, value ...)
    ├── Unauthorized          401  no or no valid credentials
    ├── Forbidden             403  understood, but not allowed
    ├── NotFound              404  never existed, or an unknown type or route
    ├── MethodNotAllowed      405  carries the Allow header
    ├── NotAcceptable         406  no format the client accepts
    ├── RequestTimeout        408  the body came too slowly
    ├── Conflict              409  clashes with the current state
    ├── Gone                  410  deleted, or a page link past its time
    ├── PreconditionFailed    412  If-Match, If-None-Match or a conditional criterion failed
    ├── TooLarge              413  body or Bundle over its limit
    ├── UriTooLong            414  the URL is over its limit
    ├── UnsupportedMediaType  415  the body's media type is not FHIR
    ├── RangeNotSatisfiable   416  the content ends before the part that was asked for
    ├── Unprocessable         422  well formed, but breaks a rule
    ├── TooManyRequests       429  slow down
    └── Unavailable           503  try again later
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Severity = Literal["fatal", "error", "warning", "information"]


@dataclass(frozen=True, slots=True)
class Issue:
    """One OperationOutcome.issue.

    `code` is from http://hl7.org/fhir/issue-type. `expression` are FHIRPath locations such as
    `Encounter.period.start`. `diagnostics` is read by people and must never carry another patient's data.
    """

    code: str
    diagnostics: str
    expression: tuple[str, ...] = ()
    severity: Severity = "error"

    def to_json(self) -> dict[str, Any]:
        issue: dict[str, Any] = {
            "severity": self.severity,
            "code": self.code,
            "diagnostics": self.diagnostics,
        }
        if self.expression:
            issue["expression"] = list(self.expression)
        return issue


def operation_outcome(issues: Iterable[Issue]) -> dict[str, Any]:
    """The OperationOutcome resource for these issues."""
    return {"resourceType": "OperationOutcome", "issue": [issue.to_json() for issue in issues]}


class FhirError(Exception):
    """A failure with an HTTP status and at least one issue."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "exception"

    def __init__(
        self,
        diagnostics: str = "",
        *,
        code: str | None = None,
        expression: str | Iterable[str] = (),
        issues: Iterable[Issue] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        paths = (expression,) if isinstance(expression, str) else tuple(expression)
        self.issues = tuple(issues) or (Issue(code or self.code, diagnostics, paths),)
        self.headers = dict(headers or {})
        # What is answered instead of the outcome, where the outcome is a part of it.
        self.answer: dict[str, Any] | None = None
        super().__init__(self.issues[0].diagnostics)

    @property
    def outcome(self) -> dict[str, Any]:
        return operation_outcome(self.issues)


class BadRequest(FhirError):
    status, code = 400, "invalid"


class Unauthorized(FhirError):
    status, code = 401, "login"


class Forbidden(FhirError):
    status, code = 403, "forbidden"


class NotFound(FhirError):
    status, code = 404, "not-found"


class MethodNotAllowed(FhirError):
    status, code = 405, "not-supported"


class NotAcceptable(FhirError):
    status, code = 406, "not-supported"


class RequestTimeout(FhirError):
    status, code = 408, "timeout"


class Conflict(FhirError):
    status, code = 409, "conflict"


class Gone(FhirError):
    status, code = 410, "deleted"


class PreconditionFailed(FhirError):
    status, code = 412, "conflict"


class TooLarge(FhirError):
    status, code = 413, "too-long"


class UriTooLong(FhirError):
    status, code = 414, "too-long"


class UnsupportedMediaType(FhirError):
    status, code = 415, "not-supported"


class RangeNotSatisfiable(FhirError):
    status, code = 416, "value"


class Unprocessable(FhirError):
    status, code = 422, "processing"


class TooManyRequests(FhirError):
    status, code = 429, "throttled"


class Unavailable(FhirError):
    status, code = 503, "transient"
