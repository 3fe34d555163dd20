"""The addresses for those who watch a server: whether it lives, whether it is ready, and what it counts.

    GET  /healthz   the process answers
    GET  /readyz    app/api/readiness.py; 503 where a check fails
    GET  /metrics   app/runtime/metrics.py, for who has the token for it and for administrators

None of them tells of anybody.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api import audited, exchange
from app.api.admin import operators
from app.api.measured import Kept
from app.api.readiness import Readiness
from app.automation import review_tasks
from app.context import Services
from app.errors import FhirError
from app.runtime import metrics
from app.runtime.clock import Clock
from app.runtime.exposition import Exposition, Measurement
from app.runtime.loops import Loop
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.ledger import open_rows
from app.subscriptions.sending.worker import Worker

# How long what the database says of its open rows is kept at least.
_KEPT = 5.0


class Measures:
    """The gauges: those of this process, and those of the database, which are the same whichever process is asked."""

    def __init__(
        self,
        mongo: Mongo,
        clock: Clock,
        store: Store,
        worker: Worker,
        loops: Callable[[], Iterable[Loop]],
    ) -> None:
        self._mongo = mongo
        self._clock = clock
        self._store = store
        self._worker = worker
        self._loops = loops
        self._database = Kept(self._ask_database, seconds=_KEPT)

    def of_process(self) -> Iterable[Measurement]:
        yield metrics.COMMITS_UNDER_WAY, (), self._store.commit_watch.under_way
        yield metrics.DELIVERIES_IN_HAND, (), self._worker.in_hand
        yield metrics.BROKEN_TARGETS, (), self._worker.targets.broken
        yield metrics.CLOCK_AHEAD, (), self._clock.ahead.total_seconds()
        for state, count in self._mongo.connections().items():
            yield metrics.CONNECTIONS, (state,), count
        for loop in self._loops():
            yield metrics.LOOP_TROUBLE, (loop.name,), int(loop.trouble() is not None)
            if loop.last_run is not None:
                yield metrics.LOOP_RUN, (loop.name,), loop.last_run

    async def of_database(self) -> list[Measurement]:
        found = await self._database.get()
        return [(metrics.DATABASE_UP, (), int(found is not None)), *(found or ())]

    async def _ask_database(self) -> list[Measurement]:
        now = self._mongo.now()
        found: list[Measurement] = [(metrics.DATABASE_MEASURED, (), time.time())]
        nothing = open_rows.Open(0, now)
        deliveries = await open_rows.deliveries(self._mongo)
        for state in open_rows.STATES:
            rows, oldest = deliveries.get(state, nothing)
            found.append((metrics.OPEN_ROWS, (state,), rows))
            found.append((metrics.OPEN_AGE, (state,), (now - oldest).total_seconds()))
        rows, oldest = await open_rows.events(self._mongo) or nothing
        found.append((metrics.PENDING_EVENTS, (), rows))
        found.append((metrics.PENDING_AGE, (), (now - oldest).total_seconds()))
        oldest_unmatched = await self._worker.unmatched.oldest() or now
        found.append((metrics.UNMATCHED, (), await self._worker.unmatched.count()))
        found.append((metrics.UNMATCHED_AGE, (), (now - oldest_unmatched).total_seconds()))
        for reason, count in (await review_tasks.open_counts(self._store)).items():
            found.append((metrics.REVIEW_TASKS, (reason,), count))
        return found


async def healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    services: Services = request.app.state.services
    ready, checks = await services.get(Readiness).verdict()
    return JSONResponse(checks, 200 if ready else 503)


async def metrics_page(request: Request) -> Response:
    services: Services = request.app.state.services
    try:
        await _admit(request, services)
    except FhirError as error:
        return exchange.respond_error(await audited.refused(request, error))
    more = await services.get(Measures).of_database()
    page, media_type = services.get(Exposition).page(request.headers.get("accept", ""), more)
    return Response(page, media_type=media_type)


async def _admit(request: Request, services: Services) -> None:
    """Who may read the metrics. Raises Unauthorized or Forbidden."""
    token = services.settings.metrics_token.get_secret_value()
    shown = request.headers.get("authorization", "")
    if token and hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
        return
    await operators.admit(request, services)


ROUTES = [
    Route("/healthz", healthz),
    Route("/readyz", readyz),
    Route("/metrics", metrics_page),
]
