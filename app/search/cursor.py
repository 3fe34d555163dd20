"""Where a page begins: the sort values and the id of the last row before it, as an opaque token.

A cursor belongs to one search: it carries a digest of the parameters it was made for.
"""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Any

from bson.decimal128 import Decimal128

from app.errors import BadRequest

Values = tuple[Any, ...]
_WITHOUT_EFFECT = frozenset({"_cursor", "_count", "_total", "_summary", "_elements"})


def fingerprint(resource_type: str, used: list[tuple[str, str]]) -> str:
    """The digest of what decides which rows are found and in which order."""
    relevant = sorted(pair for pair in used if pair[0] not in _WITHOUT_EFFECT)
    text = json.dumps([resource_type, relevant])
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def encode(values: Values, search: str) -> str:
    """The token for the page after the row with these sort values, the last of them its id."""
    text = json.dumps([search, [_plain(value) for value in values]], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(token: str, search: str, length: int) -> Values:
    """The sort values a page begins after. Raises BadRequest where the token is not one of this search."""
    try:
        padded = token + "=" * (-len(token) % 4)
        made_for, values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        found = tuple(_value(each) for each in values)
    except (binascii.Error, ValueError, TypeError, KeyError, InvalidOperation):
        raise _invalid() from None
    if made_for != search or len(found) != length or not isinstance(found[-1], str):
        raise _invalid()
    return found


def _invalid() -> BadRequest:
    return BadRequest(
        "The value of '_cursor' is not a page of this search; follow the links of its Bundle",
        code="value",
        expression="http._cursor",
    )


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return {"t": value.isoformat()}
    if isinstance(value, Decimal128):
        return {"n": str(value)}
    return value


def _value(plain: Any) -> Any:
    match plain:
        case {"t": str(text)}:
            return datetime.fromisoformat(text)
        case {"n": str(text)}:
            return Decimal128(Decimal(text))
        case str() | None:
            return plain
    raise ValueError
