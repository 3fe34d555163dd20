"""The arguments of an operation's call: read from Parameters or from a query, checked against the definition.

https://hl7.org/fhir/R4/parameters.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from app.errors import BadRequest
from app.fhir import shape, validation
from app.fhir.definitions import json_name
from app.fhir.json import Resource
from app.search.bundle_writer import CURSOR

Arguments = dict[str, list[Any]]

# Takes the place of a parameter's resource, which the operation checks: inv-1 asks that there be one.
_STAND_IN: Resource = {"resourceType": "Parameters"}
_INTEGER = re.compile(r"^[+-]?[0-9]{1,10}$")
_TEXT_TYPES = frozenset(
    {"string", "code", "uri", "url", "canonical", "id", "instant", "date", "dateTime", "token"}
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """Where an operation was called, and its arguments by name: JSON values, resources, or lists of parts.

    `given` is what they were read from: the body, or the query's pairs. `shaping` are the parameters of the query that
    shape the answer, to be said again by its links.
    """

    resource_type: str | None
    resource_id: str | None
    arguments: Arguments
    posted: bool = False
    given: Resource | Sequence[tuple[str, str]] = ()
    shaping: Sequence[tuple[str, str]] = ()

    @property
    def instance(self) -> tuple[str, str]:
        """Type and id of the resource it was called on."""
        if self.resource_type is None or self.resource_id is None:
            raise BadRequest("This needs a resource: call it at [type]/[id]")
        return self.resource_type, self.resource_id

    def one(self, name: str) -> Any:
        """The value of a parameter that occurs at most once, or None."""
        values = self.arguments.get(name)
        return values[0] if values else None

    def all(self, name: str) -> Sequence[Any]:
        return self.arguments.get(name, ())


def arguments_of(
    definition: Resource,
    body: Resource,
    query: Iterable[tuple[str, str]] = (),
    *,
    lenient: bool = False,
) -> Arguments:
    """The arguments in posted Parameters; another resource is the parameter of its type, beside those of the query."""
    inputs = _inputs(definition)
    if body.get("resourceType") != "Parameters":
        for name, parameter in inputs.items():
            if parameter.get("type") in ("Resource", body.get("resourceType")):
                beside = arguments_of_query(definition, query, lenient=lenient)
                return {**beside, name: [body]}
        raise BadRequest("The body must be Parameters", expression="resourceType")
    _check_form(body)
    arguments: Arguments = {}
    for index, given in enumerate(body.get("parameter", ())):
        where = f"Parameters.parameter[{index}]"
        if given.get("name") not in inputs:
            if lenient:
                continue
            raise BadRequest(
                "This operation has no such parameter", code="not-supported", expression=where
            )
        value = _value(inputs[given["name"]], given, where)
        arguments.setdefault(given["name"], []).append(value)
    return arguments


def arguments_of_query(
    definition: Resource, query: Iterable[tuple[str, str]], *, lenient: bool = False
) -> Arguments:
    """The arguments in a GET's query, converted to the types that the definition states."""
    inputs = _inputs(definition)
    arguments: Arguments = {}
    for name, text in query:
        if name in shape.NAMES and name not in inputs:
            continue
        if name == CURSOR:
            arguments[name] = [text]
            continue
        if name not in inputs:
            if lenient:
                continue
            raise BadRequest(
                "This operation has no such parameter", code="not-supported", expression=name
            )
        type_name = inputs[name].get("type", "")
        texts = text.split(",") if name == "_type" else [text]
        arguments.setdefault(name, []).extend(_primitive(type_name, t, name) for t in texts)
    return arguments


def _check_form(body: Resource) -> None:
    """Raises BadRequest for malformed Parameters; the operation checks the resources inside."""
    given = body.get("parameter")
    if isinstance(given, list):
        for index, parameter in enumerate(given):
            if isinstance(parameter, dict) and not isinstance(parameter.get("resource", {}), dict):
                where = f"Parameters.parameter[{index}].resource"
                raise BadRequest("Must be an object", code="structure", expression=where)
        form = [
            {**parameter, "resource": _STAND_IN}
            if isinstance(parameter, dict) and "resource" in parameter
            else parameter
            for parameter in given
        ]
        body = {**body, "parameter": form}
    validation.validate(body)


def _inputs(definition: Resource) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in definition.get("parameter", ()) if p["use"] == "in"}


def _value(parameter: dict[str, Any], given: dict[str, Any], where: str) -> Any:
    if "resource" in given:
        return given["resource"]
    if "part" in given:
        return given["part"]
    type_name = parameter.get("type", "")
    key = json_name("value", type_name) if type_name else ""
    if key in given:
        return given[key]
    # Clients often write a narrower or wider text type than the definition's.
    if type_name in _TEXT_TYPES:
        for other in _TEXT_TYPES:
            if (other_key := json_name("value", other)) in given:
                return given[other_key]
    raise BadRequest(f"The parameter needs {key or 'a resource'}", code="value", expression=where)


def _primitive(type_name: str, text: str, name: str) -> Any:
    if type_name == "boolean":
        if text in ("true", "false"):
            return text == "true"
    elif type_name in ("integer", "positiveInt", "unsignedInt"):
        if _INTEGER.match(text):
            return int(text)
    elif type_name == "decimal":
        try:
            return Decimal(text)
        except InvalidOperation:
            pass
    elif type_name in _TEXT_TYPES:
        return text
    else:
        raise BadRequest("This parameter can only be sent by POST", expression=name)
    raise BadRequest(f"Not a valid {type_name}", code="value", expression=name)
