"""Transactions of MongoDB: what becomes of one that fails, and the end of those that a dead process has left open.

https://www.mongodb.com/docs/manual/core/transactions-in-applications/ - the drivers' `with_transaction` repeats for two
minutes whatever fails for a while. Here the caller decides: what meets another transaction goes back to it at once, and
it is told of a commit whose outcome is not known, which goes on until it is.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pymongo import ReadPreference, WriteConcern
from pymongo.errors import (
    ConnectionFailure,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
)
from pymongo.read_concern import ReadConcern

from app.runtime.mongo import Document, Mongo, Session, name_of

T = TypeVar("T")

# For a transaction that nothing but its own end stops, in seconds.
_PATIENCE = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5
# MongoDB's code for what somebody has killed: `end_those_of`, or an operator.
_INTERRUPTED = 11601

log = logging.getLogger(__name__)


class ContentionError(Exception):
    """Another transaction was in the way, or this one was ended from outside; nothing of it is left. Try it again."""


async def run(mongo: Mongo, callback: Callable[[Session], Awaitable[T]]) -> T:
    """Run `callback(session)` in one transaction, again while something is in its way, for a minute at most.

    The callback may run more than once, so it must have no effect outside the transaction. Any exception it raises
    aborts the transaction and comes through. Raises ConnectionFailure where no server can be found.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _PATIENCE
    tries = 0
    while True:
        try:
            return await attempt(mongo, callback)
        except ContentionError:
            if loop.time() > give_up:
                raise
        await asyncio.sleep(pause(tries))
        tries += 1


async def attempt(
    mongo: Mongo,
    callback: Callable[[Session], Awaitable[T]],
    in_doubt: Callable[[], None] = lambda: None,
) -> T:
    """Run `callback(session)` in one transaction; as `run`, but raises ContentionError where something is in its way.

    Where the connection breaks or the primary changes before the commit, it is repeated. `in_doubt` is called where a
    commit gets no answer that says what became of it. That is asked for until it is known, for as long as it takes:
    before, nobody may say that the transaction will never commit.
    """
    tries = 0
    while True:
        try:
            async with await mongo.session() as session:
                return await _attempt(mongo, session, callback, in_doubt)
        except ServerSelectionTimeoutError:
            raise
        except ConnectionFailure as error:
            if not _is_transient(error):
                raise
        await asyncio.sleep(pause(tries))
        tries += 1


async def _attempt(
    mongo: Mongo,
    session: Session,
    callback: Callable[[Session], Awaitable[T]],
    in_doubt: Callable[[], None],
) -> T:
    await mongo.begin(
        session,
        read_concern=ReadConcern("snapshot"),
        write_concern=WriteConcern("majority"),
        read_preference=ReadPreference.PRIMARY,
    )
    try:
        result = await callback(session)
    except BaseException as error:
        if session.in_transaction:
            await session.abort_transaction()
        if isinstance(error, OperationFailure) and _is_transient(error):
            raise ContentionError from error
        raise
    await _commit(session, in_doubt)
    return result


async def _commit(session: Session, in_doubt: Callable[[], None]) -> None:
    tries = 0
    while True:
        try:
            await session.commit_transaction()
            return
        except PyMongoError as error:
            if error.has_error_label("TransientTransactionError"):
                raise ContentionError from error
            if not _is_unknown(error):
                raise
        in_doubt()
        await asyncio.sleep(pause(tries))
        tries += 1


def pause(tries: int) -> float:
    """Seconds to wait before the next try, longer each time, and not the same for two who met."""
    longest = min(_FIRST_PAUSE * 1.5 ** min(tries, 20), _LONGEST_PAUSE)
    return longest * (0.5 + random.random() / 2)  # noqa: S311


def _is_transient(error: PyMongoError) -> bool:
    is_killed = isinstance(error, OperationFailure) and error.code == _INTERRUPTED
    return is_killed or error.has_error_label("TransientTransactionError")


def _is_unknown(error: PyMongoError) -> bool:
    """Whether a commit that failed so may have happened; one that was killed may have waited for the majority."""
    return (
        error.has_error_label("UnknownTransactionCommitResult")
        or isinstance(error, WriteConcernError)
        or (isinstance(error, OperationFailure) and error.code == _INTERRUPTED)
    )


async def end_those_of(mongo: Mongo, owner: str) -> None:
    """End the transactions that a process has left open, so that what they hold is free again.

    A process names itself to MongoDB (`Mongo.open`). Every account may list and kill the sessions of its own user.
    Where that is refused all the same, MongoDB ends them itself, after transactionLifetimeLimitSeconds.
    https://www.mongodb.com/docs/manual/reference/command/killSessions/
    """
    of_process = {"appName": name_of(owner), "lsid": {"$exists": True}}
    pipeline: list[Document] = [
        {"$currentOp": {"allUsers": False, "idleSessions": True}},
        {"$match": {**of_process, "transaction": {"$exists": True}}},
    ]
    admin = mongo.client.admin
    try:
        # By the bare command: this stage knows no read concern, which the connection has.
        reply: Any = await admin.command({"aggregate": 1, "pipeline": pipeline, "cursor": {}})
        if found := reply["cursor"]["firstBatch"]:
            sessions = [{"id": each["lsid"]["id"]} for each in found]
            await admin.command({"killSessions": sessions})
    except OperationFailure as error:
        log.warning(
            "transactions of a dead process not ended, MongoDB ends them after transactionLifetimeLimitSeconds",
            extra={"action": "take-over", "owner": owner, "code": error.code},
        )
