"""Secrets in headers, as everybody but their writer sees them."""

from __future__ import annotations

import re

MASK = "********"
# https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?=:)")


def mask(header: str) -> str:
    """`Authorization: ********` for `Authorization: Bearer x`; all is masked of what names no header."""
    name = _NAME.match(header)
    return f"{name.group()}: {MASK}" if name else MASK
