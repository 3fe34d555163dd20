"""Where a page begins: after the row with these sort values, the last of them its id.

A search that reads at one cluster time has that time, too. The link to a page carries its position (page_links.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from bson import Timestamp
from bson.decimal128 import Decimal128

from app.errors import Gone

Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """The sort values that a page begins after, and the cluster time to read at."""

    values: Values
    snapshot: Timestamp | None = None

    def of(self, length: int) -> Values:
        """The values, which are as many as a result has sort keys. Raises Gone for those of another result."""
        if len(self.values) != length or not isinstance(self.values[-1], str):
            raise expired()
        return self.values


def plain(values: Values) -> list[Any]:
    """Sort values as JSON has them."""
    return [_plain(value) for value in values]


def values_of(plain_values: Sequence[Any]) -> Values:
    """The values that `plain` was given. Raises ValueError."""
    try:
        return tuple(_value(each) for each in plain_values)
    except InvalidOperation:
        raise ValueError from None


def expired() -> Gone:
    """The answer to a page link past its time, and to one that the server does not know, or not for this caller."""
    return Gone(
        "The page link has expired or is none of yours; start again from the first page",
        code="expired",
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
