"""What an operator does on the command line, put on record where the database has an audit."""

from __future__ import annotations

import os

from app.audit import chain_registry
from app.audit.entry import Asked, asking, entry
from app.audit.log import AuditLog
from app.authentication.caller import Caller
from app.runtime.mongo import Mongo
from app.settings import Settings

COMMAND_LINE = Caller("command-line")


async def note(mongo: Mongo, settings: Settings, command: str) -> None:
    """Record a command that changed who may do what. Raises Unavailable where it must be recorded and cannot."""
    has_audit = (
        await mongo.collection(chain_registry.COLLECTION).find_one({}, {"_id": 1}) is not None
    )
    if settings.audit_mode == "off" and not has_audit:
        return
    audit = AuditLog(settings, mongo, f"{os.getpid()}-command-line")
    await audit.start()
    try:
        with asking(Asked(COMMAND_LINE, "", "", f"carerelay {command}")):
            await audit.record([entry("clients", audit.now())])
    finally:
        await audit.stop()
