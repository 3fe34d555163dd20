"""A worker beside a store, without the rest of a server."""

from __future__ import annotations

from typing import Any

from app.authorization.access import Accesses
from app.consent.directives import ConsentDirectives
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.sending.worker import Worker


def make_worker(settings: Settings, mongo: Mongo, store: Store, **options: Any) -> Worker:
    """Periods of consents and rights are judged by the database's clock."""
    directives = ConsentDirectives(store, settings.base_url.rstrip("/"), mongo.now)
    accesses = Accesses(store, directives, settings, mongo.now)
    return Worker(settings, mongo, store, accesses=accesses, directives=directives, **options)
