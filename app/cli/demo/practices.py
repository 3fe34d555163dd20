"""The practices of `carerelay run`: endpoints in threads of this process, and the notices that came to them."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from app.cli.demo.server import HOST, PATIENCE_SECONDS, STOP_SECONDS, DemoError
from app.cli.receiver import Received, Receiver, receiver_server
from app.cli.serve import address, bind
from app.fhir import instants
from app.fhir.json import Resource


@dataclass(frozen=True, slots=True)
class ReceivedNotice:
    """One event, as a practice was told of it."""

    topic: str
    trigger: str
    focus: str
    milliseconds: float
    text: str

    @property
    def kind(self) -> tuple[str, str]:
        return self.topic, self.trigger

    def __str__(self) -> str:
        return f"{self.topic.replace('-', ' ')} {self.trigger}, {self.focus}"


@dataclass(slots=True)
class Practice:
    """The stand-in for an endpoint, or for several that are told apart by their path."""

    url: str
    _came: queue.SimpleQueue[Received] = field(default_factory=queue.SimpleQueue)

    def next(self, expected: Iterable[tuple[str, str]]) -> list[ReceivedNotice]:
        """The notices of these topics and triggers. Raises DemoError where one is missing or another comes."""
        missing, found = Counter(expected), list[ReceivedNotice]()
        give_up = time.monotonic() + PATIENCE_SECONDS
        while missing:
            try:
                came = self._came.get(timeout=max(0.0, give_up - time.monotonic()))
            except queue.Empty:
                names = ", ".join(" ".join(kind) for kind in missing)
                raise DemoError(f"Not within {PATIENCE_SECONDS:.0f} s: {names}.") from None
            for notice in notices(came):
                if not missing[notice.kind]:
                    raise DemoError(f"An unexpected notice: {notice}")
                missing -= Counter([notice.kind])
                found.append(notice)
        return found

    def expect_nothing_more(self) -> None:
        """Raises DemoError where a notice has come that nobody waited for."""
        while not self._came.empty():
            for notice in notices(self._came.get()):
                raise DemoError(f"An unexpected notice at {self.url}: {notice}")

    def take(self, came: Received) -> None:
        self._came.put(came)


@contextmanager
def practice() -> Iterator[Practice]:
    """A receiver on a free port, in a thread of this process."""
    with bind(HOST, 0) as listener:
        stand_in = Practice(address(HOST, listener.getsockname()[1]))
        server = receiver_server(Receiver(on_receipt=stand_in.take))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield stand_in
        server.should_exit = True
        thread.join(STOP_SECONDS)


def notices(came: Received) -> list[ReceivedNotice]:
    """The events of a notification Bundle with whole resources; a handshake has none."""
    entries = (came.resource or {})["entry"]
    carried = {entry["fullUrl"]: entry.get("resource", {}) for entry in entries}
    status = entries[0]["resource"]["parameter"]
    [topic] = [each["valueCanonical"] for each in status if each["name"] == "topic"]
    events = [each["part"] for each in status if each["name"] == "notification-event"]
    texts = [
        part["contentString"]
        for resource in carried.values()
        if resource.get("resourceType") == "Communication"
        for part in resource["payload"]
        if "contentString" in part
    ]
    found = []
    for parts in events:
        event = {part["name"]: part for part in parts}
        focus = event["focus"]["valueReference"]["reference"]
        found.append(
            ReceivedNotice(
                topic=topic.rpartition("/")[2],
                trigger=event["trigger"]["valueCoding"]["code"],
                focus="/".join(focus.split("/")[-2:]),
                milliseconds=_milliseconds(carried[focus], came.received_at),
                text="\n".join(texts),
            )
        )
    return found


def _milliseconds(focus: Resource, received_at: datetime) -> float:
    """From the version's lastUpdated, which is set as it is committed, to the receipt."""
    committed = instants.moment(focus["meta"]["lastUpdated"])
    return (received_at - committed).total_seconds() * 1000
