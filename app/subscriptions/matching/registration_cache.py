"""A cache for a hundred thousand registrations: one short string each, decoded when an event concerns it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache

import msgspec

from app import __version__
from app.settings import Settings
from app.subscriptions.matching.channel_terms import ChannelTerms
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.matching.registration import Registration, Status
from app.subscriptions.topics.topics import Catalogue, Topic

_OPEN_AT_MOST = 4096


class Shelf:
    """Registrations by id; of one that is deleted or not supported only the version is kept."""

    def __init__(self, settings: Settings, catalogue: Callable[[], Catalogue]) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._kept: dict[str, int | tuple[int, Status, str]] = {}
        # Not a cachetools cache: an event asks for each Subscription it concerns, and that takes twice as long.
        self._open: OrderedDict[str, Registration] = OrderedDict()

    def __len__(self) -> int:
        return sum(isinstance(kept, tuple) for kept in self._kept.values())

    def ids(self) -> list[str]:
        """The Subscriptions that are kept with their registration."""
        return [each for each, kept in self._kept.items() if isinstance(kept, tuple)]

    def version(self, subscription: str) -> int:
        """The known version of a Subscription, 0 for none."""
        kept = self._kept.get(subscription, 0)
        return kept if isinstance(kept, int) else kept[0]

    def get(self, subscription: str) -> Registration | None:
        found = self._open.get(subscription)
        if found is not None:
            return found
        kept = self._kept.get(subscription)
        if kept is None or isinstance(kept, int):
            return None
        version, status, text = kept
        read = decode(text)
        if read is None:
            return None
        found = registration((subscription, version, status), read, self._catalogue())
        if found is not None:
            self._open[subscription] = found
            if len(self._open) > _OPEN_AT_MOST:
                self._open.popitem(last=False)
        return found

    def criteria(self, subscription: str) -> Criteria | None:
        """The criteria of a Subscription, also where its topic is gone."""
        found = self.get(subscription)
        if found is not None:
            return found.criteria
        kept = self._kept.get(subscription)
        read = decode(kept[2]) if isinstance(kept, tuple) else None
        return None if read is None else read.criteria

    def put(self, registration: Registration) -> None:
        text = encode(registration, self._settings)
        self.put_text((registration.id, registration.version, registration.status), text)

    def put_text(self, key: tuple[str, int, Status], text: str) -> None:
        """Keep a text that `encode` wrote."""
        subscription, version, status = key
        self._kept[subscription] = (version, status, text)
        self._open.pop(subscription, None)

    def put_away(self, subscription: str, version: int) -> None:
        """Keep the version only."""
        self._kept[subscription] = version
        self._open.pop(subscription, None)

    def close(self) -> None:
        """Drop the decoded registrations: the catalogue has changed."""
        self._open.clear()


# The compact form of a Subscription, which the registry keeps in memory and beside its document.
#
#     Subscription.private.watch   JSON: by, topic, end, criteria, channel, kept_for, kept_at
#
# So 100,000 of them are read in a second or two, and each is one string until an event concerns it. It is derived from
# the resource, and only used while `by` is the digest of the rules it was derived by: this program, the settings and
# the topic as they are now. Otherwise the resource itself is read again.

# Increased whenever the same Subscription compiles to something else.
_FORMAT = 3


class Watch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`topic` is the canonical that a topic-based Subscription names."""

    by: str
    topic: str | None
    end: datetime | None
    criteria: Criteria
    channel: ChannelTerms
    kept_for: str | None = None
    kept_at: str | None = None


_decoder = msgspec.json.Decoder(Watch)
_encoder = msgspec.json.Encoder()


def encode(registration: Registration, settings: Settings) -> str:
    """The compact form of a registration, without its id, version and status."""
    topic = registration.topic
    watch = Watch(
        rules(topic, settings),
        topic.canonical if topic else None,
        registration.end,
        registration.criteria,
        registration.channel,
        registration.kept_for,
        registration.kept_at,
    )
    return _encoder.encode(watch).decode()


def decode(text: str) -> Watch | None:
    """The decoded text; None where another version of this program has written another form."""
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return None


def is_current(watch: Watch, catalogue: Catalogue, settings: Settings) -> bool:
    """Whether the rules are the same as when it was written."""
    topic = catalogue.find(watch.topic) if watch.topic is not None else None
    if watch.topic is not None and topic is None:
        return False
    return watch.by == rules(topic, settings)


def registration(
    key: tuple[str, int, Status], watch: Watch, catalogue: Catalogue
) -> Registration | None:
    """The registration of an id, version and status; None where its topic is gone."""
    topic = catalogue.find(watch.topic) if watch.topic is not None else None
    if watch.topic is not None and topic is None:
        return None
    kept = (watch.kept_for, watch.kept_at)
    return Registration(*key, watch.end, topic, watch.criteria, watch.channel, *kept)


def rules(topic: Topic | None, settings: Settings) -> str:
    """A digest of the rules that a Subscription's compact form depends on."""
    return _digest(topic.digest if topic else "", settings.base_url, settings.delivery_timeout)


@lru_cache(maxsize=1024)
def _digest(topic: str, base_url: str, timeout: float) -> str:
    channel = " ".join(ChannelTerms.__slots__)
    text = f"{_FORMAT} {__version__} {topic} {base_url} {timeout} {channel}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
