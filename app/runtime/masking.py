"""Secrets in headers, as everybody but their writer sees them."""

from __future__ import annotations

MASK = "********"


def mask(header: str) -> str:
    """`Authorization: ********` for `Authorization: Bearer x`."""
    return f"{header.partition(':')[0]}: {MASK}"
