"""Resource.meta: what a client may set, and what stays when a resource changes.

https://hl7.org/fhir/R4/resource.html#Meta

Profiles, tags and security labels are sets. An update that leaves one out does not remove it: labels protect, and a
client that does not know of them must not drop them. `$meta-delete` removes them on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.fhir.json import Resource
from app.fhir.summary import is_subset_tag

Meta = dict[str, Any]


def coding_key(coding: Any) -> tuple[str | None, str | None]:
    """The identity of a tag or security label; version and display do not count."""
    return coding.get("system"), coding.get("code")


def _profile_key(profile: Any) -> Any:
    return profile


# `_profile` (extensions on single profiles) is the client's business and is not merged.
_SETS: dict[str, Callable[[Any], Any]] = {
    "profile": _profile_key,
    "security": coding_key,
    "tag": coding_key,
}


def carry_over(resource: Resource, kept: Meta) -> Resource:
    """The resource with the labels in the meta of its previous version that it does not name itself."""
    if not any(name in kept for name in _SETS):
        return resource
    # What was stored cut down, before that was refused, is whole again by this update.
    tags = [tag for tag in kept.get("tag", ()) if not is_subset_tag(tag)]
    return {**resource, "meta": add(resource.get("meta", {}), {**kept, "tag": tags})}


def add(meta: Meta, extra: Meta) -> Meta:
    """`meta` with the profiles, labels and tags of `extra` that it lacks, in order."""
    result = dict(meta)
    for name, key in _SETS.items():
        present = {key(item) for item in meta.get(name, ())}
        missing = [item for item in extra.get(name, ()) if key(item) not in present]
        if missing:
            result[name] = [*meta.get(name, ()), *missing]
    return result


def remove(meta: Meta, unwanted: Meta) -> Meta:
    """`meta` without the profiles, labels and tags of `unwanted`."""
    result = dict(meta)
    for name, key in _SETS.items():
        gone = {key(item) for item in unwanted.get(name, ())}
        left = [item for item in meta.get(name, ()) if key(item) not in gone]
        if left:
            result[name] = left
        else:
            result.pop(name, None)
    return result
