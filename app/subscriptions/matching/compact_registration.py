"""A Subscription in few words: what the registry keeps of it, in memory and beside its document.

    Subscription.private.watch   JSON: by, topic, end, criteria, channel

So 100,000 of them are read in a second or two, and each is one string until an event concerns it. It is derived from
the resource, and only believed while `by` names the rules it was derived by: this program, the settings and the topic
as they are now. Otherwise the resource itself is read again.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import lru_cache

import msgspec

from app import __version__
from app.settings import Settings
from app.subscriptions.matching.channel_terms import ChannelTerms
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.matching.registration import Registration, Status
from app.subscriptions.topics.topics import Catalogue, Topic

# To be counted up whenever the same Subscription compiles to something else.
_FORMAT = 1


class Watch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """`topic` is the URL of a topic-based Subscription's topic."""

    by: str
    topic: str | None
    end: datetime | None
    criteria: Criteria
    channel: ChannelTerms


_decoder = msgspec.json.Decoder(Watch)
_encoder = msgspec.json.Encoder()


def encode(registration: Registration, settings: Settings) -> str:
    """A registration but for its id, version and status."""
    topic = registration.topic
    watch = Watch(
        rules(topic, settings),
        topic.url if topic else None,
        registration.end,
        registration.criteria,
        registration.channel,
    )
    return _encoder.encode(watch).decode()


def decode(text: str) -> Watch | None:
    """None where another version of this program has written something else."""
    try:
        return _decoder.decode(text)
    except msgspec.DecodeError:
        return None


def is_current(watch: Watch, catalogue: Catalogue, settings: Settings) -> bool:
    """Whether the same rules are in force as when it was written."""
    topic = catalogue.by_url.get(watch.topic) if watch.topic is not None else None
    if watch.topic is not None and topic is None:
        return False
    return watch.by == rules(topic, settings)


def registration(
    key: tuple[str, int, Status], watch: Watch, catalogue: Catalogue
) -> Registration | None:
    """The Subscription of an id, version and status; None where its topic has gone."""
    topic = catalogue.by_url.get(watch.topic) if watch.topic is not None else None
    if watch.topic is not None and topic is None:
        return None
    return Registration(*key, watch.end, topic, watch.criteria, watch.channel)


def rules(topic: Topic | None, settings: Settings) -> str:
    """What a Subscription's meaning depends on beside itself, as a digest."""
    return _digest(topic.digest if topic else "", settings.base_url, settings.delivery_timeout)


@lru_cache(maxsize=1024)
def _digest(topic: str, base_url: str, timeout: float) -> str:
    channel = " ".join(ChannelTerms.__slots__)
    text = f"{_FORMAT} {__version__} {topic} {base_url} {timeout} {channel}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]
