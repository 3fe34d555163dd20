"""What each interaction understands of a request beside its body: the rest is refused, not dropped.

https://hl7.org/fhir/R4/http.html#ops

A client whose `_cascade`, criteria or If-Match goes unread believes that it was heeded. Searches, histories and
operations judge their own queries; app/fhir/shape.py knows what only shapes the answer. Preferences are no
conditions: RFC 7240 has unknown ones ignored (docs/decisions/0034-what-is-not-understood.md).
"""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request

from app.context import Context
from app.errors import BadRequest
from app.fhir import shape
from app.interactions.bundle_entries import SEARCHED_CREATE
from app.interactions.preconditions import NO_PRECONDITIONS, Preconditions, read_preconditions
from app.search import left_out

# By the audit's names. Where there is no version to name, If-None-Match and If-Modified-Since hold for every GET.
_OF_A_READ = frozenset({"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"})
_OF_A_CHANGE = frozenset({"If-Match", "If-None-Match", "If-Unmodified-Since"})
_CONDITIONS = {
    "read": _OF_A_READ,
    "vread": _OF_A_READ,
    "create": frozenset({"If-Match", "If-None-Match", "If-None-Exist"}),
    "update": _OF_A_CHANGE,
    "patch": _OF_A_CHANGE,
    "delete": _OF_A_CHANGE,
}
_WRITES = frozenset({"create", "update", "patch", "delete", "transaction"})
_CONDITIONAL = frozenset({"update", "patch", "delete"})
_WITH_OWN_QUERY = ("search-", "history-", "operation")
_READS = ("GET", "HEAD")
# A verb that nothing answers.
_NOTHING = "request"
_LISTS = ("if-match", "if-none-match")
# It asks that a Provenance be stored with what is written, https://hl7.org/fhir/R4/provenance.html#header
_UNSERVED = "x-provenance"


def check(code: str | None, request: Request, context: Context) -> None:
    """Refuse what the interaction `code` would drop of a request. Raises BadRequest."""
    if code == _NOTHING:
        return
    conditions = preconditions_of(request)
    if conditions is not NO_PRECONDITIONS:
        _check_conditions(code, request.method, conditions)
    if code in _WRITES and _UNSERVED in request.headers:
        raise BadRequest(
            "X-Provenance is not served; write the Provenance in a transaction",
            code="not-supported",
            expression="http.X-Provenance",
        )
    if request.scope["query_string"]:
        _check_query(code, request, context)


def preconditions_of(request: Request) -> Preconditions:
    """The conditional headers of a request, or of the Bundle's entry that it is. Raises BadRequest."""
    found: Preconditions | None = request.scope.get("preconditions")
    if found is None:
        found = request.scope["preconditions"] = read_preconditions(_conditional(request))
    return found


def _conditional(request: Request) -> dict[str, str]:
    """The conditional headers; a list may be sent in several lines, anything else once. Raises BadRequest."""
    if not any(name[:3] == b"if-" for name, _ in request.scope["headers"]):
        return {}  # as most: to read their names costs more than the rest
    found: dict[str, str] = {}
    for name, value in request.headers.items():
        if name[:3] != "if-":
            continue
        if name in found and name not in _LISTS:
            raise BadRequest(f"The header {name} is sent twice", expression=f"http.{name}")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def criteria_of(request: Request) -> str:
    """The query of a conditional interaction without what shapes its answer."""
    return shape.without(request.url.query)


def _check_conditions(code: str | None, method: str, conditions: Preconditions) -> None:
    known: Collection[str] = _CONDITIONS.get(code or "", ())
    if method in _READS:
        known = {*known, "If-None-Match", "If-Modified-Since"}
    elif conditions.if_modified_since is not None:  # RFC 9110 has it ignored by all but GET
        known = {*known, "If-Modified-Since"}
    for header in sorted(conditions.named - frozenset(known)):
        raise BadRequest(
            f"{header} has no meaning here and is not heeded; leave it out",
            code="not-supported",
            expression=f"http.{header}",
        )


def _check_query(code: str | None, request: Request, context: Context) -> None:
    if (code or "").startswith(_WITH_OWN_QUERY):
        return
    if code in _CONDITIONAL and "id" not in request.path_params:
        return  # matches.find_matches reads the criteria
    is_write = code in _WRITES
    for name in request.query_params:
        if name in shape.NAMES or (code is None and name == "mode"):
            continue
        is_lenient = context.handling == "lenient" or left_out.is_left_out(name, context.settings)
        if is_lenient and not is_write:
            continue
        raise BadRequest(
            SEARCHED_CREATE if code == "create" else f"'{name}' is not understood here",
            code="not-supported",
            expression=f"http.{name}",
        )
