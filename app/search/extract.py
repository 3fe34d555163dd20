"""What is stored beside a resource's text so that it can be found, and the indexes on it.

docs/decisions/0003-stored-shape-and-search-terms.md; the fields:

    terms       strings under the one multikey index, see terms.py; every live document has "*"
    date        the start of the type's clinical date, for sorting
    dates, numbers, quantities      {parameter: [{lo, hi, ...}]}
    composites  {parameter: [fields of one element]}
    sorts       {parameter: {lo, hi}}, the least and the greatest value to sort by
    position    a Location's place on earth, see parameters/near.py
    contained   the fields of each contained resource, see contained.py
    rows        terms that the store keeps in rows beside the document, see group_members.py; `whens` likewise
    roster      what a Group is to those who route by its members, see group_members.py
    _id, at     the resource's id and time, as the document has them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING, IndexModel

from app.fhir.instants import span
from app.search import contained, group_members, words
from app.search.expression import AccessPath, Step, follow
from app.search.parameter import Parameter
from app.search.parameters import near
from app.search.ranges import plain
from app.search.search_parameters import GROUPS, OF_THE_DOCUMENT, VALUES, extracted, is_sortable
from app.search.search_state import kept
from app.search.terms import EVERY

# Adds what it finds in a value of the resource to the fields.
Rule = Callable[[Any, dict[str, Any]], None]
_SORT_LENGTH = 64


@dataclass(frozen=True, slots=True)
class _Plan:
    """The rules of a type by the top-level key they read, those that read the whole resource, and the clinical date."""

    by_key: Mapping[str, tuple[Rule, ...]]
    always: tuple[Rule, ...]
    clinical: str | None


def extract(resource_type: str, resource: Mapping[str, Any]) -> dict[str, Any]:
    """The search fields of a valid resource, as they are stored; in memory, what conditions match against.

    `_id` and `at` are taken from the resource's id and meta.lastUpdated where it has them, so a resource that is to be
    stored must bear the ones it is stored with.
    """
    fields = _own_fields(resource_type, resource)
    fields["terms"] += words.terms(resource_type, resource)
    if contained.FIELD in resource:
        contained.add(resource_type, resource, fields, _own_fields)
    return fields


def _own_fields(resource_type: str, resource: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without words and without what the resource contains."""
    plan = _plan(resource_type)
    fields: dict[str, Any] = {"terms": [EVERY]}
    by_key = plan.by_key
    for name, value in resource.items():
        rules = by_key.get(name)
        if rules is not None:
            for rule in rules:
                rule(value, fields)
    for rule in plan.always:
        rule(resource, fields)
    fields["terms"] = list(dict.fromkeys(fields["terms"]))
    if "rows" in fields:
        fields["rows"] = list(dict.fromkeys(fields["rows"]))
    sorts = fields.get("sorts")
    if sorts is not None:
        for key, found in sorts.items():
            sorts[key] = _ends(found)
    _add_own(resource, plan, fields)
    return fields


def _ends(found: list[Any]) -> dict[str, Any]:
    if len(found) == 1:
        return {"lo": found[0], "hi": found[0]}
    return {"lo": min(found, key=plain), "hi": max(found, key=plain)}


def _add_own(resource: Mapping[str, Any], plan: _Plan, fields: dict[str, Any]) -> None:
    dates = fields.get("dates")
    if dates is not None and plan.clinical in dates:
        ranges = dates[plan.clinical]
        fields["date"] = min(each["lo"] for each in ranges) if len(ranges) > 1 else ranges[0]["lo"]
    if "id" in resource:
        fields["_id"] = resource["id"]
    updated = resource.get("meta", {}).get("lastUpdated")
    if updated:
        fields["at"] = span(updated)[0]


def index_models(resource_type: str) -> list[IndexModel]:
    """The indexes of a type's collection: one for all terms in clinical order, one for the time of change."""
    models = [
        IndexModel([("terms", ASCENDING), ("date", ASCENDING), ("_id", ASCENDING)], name="terms"),
        IndexModel([("at", ASCENDING), ("_id", ASCENDING)], name="at"),
    ]
    if resource_type == "Location":
        models.append(near.index_model())
    if resource_type == "Subscription":  # those of one client are counted
        owner = [("private.owner.client_id", ASCENDING)]
        models.append(IndexModel(owner, name="owner", sparse=True))
    return models


@kept
def _plan(resource_type: str) -> _Plan:
    by_key: dict[str, list[Rule]] = {}
    always: list[Rule] = []
    clinical = None
    for code, parameter in extracted(resource_type).items():
        if parameter.is_clinical:
            clinical = code
        if code in OF_THE_DOCUMENT:
            continue
        for path in parameter.paths:
            is_sorted = is_sortable(parameter)
            if parameter.components:
                always.append(_composite_rule(parameter, path.steps))
            elif path.keys:
                rule = _rule(parameter, path, path.steps[1:], is_sorted=is_sorted)
                by_key.setdefault(path.keys[0], []).append(rule)
            else:
                always.append(_rule(parameter, path, path.steps, is_sorted=is_sorted))
    if resource_type == "Location":
        by_key.setdefault("position", []).append(near.add_position)
    if resource_type == "Group":
        by_key["member"].append(group_members.add_whens)
        always.append(group_members.add_roster)
    if resource_type == "CareTeam":
        by_key["participant"].append(group_members.add)
    return _Plan({key: tuple(rules) for key, rules in by_key.items()}, tuple(always), clinical)


def _rule(
    parameter: Parameter, path: AccessPath, steps: tuple[Step, ...], *, is_sorted: bool
) -> Rule:
    values = VALUES[parameter.type][path.type]
    if parameter.type in GROUPS:
        group = GROUPS[parameter.type]
        return _range_rule(group, parameter.key, steps, values, is_sorted=is_sorted)
    if parameter.aside:
        return _aside_rule(parameter.key, steps, values)
    if parameter.shared:
        values = _beyond_shared(values, f"={parameter.targets[0]}/")
    return _term_rule(parameter.key, steps, values, is_sorted=is_sorted)


def _term_rule(
    key: str, steps: tuple[Step, ...], values: Callable[[Any], list[str] | None], *, is_sorted: bool
) -> Rule:
    present = key + "="

    def rule(value: Any, fields: dict[str, Any]) -> None:
        terms = fields["terms"]
        for element in follow(steps, value):
            if element is None:
                continue
            endings = values(element)
            if endings:
                for ending in endings:
                    terms.append(key + ending)
                if is_sorted:
                    _add_sort_values(key, endings, fields)
            elif endings is not None:
                terms.append(present)

    return rule


def _aside_rule(key: str, steps: tuple[Step, ...], values: Callable[[Any], list[str]]) -> Rule:
    """Terms for rows; the document itself only tells that there are some."""
    present = key + "="

    def rule(value: Any, fields: dict[str, Any]) -> None:
        elements = [element for element in follow(steps, value) if element is not None]
        if elements:
            fields["terms"].append(present)
            rows = fields.setdefault("rows", [])
            rows += [key + ending for element in elements for ending in values(element)]

    return rule


def _add_sort_values(key: str, endings: list[str], fields: dict[str, Any]) -> None:
    for ending in endings:
        if ending[0] == "=" and "|" not in ending:
            value = ending[1 : _SORT_LENGTH + 1].partition("\t")[0]
            sorts = fields.get("sorts")
            if sorts is None:
                sorts = fields["sorts"] = {}
            if key in sorts:
                sorts[key].append(value)
            else:
                sorts[key] = [value]


def _beyond_shared(
    values: Callable[[Any], list[str]], shared: str
) -> Callable[[Any], list[str] | None]:
    """Without the terms that the shared parameter stores; None where those were all."""

    def rest(element: Any) -> list[str] | None:
        endings = values(element)
        own = [ending for ending in endings if not ending.startswith(shared)]
        return own if own or not endings else None

    return rest


def _range_rule(
    group: str,
    key: str,
    steps: tuple[Step, ...],
    values: Callable[[Any], list[dict[str, Any]]],
    *,
    is_sorted: bool,
) -> Rule:
    def rule(value: Any, fields: dict[str, Any]) -> None:
        for element in follow(steps, value):
            if element is None:
                continue
            found = values(element)
            if found:
                fields.setdefault(group, {}).setdefault(key, []).extend(found)
                if is_sorted:
                    starts = [each["lo"] for each in found]
                    fields.setdefault("sorts", {}).setdefault(key, []).extend(starts)

    return rule


def _composite_rule(parameter: Parameter, steps: tuple[Step, ...]) -> Rule:
    """Each element's components as fields of their own; an element that lacks one cannot match and is left out."""
    key = parameter.key
    components = [
        [
            (path.is_rooted, _rule(component, path, path.steps, is_sorted=False))
            for path in component.paths
        ]
        # The value comes last in R4's composites and is what most elements lack.
        for component in reversed(parameter.components)
    ]

    def rule(resource: Any, fields: dict[str, Any]) -> None:
        for element in follow(steps, resource):
            found: dict[str, Any] = {"terms": []}
            for rules in components:
                before = _size(found)
                for is_rooted, each in rules:
                    each(resource if is_rooted else element, found)
                if _size(found) == before:
                    break
            else:
                fields.setdefault("composites", {}).setdefault(key, []).append(found)

    return rule


def _size(fields: Mapping[str, Any]) -> int:
    size = len(fields["terms"])
    for group in GROUPS.values():
        if group in fields:
            size += len(fields[group])
    return size
