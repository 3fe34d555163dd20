"""The signature by which an endpoint knows that a notice is this server's: the header `CareRelay-Signature`."""

from __future__ import annotations

import hashlib
import hmac

SIGNATURE_HEADER = "CareRelay-Signature"


def signature(secret: str, notice_id: str, at: int, body: bytes) -> str:
    """The value of the signature header: HMAC-SHA256 over `<at>.<notice id>.<body>`, `at` in Unix seconds."""
    signed = f"{at}.{notice_id}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"
