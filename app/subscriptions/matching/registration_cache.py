"""Registrations by the hundred thousand: one short string each, opened when an event concerns it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from app.settings import Settings
from app.subscriptions.matching import compact_registration
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.matching.registration import Registration, Status
from app.subscriptions.topics.topics import Catalogue

_OPEN_AT_MOST = 4096


class Shelf:
    """Registrations by id; a version alone stands for one that is deleted or not understood."""

    def __init__(self, settings: Settings, catalogue: Callable[[], Catalogue]) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._kept: dict[str, int | tuple[int, Status, str]] = {}
        self._open: OrderedDict[str, Registration] = OrderedDict()

    def __len__(self) -> int:
        return sum(isinstance(kept, tuple) for kept in self._kept.values())

    def version(self, subscription: str) -> int:
        """The version known, 0 for none."""
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
        read = compact_registration.decode(text)
        if read is None:
            return None
        found = compact_registration.registration(
            (subscription, version, status), read, self._catalogue()
        )
        if found is not None:
            self._open[subscription] = found
            if len(self._open) > _OPEN_AT_MOST:
                self._open.popitem(last=False)
        return found

    def criteria(self, subscription: str) -> Criteria | None:
        """What it listens for, also where its topic has gone."""
        found = self.get(subscription)
        if found is not None:
            return found.criteria
        kept = self._kept.get(subscription)
        read = compact_registration.decode(kept[2]) if isinstance(kept, tuple) else None
        return None if read is None else read.criteria

    def put(self, registration: Registration) -> None:
        text = compact_registration.encode(registration, self._settings)
        self.put_text((registration.id, registration.version, registration.status), text)

    def put_text(self, key: tuple[str, int, Status], text: str) -> None:
        """Keep what `watch.encode` wrote."""
        subscription, version, status = key
        self._kept[subscription] = (version, status, text)
        self._open.pop(subscription, None)

    def put_away(self, subscription: str, version: int) -> None:
        """Remember the version only."""
        self._kept[subscription] = version
        self._open.pop(subscription, None)

    def close(self) -> None:
        """Open all anew when asked for: the catalogue is another."""
        self._open.clear()
