"""The operator's routes for contracts and for the report on notices; app/api/admin/operators.py serves them.

GET    /admin/contracts
GET, PUT, DELETE  /admin/contracts/<id>
GET    /admin/reports/notices.csv   ?periodStart= &periodEnd= &organization= &class=
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from app.api import exchange
from app.api.admin import contexts
from app.context import Services
from app.coordination.contracts import contracts
from app.errors import BadRequest
from app.operations import measure_evaluate

Answer = tuple[int, Any]
_REPORT_PARAMETERS = frozenset(
    {"periodStart", "periodEnd", "organization", "practitioner", "class"}
)


async def list_contracts(request: Request, services: Services) -> Answer:
    return 200, {"contracts": await contracts.list_all(contexts.of_server(request))}


async def read_contract(request: Request, services: Services) -> Answer:
    return 200, await contracts.get(contexts.of_server(request), request.path_params["id"])


async def put_contract(request: Request, services: Services) -> Answer:
    body = await exchange.read_json(request, services.settings.max_resource_bytes)
    context, contract = contexts.of_server(request), request.path_params["id"]
    created = await contracts.put(context, contract, body)
    return 201 if created else 200, await contracts.get(context, contract)


async def delete_contract(request: Request, services: Services) -> Answer:
    await contracts.delete(contexts.of_server(request), request.path_params["id"])
    return 204, None


async def report_notices(request: Request, services: Services) -> Answer:
    """The numbers of Measure/carerelay-notice-timeliness/$evaluate-measure as CSV."""
    query, context = request.query_params, contexts.of_caller(request)
    for type_, actions in measure_evaluate.NEEDS:
        context.require(type_, *actions)
    for name in query:
        if name not in _REPORT_PARAMETERS:
            raise BadRequest(f"Unknown parameter '{name}'", code="not-supported", expression=name)
    asked = measure_evaluate.read(
        query.get("periodStart"),
        query.get("periodEnd"),
        query.get("organization") or query.get("practitioner"),
        query.getlist("class"),
    )
    return 200, await measure_evaluate.csv_of(context, asked)


HANDLERS = (
    ("GET", "/contracts", list_contracts),
    ("GET", "/contracts/{id}", read_contract),
    ("PUT", "/contracts/{id}", put_contract),
    ("DELETE", "/contracts/{id}", delete_contract),
    ("GET", "/reports/notices.csv", report_notices),
)
