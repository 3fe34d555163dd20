"""What every answer tells a browser: guess no types, keep no copies, load nothing, name us to nobody.

https://owasp.org/www-project-secure-headers/ and https://www.rfc-editor.org/rfc/rfc6797 (only over TLS)
"""

from __future__ import annotations

from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]

_CACHE = (b"cache-control", b"no-store")
_CONTENT = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_OVER_TLS = ((b"strict-transport-security", b"max-age=31536000"),)
_FINER = frozenset({_CACHE[0], _CONTENT[0]})

_PLAIN = (*_ALWAYS, _CACHE, _CONTENT)
_SECURE = (*_PLAIN, *_OVER_TLS)


def secured(headers: Headers, *, tls: bool) -> list[tuple[bytes, bytes]]:
    """An answer's headers with these; its own Cache-Control and Content-Security-Policy stay (pages have theirs)."""
    added = _SECURE if tls else _PLAIN
    own = _FINER.intersection([name for name, _ in headers])
    if own:
        return [*headers, *(header for header in added if header[0] not in own)]
    return [*headers, *added]
