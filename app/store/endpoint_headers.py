"""The step that seals the headers of Endpoints, which servers up to format 2 stored and showed as they were sent.

Endpoint   text: `header` masked; private.headers: the values, sealed; terms: without the words of the values
versions   text: `header` masked, in all versions of Endpoints
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec

from app.runtime import secrets
from app.runtime.masking import mask
from app.runtime.mongo import Collection, Document
from app.settings import Settings

_WITH_HEADER = {"text": {"$regex": '"header":'}}
_WORD = re.compile(r"[^\W_]{2,}")
_LONGEST_WORD = 32

_decoder = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)
_encoder = msgspec.json.Encoder(decimal_format="number")


async def seal(current: Collection, versions: Collection, settings: Settings) -> None:
    """Seal those of current Endpoints, mask those of all versions. Raises SecretsError without a key to use."""
    async for row, headers, text in _in_the_clear(current, {}):
        values = [header for header in headers if header]
        change: Document = {
            "$set": {
                "text": text,
                "private.headers": secrets.of_settings(settings).seal_all(values),
            },
            "$pull": {"terms": {"$in": _words_only_in(values, text)}},
        }
        await current.update_one({"_id": row["_id"], "v": row["v"]}, change)
    async for row, _, text in _in_the_clear(versions, {"_id.t": "Endpoint"}):
        await versions.update_one({"_id": row["_id"]}, {"$set": {"text": text}})


async def _in_the_clear(
    rows: Collection, which: Document
) -> AsyncIterator[tuple[Document, list[str | None], str]]:
    """Rows whose headers are not masked, those headers, and the text with masks in their place."""
    async for row in rows.find({**which, **_WITH_HEADER}, {"text": 1, "v": 1}):
        resource = _decoder.decode(row["text"])
        headers = resource.get("header")
        if headers is None:  # another `header`, in something that is contained
            continue
        masked = [header and mask(header) for header in headers]
        if masked != headers:
            yield row, headers, _encoder.encode({**resource, "header": masked}).decode()


def _words_only_in(values: list[str], text: str) -> list[str]:
    """The terms by which the words of the values are found, but for words that the rest has too."""
    rest = set(_WORD.findall(text.casefold()))
    words = {word for value in values for word in _WORD.findall(value.casefold())}
    return [f"_content={word[:_LONGEST_WORD]}" for word in sorted(words - rest)]
