"""The arguments of an operation's call: read from Parameters or from a query, checked against the definition.

https://hl7.org/fhir/R4/parameters.html
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from app.errors import BadRequest
from app.fhir import shape, validation
from app.fhir.definitions import SUPPORTED_TYPES, json_name
from app.fhir.json import Resource
from app.search.bundle_writer import CURSOR
from app.search.left_out import is_left_out
from app.settings import Settings

Arguments = dict[str, list[Any]]

# Takes the place of a parameter's resource, which the operation checks: inv-1 asks that there be one.
_STAND_IN: Resource = {"resourceType": "Parameters"}
# What the links of an operation with pages have beside its own parameters.
_PAGE = {CURSOR: {"name": CURSOR, "type": "string"}}
# What a parameter may have beside its one value.
_ASIDE = frozenset({"id", "extension", "name"})
_INTEGER = re.compile(r"^[+-]?[0-9]{1,10}$")
_TEXT_TYPES = frozenset(
    {"string", "code", "uri", "url", "canonical", "id", "instant", "date", "dateTime", "token"}
)


@dataclass(frozen=True, slots=True)
class Given:
    """What a call brings: the posted resource, which may be Parameters, and the query's pairs.

    `form` is the media type that is asked for, where it is one of the operation's own.
    """

    body: Resource | None
    query: Sequence[tuple[str, str]] = ()
    posted: bool = False
    form: str | None = None

    @property
    def shaping(self) -> list[tuple[str, str]]:
        """The parameters of the query that shape the answer, to be said again by its links."""
        return [pair for pair in self.query if pair[0] in shape.NAMES]


@dataclass(frozen=True, slots=True)
class Invocation:
    """Where an operation was called, and its arguments by name: JSON values, resources, or lists of parts.

    `given` is what they were read from.
    """

    resource_type: str | None
    resource_id: str | None
    arguments: Arguments
    given: Given = Given(None)

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
    given: Given,
    settings: Settings,
    *,
    lenient: bool = False,
    paged: bool = False,
) -> Arguments:
    """The arguments of a call, https://hl7.org/fhir/R4/operations.html#request.

    They stand in posted Parameters or in the query. Another posted resource is the parameter of its type, and the query
    has the others. Raises BadRequest for what the definition does not have; `lenient` leaves it out. The query of a
    `paged` one may say where a page begins.
    """
    inputs = _inputs(definition)
    body = given.body
    if body is None:
        known = {**inputs, **_PAGE} if paged else inputs
        return _of_query(known, given.query, settings, lenient=lenient)
    if body.get("resourceType") == "Parameters":
        _check_nothing_beside(given.query, settings, lenient=lenient)
        return _of_parameters(inputs, body, lenient=lenient)
    for name, parameter in inputs.items():
        if parameter.get("type") in ("Resource", body.get("resourceType")):
            beside = _of_query(inputs, given.query, settings, lenient=lenient)
            return {**beside, name: [body, *beside.get(name, ())]}
    raise BadRequest("The body must be Parameters", expression="resourceType")


def _check_nothing_beside(
    query: Iterable[tuple[str, str]], settings: Settings, *, lenient: bool
) -> None:
    """Raises BadRequest for arguments in the query where the body is Parameters and may say otherwise."""
    for name, _ in query:
        if name not in shape.NAMES and not lenient and not is_left_out(name, settings):
            raise BadRequest(
                "Send all parameters of an operation in the Parameters, or all in the query",
                code="not-supported",
                expression=name,
            )


def _of_parameters(
    inputs: Mapping[str, dict[str, Any]], body: Resource, *, lenient: bool
) -> Arguments:
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


def _of_query(
    inputs: Mapping[str, dict[str, Any]],
    query: Iterable[tuple[str, str]],
    settings: Settings,
    *,
    lenient: bool,
) -> Arguments:
    """The arguments in a query, converted to the types that the definition states."""
    arguments: Arguments = {}
    for name, text in query:
        if name not in inputs and (name in shape.NAMES or is_left_out(name, settings)):
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
    """Raises BadRequest for malformed Parameters, and for rules to read them by.

    The operation checks the resources inside.
    """
    if "implicitRules" in body:
        raise BadRequest(
            "No implicit rules are known here",
            code="not-supported",
            expression="Parameters.implicitRules",
        )
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
    type_name = parameter.get("type", "")
    key = json_name("value", type_name)
    values = [name for name in given if name[:1] != "_" and name not in _ASIDE]
    if len(values) > 1 or "part" in given or "modifierExtension" in given:
        raise BadRequest(
            "This parameter has one value and nothing beside it",
            code="not-supported",
            expression=where,
        )
    if "resource" in given and (type_name == "Resource" or type_name in SUPPORTED_TYPES):
        return given["resource"]
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
