"""Batch and transaction: several interactions in one Bundle.

https://hl7.org/fhir/R4/http.html#transaction

A batch runs its entries as so many single interactions, side by side. A transaction plans all of its writes first
(DELETE, POST, PUT and PATCH), writes them in one commit, then runs its reads.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from app.audit import recorded
from app.context import Context, WriteScope
from app.errors import BadRequest, FhirError, Gone, Issue, Unprocessable, operation_outcome
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.fhir.patch import json_patch
from app.fhir.patch.fhirpath_patch import fhirpath_patch
from app.fhir.patch.patch_formats import patch_of
from app.interactions import bundle_references, interactions, plan as write
from app.interactions.plan import Target, WritePlan
from app.interactions.preconditions import Preconditions, Prefer, read_preconditions
from app.interactions.result import InteractionResult
from app.records.versions import ResourceVersion, WriteAction, instant

# How the router answers what is no plain write: method, path below the base, query and body.
Dispatch = Callable[[Context, str, str, str, Resource | None], Awaitable[InteractionResult]]

_ORDER = {"DELETE": 0, "POST": 1, "PUT": 2, "PATCH": 2, "GET": 3, "HEAD": 3}
_ACTIONS: dict[str, WriteAction] = {"PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_SIDE_BY_SIDE = 16


@dataclass(slots=True)
class BundleEntry:
    """One entry of a batch or transaction, its request taken apart."""

    index: int
    method: str
    path: str
    query: str
    full_url: str | None
    resource: Resource | None
    preconditions: Preconditions
    target: Target | None = field(default=None)

    @property
    def where(self) -> str:
        return f"Bundle.entry[{self.index}]"

    @property
    def segments(self) -> list[str]:
        return [segment for segment in self.path.split("/") if segment]


async def process(
    context: Context, bundle: Resource, prefer: Prefer, dispatch: Dispatch
) -> InteractionResult:
    """Run a batch or transaction Bundle.

    200 with a response Bundle, entries in the order of the request. A failing transaction raises one FhirError and
    stores nothing; a failing batch entry only fails itself.
    """
    if bundle.get("resourceType") != "Bundle" or bundle.get("type") not in ("batch", "transaction"):
        raise BadRequest(
            "Post a Bundle of type batch or transaction here",
            code="invalid",
            expression="Bundle.type",
        )
    raw = bundle.get("entry", [])
    if not isinstance(raw, list):
        raise BadRequest("Must be an array", code="structure", expression="Bundle.entry")
    if len(raw) > context.settings.max_bundle_entries:
        raise BadRequest(
            f"The Bundle has more than {context.settings.max_bundle_entries} entries",
            code="too-costly",
        )
    if bundle["type"] == "batch":
        responses = await _batch(context, raw, prefer, dispatch)
    else:
        entries = [_parse(context, index, entry) for index, entry in enumerate(raw)]
        for entry in entries:
            if entry.method == "POST" and "$" in entry.path:
                raise Unprocessable(
                    "An operation cannot share a transaction's single commit",
                    expression=entry.where,
                )
        responses = await _transaction(context, entries, prefer, dispatch)
    head = fhir_json.encode({"resourceType": "Bundle", "type": f"{bundle['type']}-response"})
    text = head.decode()[:-1]
    if responses:
        text += ',"entry":[' + ",".join(responses) + "]"
    return InteractionResult(200, text=text + "}")


async def _batch(
    context: Context, raw: Sequence[Any], prefer: Prefer, dispatch: Dispatch
) -> list[str]:
    places = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def run(index: int, entry: Any) -> str:
        async with places:
            try:
                parsed = _parse(context, index, entry)
                answer = await _run_alone(context, parsed, dispatch)
                return _response(context, parsed, answer, prefer)
            except FhirError as error:
                return _failure(error)

    return list(await asyncio.gather(*(run(index, entry) for index, entry in enumerate(raw))))


async def _run_alone(context: Context, entry: BundleEntry, dispatch: Dispatch) -> InteractionResult:
    """One batch entry, as the single interaction that it names."""
    if entry.method in ("GET", "HEAD") or "$" in entry.path:
        return await dispatch(context, entry.method, entry.path, entry.query, entry.resource)
    url = f"{entry.path}?{entry.query}" if entry.query else entry.path
    return await recorded.write(
        context.services.audit,
        context.caller,
        entry.method,
        url,
        lambda: _write_alone(context, entry),
    )


async def _write_alone(context: Context, entry: BundleEntry) -> InteractionResult:
    conditions = entry.preconditions
    resource_type, resource_id = _address(entry)
    if entry.method == "POST":
        return await interactions.create(context, resource_type, _body(entry), conditions)
    if entry.method == "DELETE":
        if resource_id is None:
            return await interactions.conditional_delete(
                context, resource_type, entry.query, conditions
            )
        return await interactions.delete(context, resource_type, resource_id, conditions)
    if entry.method == "PUT":
        if resource_id is None:
            return await interactions.conditional_update(
                context, resource_type, entry.query, _body(entry), conditions
            )
        return await interactions.update(
            context, resource_type, resource_id, _body(entry), conditions
        )
    if resource_id is None:
        return await interactions.conditional_patch(
            context, resource_type, entry.query, _patch(entry), conditions
        )
    return await interactions.patch(context, resource_type, resource_id, _patch(entry), conditions)


async def _transaction(
    context: Context, entries: list[BundleEntry], prefer: Prefer, dispatch: Dispatch
) -> list[str]:
    writes = sorted(
        (entry for entry in entries if entry.method not in ("GET", "HEAD")),
        key=lambda entry: _ORDER[entry.method],
    )
    reads = [entry for entry in entries if entry.method in ("GET", "HEAD")]

    async def rehearse(surroundings: Context) -> None:
        await _rehearse(surroundings, reads, dispatch)

    if writes:
        answers = await interactions.until_undisturbed(lambda: _commit(context, writes, rehearse))
    else:
        answers = {}
    for entry in reads:
        with _located(entry):
            answers[entry.index] = await dispatch(
                context, entry.method, entry.path, entry.query, None
            )
    return [_response(context, entry, answers[entry.index], prefer) for entry in entries]


async def _rehearse(context: Context, reads: Sequence[BundleEntry], dispatch: Dispatch) -> None:
    """Fail where a read is going to, while nothing is written; what the writes create can only be read after them."""
    for entry in reads:
        place = entry.segments[:2]
        if tuple(place) in context.write_scope.creating:
            continue
        with _located(entry):
            if "/".join(place) in context.write_scope.deleting:
                raise Gone("This transaction deletes the resource")
            await dispatch(context, entry.method, entry.path, entry.query, None)


async def _commit(
    context: Context, writes: Sequence[BundleEntry], rehearse: Callable[[Context], Awaitable[None]]
) -> dict[int, InteractionResult]:
    """Plan all writes against what is stored now, rehearse the reads that follow, and commit the writes as one."""
    await _find_targets(context, writes)
    _refuse_double_targets(writes)
    bodies = await bundle_references.resolve(context, writes)
    deleting = frozenset(
        entry.target.reference for entry in writes if entry.target and entry.method == "DELETE"
    )
    creating = frozenset(
        (entry.target.type, entry.target.id)
        for entry in writes
        if entry.target and entry.method in ("POST", "PUT")
    )
    writing = frozenset(entry.target.reference for entry in writes if entry.target)
    surroundings = replace(context, write_scope=WriteScope(creating, deleting, writing))
    plans: list[WritePlan] = []
    for entry in writes:
        with _located(entry):
            plans.append(await _plan(surroundings, entry, bodies.get(entry.index)))
    await rehearse(surroundings)
    changes = [plan.change for plan in plans if plan.change]
    guards = {guard.key: guard for plan in plans for guard in plan.guards}
    committed: dict[str, ResourceVersion] = {}
    if changes:
        for stored in await context.store.commit(changes, list(guards.values())):
            committed[stored.reference] = stored
    return {
        entry.index: plan.answer(committed.get(plan.change.key) if plan.change else None)
        for entry, plan in zip(writes, plans, strict=True)
    }


async def _find_targets(context: Context, writes: Sequence[BundleEntry]) -> None:
    """Decide for each write which resource it is about; the plain ones are read together."""
    plain = {}
    actions: dict[tuple[str, str], WriteAction] = {}
    for entry in writes:
        resource_type, resource_id = _address(entry)
        with _located(entry):
            write.check_type(resource_type)
            if resource_id is not None:
                action = _ACTIONS[entry.method]
                context.require(resource_type, *write.RIGHTS[action])
                actions[resource_type, resource_id] = action
                plain[entry.index] = (resource_type, resource_id)
    current = await context.store.previous_many(actions)
    for entry in writes:
        with _located(entry):
            if entry.index in plain:
                resource_type, resource_id = plain[entry.index]
                if entry.method == "PUT":
                    write.check_body_id(resource_type, resource_id, _body(entry))
                previous = current.get(f"{resource_type}/{resource_id}")
                entry.target = Target(resource_type, resource_id, previous)
            else:
                entry.target = await _conditional_target(context, entry)


async def _conditional_target(context: Context, entry: BundleEntry) -> Target | None:
    resource_type, _ = _address(entry)
    if entry.method == "POST":
        return await write.target_of_create(
            context, resource_type, entry.preconditions.if_none_exist, _body(entry)
        )
    if entry.method == "PUT":
        return await write.target_of_conditional_update(
            context, resource_type, entry.query, _body(entry).get("id")
        )
    if entry.method == "PATCH":
        return await write.target_of_patch(context, resource_type, entry.query)
    context.require(resource_type, "d")
    guard, matches = await write.find_matches(context, resource_type, entry.query)
    if not matches:
        return None
    return Target(resource_type, matches[0].id, matches[0], (guard,))


def _refuse_double_targets(writes: Sequence[BundleEntry]) -> None:
    seen: dict[str, BundleEntry] = {}
    for entry in writes:
        if entry.target is None:
            continue
        other = seen.setdefault(entry.target.reference, entry)
        both_settled = (
            entry.target.settled is not None
            and other.target is not None
            and (other.target.settled is not None)
        )
        if other is not entry and not both_settled:
            raise BadRequest(
                f"{entry.where} and {other.where} change the same resource",
                code="invalid",
                expression=(other.where, entry.where),
            )


async def _plan(context: Context, entry: BundleEntry, body: Resource | None) -> WritePlan:
    if entry.target is None:
        return WritePlan(204)
    if entry.method == "DELETE":
        return await write.plan_delete(context, entry.target, entry.preconditions)
    if entry.method == "PATCH":
        return await write.plan_patch(context, entry.target, _patch(entry), entry.preconditions)
    if body is None:
        raise _invalid(entry, "resource", "The entry needs a resource")
    return await write.plan_write(context, entry.target, body, entry.preconditions)


# Reading the request's entries


def _parse(context: Context, index: int, raw: Any) -> BundleEntry:
    request = raw.get("request") if isinstance(raw, dict) else None
    where = f"Bundle.entry[{index}].request"
    if not isinstance(request, dict):
        raise BadRequest("The entry needs a request", code="required", expression=where)
    method, url = request.get("method"), request.get("url")
    if not isinstance(method, str) or method not in _ORDER:
        raise BadRequest(
            "The method must be GET, HEAD, POST, PUT, PATCH or DELETE", expression=f"{where}.method"
        )
    if not isinstance(url, str):
        raise BadRequest("The request needs a url", code="required", expression=f"{where}.url")
    url = url.removeprefix(context.base_url).lstrip("/")
    path, _, query = url.partition("?")
    headers = {
        header: request[name]
        for name, header in (
            ("ifMatch", "if-match"),
            ("ifNoneMatch", "if-none-match"),
            ("ifNoneExist", "if-none-exist"),
        )
        if name in request
    }
    full_url = raw.get("fullUrl")
    if not all(isinstance(text, str) for text in (full_url or "", *headers.values())):
        raise BadRequest("The entry has what must be a string", code="structure", expression=where)
    return BundleEntry(
        index,
        method,
        path,
        query,
        full_url,
        raw.get("resource"),
        read_preconditions(headers),
    )


def _address(entry: BundleEntry) -> tuple[str, str | None]:
    """Type and id that a write names. Raises BadRequest where the url is no place to write to."""
    match entry.segments:
        case [resource_type] if entry.method == "POST" or entry.query:
            return resource_type, None
        case [resource_type, resource_id] if entry.method != "POST" and not entry.query:
            return resource_type, resource_id
    raise _invalid(entry, "request.url", f"{entry.method} is not possible at this url")


def _body(entry: BundleEntry) -> Resource:
    if not isinstance(entry.resource, dict):
        raise _invalid(entry, "resource", "The entry needs a resource")
    return entry.resource


def _patch(entry: BundleEntry) -> json_patch.Patch:
    """A PATCH in a Bundle: a Binary that holds a JSON or XML Patch, or the Parameters of a FHIRPath Patch."""
    body = _body(entry)
    if body.get("resourceType") == "Parameters":
        return fhirpath_patch(body)
    if body.get("resourceType") != "Binary" or not isinstance(body.get("data"), str):
        raise _invalid(entry, "resource", "A PATCH needs a Binary or Parameters")
    try:
        data = base64.b64decode(body["data"], validate=True)
    except ValueError:
        raise _invalid(entry, "resource.data", "Not base64") from None
    return patch_of(str(body.get("contentType", "")), data)


def _invalid(entry: BundleEntry, element: str, diagnostics: str) -> BadRequest:
    return BadRequest(diagnostics, expression=f"{entry.where}.{element}")


@contextmanager
def _located(entry: BundleEntry) -> Iterator[None]:
    """Whatever fails inside is reported at this entry."""
    try:
        yield
    except FhirError as error:
        error.issues = tuple(_moved(issue, entry) for issue in error.issues)
        raise


def _moved(issue: Issue, entry: BundleEntry) -> Issue:
    if any(path.startswith("Bundle.entry") for path in issue.expression):
        return issue
    inside = tuple(
        f"{entry.where}.request.url"
        if path.startswith("http.")  # a parameter of a query
        else f"{entry.where}.resource.{path.partition('.')[2] or path}"
        for path in issue.expression
    )
    return replace(issue, expression=inside or (entry.where,))


# Writing the response's entries


def _response(
    context: Context, entry: BundleEntry, answer: InteractionResult, prefer: Prefer
) -> str:
    returns = "representation" if entry.method in ("GET", "HEAD") else prefer.returns
    response: dict[str, Any] = {"status": str(answer.status)}
    stored = answer.stored
    if stored is not None:
        if answer.location:
            response["location"] = (
                f"{context.base_url}/{stored.reference}/_history/{stored.version}"
            )
        response["etag"] = f'W/"{stored.version}"'
        response["lastModified"] = instant(stored.at)
    if returns == "OperationOutcome" or answer.issues:
        done = Issue("informational", "Done", severity="information")
        response["outcome"] = operation_outcome(answer.issues or (done,))
    head: dict[str, Any] = {}
    if stored is not None:
        head["fullUrl"] = f"{context.base_url}/{stored.reference}"
    head["response"] = response
    text = fhir_json.encode(head).decode()
    body = answer.body
    if body is None or returns != "representation":
        return text
    resource = body if isinstance(body, str) else body.decode()
    return f'{text[:-1]},"resource":{resource}}}'


def _failure(error: FhirError) -> str:
    response = {"status": str(error.status), "outcome": error.outcome}
    return fhir_json.encode({"response": response}).decode()
