"""What others publish as R4 and is not quite: what can be put right without a doubt before it is sent, and said.

The server itself refuses such files; https://hl7.org/fhir/R4/json.html has the rules they break:

    fhir_comments            a way to keep XML comments in JSON, which only DSTU2 had: left out
    _name, too short         extensions of a repeating primitive, without the nulls for the last values: completed
    ""                       an element without a value: left out
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from app.fhir.json import Resource

_COMMENTS = "fhir_comments"


# Texts without any of these have nothing to be put right: to look for it would cost as much as all else.
_MARKS = (_COMMENTS.encode(), b'""', b'"_')


def may_need_mending(text: bytes) -> bool:
    """Whether a JSON text has anything that `mend` looks for."""
    return any(mark in text for mark in _MARKS)


def mend(resource: Resource) -> tuple[Resource, list[str]]:
    """A copy that R4 can hold, and what was changed: nothing but for the three above."""
    notes: Counter[str] = Counter()
    mended = _object(resource, notes)
    return mended, [
        f"{what} ({times} times)" if times > 1 else what for what, times in notes.items()
    ]


def _mended(value: Any, notes: Counter[str]) -> Any:
    """The value, or None where nothing is left of it."""
    if isinstance(value, dict):
        return _object(value, notes) or (value if not value else None)
    if isinstance(value, list):
        items = [_mended(each, notes) for each in value]
        return items if items == value or any(each is not None for each in items) else None
    return value


def _object(value: Resource, notes: Counter[str]) -> Resource:
    made: Resource = {}
    for name, item in value.items():
        if name == _COMMENTS:
            notes[f"left out {_COMMENTS}, which R4 does not have"] += 1
        elif item == "":
            notes[f"left out {name}, which was empty"] += 1
        else:
            mended = _mended(item, notes)
            if mended is not None or item is None:
                made[name] = mended
    for name in [each for each in made if each.startswith("_")]:
        values, extensions = made.get(name[1:]), made[name]
        if isinstance(values, list) and isinstance(extensions, list):
            missing = len(values) - len(extensions)
            if missing > 0:
                made[name] = extensions + [None] * missing
                notes[f"completed {name}, which was shorter than {name[1:]}"] += 1
    return made
