"""What every interaction is given: the server it runs in and the caller it acts for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from app.authentication.caller import Caller
from app.authentication.scopes import Action
from app.authorization.access import Access
from app.authorization.restricted_store import View
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store

if TYPE_CHECKING:
    from app.audit.log import AuditLog
    from app.authentication.access_tokens import Authority
    from app.automation.engine import Hub
    from app.bulk.exports import Exports
    from app.runtime.clock import Clock
    from app.store.reindexing import Reindexing
    from app.subscriptions.sending.worker import Worker


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
    exports: Exports
    started: datetime
    # None where nothing is put on record.
    audit: AuditLog | None = None
    # Who may come in; None while authorization is off.
    authority: Authority | None = None


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
    # The caller waits for no result (Prefer: respond-async).
    respond_async: bool = False

    @property
    def settings(self) -> Settings:
        return self.server.settings

    @property
    def access(self) -> Access | None:
        """What limits the caller; None where nothing does."""
        return self.server.worker.accesses.of(self.caller)

    @property
    def store(self) -> Store:
        """The store as the caller may see it."""
        access = self.access
        return self.server.store if access is None else View(self.server.store, access)

    def require(self, resource_type: str, *actions: Action) -> None:
        """Raises Forbidden where the caller lacks one of the rights (c, r, u, d, s) to a type."""
        access = self.access
        if access is not None:
            for action in actions:
                access.require(resource_type, action)
