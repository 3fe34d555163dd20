"""The ASGI application: `create_app(settings)` wires the parts and owns their life."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app import __version__
from app.api import audited, exchange, health, published, router, websocket_session
from app.api.admin import operators
from app.api.readiness import Readiness
from app.api.smart import Smart
from app.api.transport import Transport
from app.audit.log import AuditLog, note_off
from app.authentication.access_tokens import Authority, base_url as own_base_url
from app.authentication.caller import SERVER
from app.authorization.access import Accesses
from app.automation.engine import Engine
from app.automation.reactions import by_settings
from app.bulk.exports import Exports
from app.consent import redisclosure
from app.consent.directives import ConsentDirectives
from app.context import Context, Services
from app.coordination.care_plans import copies
from app.coordination.contracts import contracts
from app.coordination.practices import (
    endpoint_upkeep,
    mended_causes,
    missed_notices,
    steering_review,
    unmatched_review,
)
from app.errors import FhirError, MethodNotAllowed, NotFound
from app.features import QUEUES, REACTIONS, TIMERS
from app.messaging.receipts import Receipts
from app.proof import publisher
from app.runtime import background_tasks, secrets
from app.runtime.clock import Clock
from app.runtime.cluster import new_owner
from app.runtime.codec_process import CodecProcess
from app.runtime.exposition import Exposition
from app.runtime.loops import loops_of
from app.runtime.mongo import Mongo
from app.search.page_links import PageLinks
from app.search.search_state import SearchState
from app.settings import Settings
from app.store import format
from app.store.reindexing import Reindexing
from app.store.store import Store
from app.subscriptions.sending.worker import Worker

log = logging.getLogger(__name__)


def create_app(settings: Settings | None = None, end: Callable[[], None] | None = None) -> FastAPI:
    """The server as an ASGI application; opening its lifespan connects to MongoDB and starts the worker.

    `end` makes the process end in good order: it is called where the database is not for this server any more.
    """
    settings = settings or Settings()
    search_state = SearchState(has_words=settings.search_words)

    @asynccontextmanager
    async def parts(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as running:  # stopped in the reverse order
            owner = new_owner()
            mongo = await Mongo.open(settings, owner)
            running.push_async_callback(mongo.close)
            await format.prepare(mongo, settings, owner)
            clock = Clock(mongo)
            await clock.start()
            running.push_async_callback(clock.stop)
            codec = CodecProcess(settings.max_elements, settings.large_body_timeout)
            running.push_async_callback(codec.stop)
            audit = None
            if settings.audit_mode != "off":
                audit = AuditLog(settings, mongo, owner)
                await audit.start()
                running.push_async_callback(audit.stop)
            else:
                await note_off(mongo, settings, owner)
            keys = secrets.of_settings(settings)
            reactions = by_settings(REACTIONS, settings)
            store = Store(
                mongo,
                settings.max_resource_bytes,
                max_bytes_of={"Binary": settings.max_binary_resource_bytes},
                owner=owner,
                audit=audit,
                reacting={name for each in reactions for name in (*each.types, *each.topics)},
                search_state=search_state,
                secrets=keys,
            )
            await store.prepare()
            links = PageLinks(mongo, keys, settings)
            await links.prepare()
            await store.cluster.start()
            running.push_async_callback(store.cluster.stop)
            watch = asyncio.create_task(_end_when_refused(store, end))
            running.push_async_callback(background_tasks.end, [watch])
            reindexing = Reindexing(mongo, store)
            await reindexing.start()
            running.push_async_callback(reindexing.stop)
            authority = None
            if settings.auth == "smart":
                authority = await Authority.open(settings, mongo)
                running.push_async_callback(authority.close)
            directives = ConsentDirectives(store, settings.base_url.rstrip("/"), clock.now)
            accesses = Accesses(store, directives, settings, clock.now)
            worker = Worker(
                settings,
                mongo,
                store,
                accesses=accesses,
                directives=directives,
                clients=authority.clients if authority is not None else None,
                audit=audit,
            )
            queues = [queue(mongo) for queue in QUEUES]
            engine = Engine(mongo, store, clock, reactions, TIMERS, queues)
            exports = Exports(mongo, store, clock, settings.export_hours)
            receipts = Receipts(mongo, timedelta(days=settings.message_retention_days))
            await receipts.prepare()
            parts = [reindexing, worker, *worker.parts, engine, *engine.parts, exports, receipts]
            if authority is not None:
                parts.append(authority)
            watched: list[object] = [store.cluster, clock, audit, *parts]
            loops = partial(loops_of, watched)
            measures = health.Measures(mongo, clock, store, worker, loops)
            exposition = Exposition(measures.of_process, settings.metrics_directory)
            watched.append(exposition)
            parts += [Readiness(settings, mongo, store, worker, loops), measures, exposition]
            parts += [codec, links]
            services = Services(settings, mongo, store, clock, accesses, audit, parts)
            app.state.services = services
            await worker.start()
            running.push_async_callback(worker.stop)
            own = Context(services, SERVER, own_base_url(settings))
            await engine.start(own)
            running.push_async_callback(engine.stop)
            await exports.start(services)
            running.push_async_callback(exports.stop)
            exposition.start()
            running.push_async_callback(exposition.stop)
            await steering_review.start(own)
            await published.store_definitions(own)
            await published.store_topics(own)
            await contracts.load(own)
            await publisher.start(own)
            await unmatched_review.start(own)
            await endpoint_upkeep.start(own)
            await copies.start(own)
            await mended_causes.start(own)
            await missed_notices.start(own)
            # What start-up made stays for good: out of the collector's sight, reads gain a fifth
            # (docs/decisions/0016-request-path.md).
            gc.collect()
            gc.freeze()
            gc.set_threshold(50_000, 20, 50)
            # How soon a thread that works on something large lets the loop in, each time that the loop has waited.
            sys.setswitchinterval(0.001)
            yield

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            with search_state.applied():  # the tasks of the parts inherit it
                await opened.enter_async_context(parts(app))
            # Not in force meanwhile: whoever opened this may open another app, and may close them in any order.
            yield
            with search_state.applied():
                await opened.aclose()

    app = FastAPI(
        title="CareRelay",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_middleware(router.FhirRouter)
    if settings.auth == "smart":
        app.add_middleware(Smart)
    app.add_middleware(Transport, settings=settings, search_state=search_state)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_credentials=False,  # tokens come in headers, and a page has to have its own
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=[
                "ETag",
                "Location",
                "Content-Location",
                "Expires",
                "Last-Modified",
                "Preference-Applied",
                "Retry-After",
                "X-Progress",
                "X-Request-Id",
                "Accept-Ranges",
                "Content-Disposition",
                "Content-Range",
                "X-Security-Context",
                redisclosure.HEADER,
            ],
        )
    if settings.trusted_proxy:
        networks = [entry.strip() for entry in settings.trusted_proxy.split(",")]
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=networks)
    app.router.routes.extend(websocket_session.routes(settings))
    app.router.routes.extend(operators.ROUTES)
    app.router.routes.extend(health.ROUTES)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(Exception, _unexpected_error)
    return app


async def _end_when_refused(store: Store, end: Callable[[], None] | None) -> None:
    await store.cluster.refused.wait()
    log.error("ends: %s", store.cluster.refusal, extra={"action": "format"})
    if end is not None:
        end()


async def _framework_error(request: Request, error: Exception) -> Response:
    """What Starlette refuses by itself (an unknown route) as an OperationOutcome."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        refusal = MethodNotAllowed("Not supported here", headers=error.headers)
        return exchange.respond_error(await audited.refused(request, refusal))
    return exchange.respond_error(NotFound("No such address on this server"))


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """A defect of ours: no internals, no data in the answer; the log has the traceback."""
    headers = {
        "X-Request-Id": request.scope.get("request_id", "")
    }  # this handler stands outside of Transport
    return exchange.respond_error(
        FhirError("Internal error; the server's log has the details", headers=headers)
    )
