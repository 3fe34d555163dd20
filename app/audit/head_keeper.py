"""Keeps the registry's head outside of the database, and notices where the registry was cut back meanwhile."""

from __future__ import annotations

import asyncio
import logging

from app.audit.chain_registry import ChainRegistry
from app.audit.kept_head import Head, KeptHead, KeptHeadError, Syslog, place
from app.runtime.secrets import Secrets
from app.settings import Settings

log = logging.getLogger(__name__)


class HeadKeeper:
    """One for each process. Where the head cannot be kept the log says so, and the audit goes on."""

    def __init__(self, settings: Settings, secrets: Secrets, registry: ChainRegistry) -> None:
        self._settings = settings
        self._secrets = secrets
        self._registry = registry
        self._syslog: Syslog | None = None

    async def keep(self) -> None:
        """Keep the newest row, if the one that is kept is still there. Raises PyMongoError."""
        newest = await self._registry.newest()
        if newest is None:
            return
        head = Head.of(newest)
        self._send(head)
        try:
            file = KeptHead(place(self._settings), self._secrets)
            known = await asyncio.to_thread(file.read)
            if known is not None and not await self._registry.has(known.number, known.hash):
                log.error(
                    "the audit was cut back: a row that was kept is not there",
                    extra={"action": "audit-cut", "hash": known.hash},
                )
                return
            await asyncio.to_thread(file.advance, head)
        except KeptHeadError as error:
            log.error("audit head: %s", error, extra={"action": "audit-head"})
        except (OSError, RuntimeError) as error:
            log.warning(
                "audit head not kept outside of the database",
                extra={"action": "audit-head", "error": type(error).__name__},
            )

    def _send(self, head: Head) -> None:
        if not self._settings.audit_syslog:
            return
        try:
            self._syslog = self._syslog or Syslog(self._settings.audit_syslog)
            self._syslog.send(head)
        except OSError as error:
            log.warning(
                "audit head not sent to the syslog",
                extra={"action": "audit-syslog", "error": type(error).__name__},
            )

    def close(self) -> None:
        if self._syslog is not None:
            self._syslog.close()
            self._syslog = None
