"""What web pages may ask for: a browser is on the network of its user, and lets any page send requests from there.

With authorization a page has no token. Without it, a server is reached by its own names alone, so that no name of a
page's own leads to it (DNS rebinding), and pages from elsewhere get nothing but a link to it followed. Browsers say
where a page is from, other programs say nothing.

https://fetch.spec.whatwg.org/#origin-header and https://www.w3.org/TR/fetch-metadata/
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from app.errors import Forbidden
from app.network.egress_policy import is_loopback_host
from app.settings import Settings

Headers = Iterable[tuple[bytes, bytes]]

_ANY_ADDRESS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - what is listened on is no name
_READ = frozenset({b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"})
_ELSEWHERE = frozenset({b"cross-site", b"same-site"})  # another port is the same site
_SAFE = frozenset({"GET", "HEAD"})
_FOREIGN = "Pages from elsewhere may not ask this server: CARERELAY_CORS_ORIGINS"


class WebPages:
    """The rules of one server."""

    def __init__(self, settings: Settings) -> None:
        self._is_open = settings.auth != "smart"
        own = urlsplit(settings.base_url)
        self._address = own.netloc.lower()
        names = {own.hostname or "", *_listed(settings.hosts)}
        if settings.host not in _ANY_ADDRESS:
            names.add(settings.host.lower())
        self._names = frozenset(names - {""})
        self._pages = frozenset(_listed(settings.cors_origins))
        self._is_called = lru_cache(maxsize=256)(self._judge)

    def check(self, method: str, headers: Headers) -> None:
        """Raises Forbidden for a request to a server without authorization that is not to be answered."""
        if not self._is_open:
            return
        said = _said(headers)
        self._check_name(said.get(b"host", b""))
        if b"origin" in said:
            is_own = self._is_own(said)
        else:
            is_own = said.get(b"sec-fetch-site") not in _ELSEWHERE or _follows_link(method, said)
        if not is_own:
            raise Forbidden(_FOREIGN)

    def check_socket(self, headers: Headers) -> None:
        """The same for the handshake of a websocket; with authorization, too, pages from elsewhere open none."""
        said = _said(headers)
        if self._is_open:
            self._check_name(said.get(b"host", b""))
        if b"origin" in said and not self._is_own(said):
            raise Forbidden(_FOREIGN)

    def _check_name(self, host: bytes) -> None:
        if not self._is_called(host):
            raise Forbidden("The server is not called so: CARERELAY_HOSTS lists its names")

    def _judge(self, host: bytes) -> bool:
        """Whether a Host header has one of the server's names, at whatever port."""
        text = _text(host)
        end = text.find("]") + 1 if text.startswith("[") else text.find(":")
        name = (text[:end] if end > 0 else text).strip("[]").rstrip(".")
        return is_loopback_host(name) or name in self._names

    def _is_own(self, said: dict[bytes, bytes]) -> bool:
        """Whether an origin is the server's own, or one that the settings allow."""
        origin = _text(said[b"origin"])
        address = origin.partition("://")[2]
        is_same = address != "" and address in (_text(said.get(b"host", b"")), self._address)
        return is_same or origin in self._pages or "*" in self._pages


def _said(headers: Headers) -> dict[bytes, bytes]:
    """The headers that count here, each once. Raises Forbidden where one comes twice, or cannot be read."""
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _READ:
            if name in said:
                raise Forbidden(f"The header {name.decode()} comes more than once")
            said[name] = value
    return said


def _follows_link(method: str, said: dict[bytes, bytes]) -> bool:
    """Whether somebody followed a link: the answer is shown instead of the page, which never sees it."""
    is_shown = (
        said.get(b"sec-fetch-mode") == b"navigate" and said.get(b"sec-fetch-dest") == b"document"
    )
    return is_shown and method in _SAFE


def _text(value: bytes) -> str:
    return value.decode("latin-1").lower()


def _listed(text: str) -> list[str]:
    return [entry.strip().rstrip("/").lower() for entry in text.split(",") if entry.strip()]
