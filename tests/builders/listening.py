"""The application behind a real socket, for clients that need one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn

from app.main import create_app
from app.settings import Settings
from tests.conftest import Server


class _Uvicorn(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@asynccontextmanager
async def listening(
    settings: Settings, **options: Any
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server on a free port of loopback, and a client that speaks FHIR to it; `options` are uvicorn's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = create_app(settings.model_copy(update={"port": port}))
        # The loggers stay as they are, with the suite's handler and the server's levels.
        logs = {"log_level": "warning", "log_config": None}
        options = {**options, **logs, "timeout_graceful_shutdown": 1}
        server = _Uvicorn(uvicorn.Config(app, **options))
        running = asyncio.create_task(server._serve([listener]))
        try:
            async with asyncio.timeout(30):
                await server.listens.wait()
            base_url = f"http://127.0.0.1:{port}/fhir"
            async with httpx.AsyncClient(base_url=base_url) as client:
                yield Server(app.state.services), client
        finally:
            server.should_exit = True
            await running
