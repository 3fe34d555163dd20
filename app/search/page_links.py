"""Links to the pages of a result: short opaque tokens that say what was asked, how it is shown, where a page begins.

    kept_searches   {_id: digest of client, place and parameters, client, asked: the parameters, sealed, until}

A token is sealed with the server's secret key and bound to the client that asked, to the place and to the database: to
everybody else it is no token. It gives no rights. What it stands for is asked anew, with the rights, consents and
labels of the moment. What a client kept out of URLs by a POST does not come back in the link that it follows.

A search too long for a URL is kept here until its links expire, by the database's clock: once, however many pages it
has. Of each client so many are kept; beyond that those go that were used longest ago. docs/decisions/0033-page-links.md
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from bson import Timestamp
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from app.errors import BadRequest
from app.fhir import shape
from app.runtime import collections
from app.runtime.mongo import Collection, Mongo
from app.runtime.secrets import Secrets, SecretsError
from app.search import cursor
from app.search.bundle_writer import CURSOR, FORM, Link, Quoting, self_link
from app.search.cursor import Position
from app.settings import Settings

COLLECTION = "kept_searches"
Pairs = Sequence[tuple[str, str]]

# As long as a token may be with all that was asked in it, in characters; and what of a URL its place may take.
_SHORT = 1_000
_PLACE = 256
# How much of the shape of an answer a link says beside its token.
_SAID = 200
_DIGEST = 16
# What the client may change from page to page: it changes how much is shown at once and how it is written, not what.
_CHANGEABLE = shape.LAYOUT | {"_count", "_total", "_explain"}
_encoder = msgspec.msgpack.Encoder()
_asked = msgspec.msgpack.Decoder(list[tuple[str, str]])


class _Token(msgspec.Struct, array_like=True):
    """`asked` are the parameters, or the id of the row that has them; `made` is in seconds since 1970."""

    made: int
    values: list[str | dict[str, str] | None]
    snapshot: tuple[int, int] | None
    asked: list[tuple[str, str]] | bytes


_tokens = msgspec.msgpack.Decoder(_Token)


class PageLinks:
    """The page links of all processes on a database."""

    def __init__(self, mongo: Mongo, secrets: Secrets, settings: Settings) -> None:
        self._mongo = mongo
        self._seal = secrets.token_seal("page links")
        self._secrets = secrets
        self._lifetime = settings.page_link_lifetime
        self._most = settings.max_kept_searches
        self._longest = min(_SHORT, settings.max_url_bytes - _PLACE - _SAID)

    async def prepare(self) -> None:
        await collections.ensure(
            self._mongo,
            COLLECTION,
            [
                IndexModel([("until", ASCENDING)], expireAfterSeconds=0),
                IndexModel([("client", ASCENDING), ("until", ASCENDING)], name="client"),
            ],
        )

    async def walk(self, client: str, base_url: str, place: str, parameters: Pairs) -> Walk:
        """The way of a client through the result of what it asks at a place below the base.

        Raises Gone for a link that is none of its, or not any more, and BadRequest for parameters beside a link that do
        not go with it.
        """
        tokens = [text for name, text in parameters if name == CURSOR]
        if not tokens:
            return Walk(self, client, base_url, place, parameters)
        if len(tokens) > 1:
            raise _refused("Parameter '_cursor' may be given only once", "invalid")
        asked, begin = await self._open(tokens[0], client, place)
        beside = [pair for pair in parameters if pair[0] != CURSOR]
        return Walk(self, client, base_url, place, _joined(asked, beside), begin, tokens[0])

    async def token(self, client: str, place: str, asked: Pairs, begin: Position) -> str:
        """The token of the page that begins there."""
        time = begin.snapshot
        content = _Token(
            int(self._now()),
            cursor.plain(begin.values),
            (time.time, time.inc) if time is not None else None,
            [(name, text) for name, text in asked],
        )
        token = self._sealed(_encoder.encode(content), client, place)
        if len(token) > self._longest:
            content.asked = await self._keep(client, place, asked)
            token = self._sealed(_encoder.encode(content), client, place)
        return token

    async def _open(self, token: str, client: str, place: str) -> tuple[Pairs, Position]:
        try:
            sealed = base64.b64decode(
                token + "=" * (-len(token) % 4), altchars=b"-_", validate=True
            )
            content = _tokens.decode(self._seal.open(sealed, *self._bound_to(client, place)))
            values = cursor.values_of(content.values)
        except (binascii.Error, SecretsError, ValueError, msgspec.MsgspecError):
            raise cursor.expired() from None
        if self._now() - content.made > self._lifetime:
            raise cursor.expired()
        begin = Position(values, Timestamp(*content.snapshot) if content.snapshot else None)
        if isinstance(content.asked, bytes):
            return await self._kept(content.asked, client, place), begin
        return content.asked, begin

    def _sealed(self, content: bytes, client: str, place: str) -> str:
        sealed = self._seal.seal(content, *self._bound_to(client, place))
        return base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def _bound_to(self, client: str, place: str) -> tuple[str, str, str]:
        return self._mongo.db.name, client, place

    def _now(self) -> float:
        return self._mongo.now().timestamp()

    # What is too long for a URL

    @property
    def _rows(self) -> Collection:
        return self._mongo.collection(COLLECTION)

    async def _keep(self, client: str, place: str, asked: Pairs) -> bytes:
        """Keep what was asked for as long as a link that is made now; returns the row's id."""
        content = _encoder.encode(asked)
        bound_to = self._bound_to(client, place)
        id_ = self._secrets.digest(content, *bound_to)[:_DIGEST]
        sealed = self._seal.seal(content, *bound_to)
        until = {"$add": ["$$NOW", int(self._lifetime * 1000)]}
        row = {"client": {"$literal": client}, "asked": {"$literal": sealed}, "until": until}
        try:
            found = await self._rows.update_one({"_id": id_}, [{"$set": row}], upsert=True)
        except DuplicateKeyError:  # it was put there this very moment
            return id_
        if found.upserted_id is not None:
            await self._drop_oldest(client)
        return id_

    async def _drop_oldest(self, client: str) -> None:
        newest_first = self._rows.find({"client": client}, {"_id": 1}).sort("until", DESCENDING)
        beyond = await newest_first.skip(self._most).to_list(None)
        if beyond:
            await self._rows.delete_many({"_id": {"$in": [row["_id"] for row in beyond]}})

    async def _kept(self, id_: bytes, client: str, place: str) -> Pairs:
        row = await self._rows.find_one({"_id": id_})
        if row is None:
            raise cursor.expired()
        try:
            return _asked.decode(self._seal.open(row["asked"], *self._bound_to(client, place)))
        except SecretsError:
            raise cursor.expired() from None


@dataclass(frozen=True, slots=True)
class Walk:
    """A client's way through the pages of one result.

    `asked` are the parameters, on each page those of the first; `begin` is where this page begins, None on the first,
    and `token` what led here.
    """

    owner: PageLinks
    client: str
    base_url: str
    place: str
    asked: Pairs
    begin: Position | None = None
    token: str | None = None

    async def links(
        self, used: Pairs, following: Position | None, quoting: Quoting = FORM
    ) -> list[Link]:
        """The links of this page: to itself, by the parameters that took effect, and to the one that follows."""
        url = f"{self.base_url}/{self.place}" if self.place else self.base_url
        shown = used if self.token is None else [*used, (CURSOR, self.token)]
        found = [self_link(url, shown, quoting)]
        if following is not None:
            token = await self.owner.token(self.client, self.place, used, following)
            query = quoting.query([*_said(used), (CURSOR, token)])
            found.append({"relation": "next", "url": f"{url}?{query}"})
        return found


def _said(used: Pairs) -> Pairs:
    """What a link says beside its token, unless that is long: what names nobody.

    Some clients add a size of their own to a link that does not say one.
    """
    found = [pair for pair in used if pair[0] in shape.NAMES or pair[0] == "_count"]
    return found if sum(len(text) for _, text in found) <= _SAID else []


def _joined(asked: Pairs, beside: Pairs) -> Pairs:
    """What a link stands for, with what was changed beside it. Raises BadRequest for what does not go with it.

    A page's link to itself spells what was asked beside its token, and some clients add `_format` to every URL.
    """
    joined, known = list(asked), set(asked)
    for name, text in beside:
        if name in _CHANGEABLE:
            joined = [pair for pair in joined if pair[0] != name]
            joined.append((name, text))
        elif (name, text) not in known:
            raise _refused(
                "A page link has all that was asked in it, and cannot be asked something else; "
                "start again from the first page"
            )
    return joined


def _refused(diagnostics: str, code: str = "value") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{CURSOR}")
