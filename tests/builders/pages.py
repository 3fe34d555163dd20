"""Pages of a result without a server: the walk through them, as interactions have it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

from cryptography.fernet import Fernet

from app.runtime.secrets import Secrets
from app.search.page_links import PageLinks, Pairs, Walk
from app.settings import Settings
from app.store.store import Store
from tests.conftest import BASE

SECRETS = Secrets([Fernet.generate_key().decode()])


async def walk(store: Store, place: str, asked: Pairs | str, client: str = "anonymous") -> Walk:
    """The way through what is asked at a place, by pairs or a query."""
    links = PageLinks(store._mongo, SECRETS, Settings())
    pairs = parse_qsl(asked, keep_blank_values=True) if isinstance(asked, str) else asked
    return await links.walk(client, BASE, place, pairs)


def link(bundle: dict[str, Any], relation: str) -> str | None:
    return next((each["url"] for each in bundle["link"] if each["relation"] == relation), None)


def next_query(bundle: dict[str, Any]) -> str | None:
    """The query of the link to the page that follows, if there is one."""
    url = link(bundle, "next")
    return None if url is None else urlsplit(url).query
