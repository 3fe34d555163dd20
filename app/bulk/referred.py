"""Whom and what the resources of a Group's members refer to, in nobody's compartment and still part of the record.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#endpoint---group-of-patients lets a server add resources that help to
interpret those of the patients. They come where `_type` names them. What the caller may not see refers to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime

from app.bulk.cohort import Cohort
from app.bulk.export_request import types_at
from app.bulk.reading import Source
from app.records.reader import Reader


async def referred_to(
    store: Reader, whose: Cohort, at: datetime, types: Sequence[str]
) -> Mapping[str, Mapping[str, int]]:
    """The ids of these types that the cohort's resources refer to at a time, each with the first part that does.

    However long ago a resource was changed, what it refers to belongs to it; `_since` is about what is exported.
    """
    found: dict[str, dict[str, int]] = {each: {} for each in types}
    reference = _literal(types, whose.scope.base_url)
    ever = replace(whose, parts=[replace(part, since=None) for part in whose.parts])
    stored = set(await store.types())
    for kind in (each for each in types_at(whose.asked.level) if each in stored):
        source = Source(store, ever, kind, (), at)
        for number in range(len(ever.parts)):
            async with aclosing(source.windows(number, "")) as windows:
                async for window, _ in windows:
                    for each in window:
                        for name, id_ in reference.findall(each.text):
                            found[name][id_] = min(number, found[name].get(id_, number))
    return found


def _literal(types: Sequence[str], base_url: str) -> re.Pattern[str]:
    """A reference as a stored text has it. Quotes inside of values are escaped, so nothing else looks like one."""
    base = re.escape(f"{base_url}/")
    names = "|".join(types)
    return re.compile(
        rf'"reference":"(?:{base})?({names})/([A-Za-z0-9\-.]{{1,64}})(?:/_history/[0-9]+)?"'
    )
