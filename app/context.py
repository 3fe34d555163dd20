"""What every interaction is given: the server it runs in and the caller it acts for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from app.mongo import Mongo
from app.security.caller import Caller
from app.settings import Settings
from app.store import Store

if TYPE_CHECKING:
    from app.coordination.clock import Clock
    from app.coordination.hub import Hub
    from app.reindexing import Reindexing
    from app.subscriptions.worker import Worker


@dataclass(slots=True)
class Server:
    """The parts that live as long as the process; made in the application's lifespan."""

    settings: Settings
    mongo: Mongo
    store: Store
    worker: Worker
    reindexing: Reindexing
    clock: Clock
    hub: Hub
    started: datetime


@dataclass(frozen=True, slots=True)
class Context:
    """One request's surroundings. `base_url` is the FHIR base as the client sees it, without a trailing slash."""

    server: Server
    caller: Caller
    base_url: str
    handling: Literal["strict", "lenient"] = "strict"
    # What the same commit is about to create or update as (type, id), to delete, and to write at all, as references.
    promised: frozenset[tuple[str, str]] = frozenset()
    departing: frozenset[str] = frozenset()
    rewritten: frozenset[str] = frozenset()
    # The writer has seen the version that it changes: by a patch, or by naming it.
    edits: bool = False

    @property
    def settings(self) -> Settings:
        return self.server.settings

    @property
    def store(self) -> Store:
        return self.server.store
