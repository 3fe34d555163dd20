"""Where a page begins: the sort values and the id of the last row before it, as an opaque, signed, expiring token.

A cursor belongs to one search: it carries a digest of the parameters it was made for, the time it was made, and for
searches that read at one cluster time that time. The key lies in the database, so any process takes the links of any.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from typing import Any

import msgspec
from bson import Timestamp
from bson.decimal128 import Decimal128

from app.errors import BadRequest, Gone
from app.search.search_state import current

Values = tuple[Any, ...]
LIFETIME = timedelta(hours=24)
_WITHOUT_EFFECT = frozenset({"_cursor", "_count", "_total", "_summary", "_elements", "_explain"})
_MAC = 16
_json = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Cursor:
    """What a token says: the sort values a page begins after, and the cluster time to read at."""

    values: Values
    snapshot: Timestamp | None = None


def fingerprint(resource_type: str, used: list[tuple[str, str]]) -> str:
    """The digest of what decides which rows are found and in which order."""
    relevant = sorted([pair for pair in used if pair[0] not in _WITHOUT_EFFECT])
    return sha256(repr((resource_type, relevant)).encode()).hexdigest()[:16]


def encode(values: Values, search: str, snapshot: Timestamp | None = None) -> str:
    """The token for the page after the row with these sort values, the last of them its id."""
    at = [snapshot.time, snapshot.inc] if snapshot is not None else None
    content = [search, [_plain(value) for value in values], int(current().seconds()), at]
    body = _json.encode(content)
    token = body + _sign(body)
    return base64.urlsafe_b64encode(token).decode().rstrip("=")


def read(token: str, search: str, length: int, lifetime: timedelta = LIFETIME) -> Cursor:
    """What a token says. Raises BadRequest where it is none of this search, Gone where its time has passed."""
    try:
        padded = token + "=" * (-len(token) % 4)
        whole = base64.b64decode(padded, altchars=b"-_", validate=True)
        body, mac = whole[:-_MAC], whole[-_MAC:]
        if not hmac.compare_digest(mac, _sign(body)):
            raise _invalid()
        made_for, values, made, at = json.loads(body)
        found = tuple(_value(each) for each in values)
    except (binascii.Error, ValueError, TypeError, KeyError, InvalidOperation):
        raise _invalid() from None
    if made_for != search or len(found) != length or not isinstance(found[-1], str):
        raise _invalid()
    if current().seconds() - made > lifetime.total_seconds():
        raise expired()
    return Cursor(found, Timestamp(*at) if at else None)


def decode(token: str, search: str, length: int) -> Values:
    """The sort values a page begins after; raises as `read` does."""
    return read(token, search, length).values


def expired() -> Gone:
    """The answer to a page link past its time."""
    return Gone(
        "The page link has expired; start the search again",
        code="expired",
        expression="http._cursor",
    )


def _sign(body: bytes) -> bytes:
    return hmac.digest(current().page_key, body, "sha256")[:_MAC]


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
