"""Questions from one of the server's processes to another, through the database.

    mailbox  {_id, to, sender, question: {...} | answer: {...}, of?: _id of the question, at}

A change stream brings what arrives; whoever asks waits for as long as it likes. Nothing is promised: a process that has
died does not answer, and what is lost is asked again by the one whose work it is. Rows go when they are read, and
by a TTL where nobody reads them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from bson import ObjectId
from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.runtime import background_tasks, collections
from app.runtime.loops import Loop, Loops
from app.runtime.mongo import Document, Mongo

log = logging.getLogger(__name__)

COLLECTION = "mailbox"
_KEPT_SECONDS = 120
_PAUSE_AFTER_FAILURE = 0.5

Answer = Callable[[Document], Awaitable[Document]]


class ProcessMessages:
    """This process's box. `answer` is called for each question that comes."""

    def __init__(self, mongo: Mongo, owner: str, answer: Answer) -> None:
        self._mongo = mongo
        self._owner = owner
        self._answer = answer
        self._rows = mongo.collection(COLLECTION)
        self._waiting: dict[Any, asyncio.Future[Document]] = {}
        self.loops = Loops(Loop("mailbox", lasting=True))
        self._answering: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Be able to receive; whatever is sent from now on arrives."""
        reading = self.loops["mailbox"]
        if reading.is_started:
            return
        since = await self._operation_time()
        if not reading.is_started:  # another call may have been faster
            reading.start(self._read(since))
        expiry = IndexModel([("at", ASCENDING)], expireAfterSeconds=_KEPT_SECONDS)
        await collections.ensure(self._mongo, COLLECTION, [expiry])

    async def ask(self, to: str, question: Document) -> Document:
        """The other process's answer; waits until it comes. Raises PyMongoError where the database fails."""
        await self.open()
        future: asyncio.Future[Document] = asyncio.get_running_loop().create_future()
        question_id = ObjectId()
        self._waiting[question_id] = future
        try:
            await self._post(to, {"_id": question_id, "question": question})
            return await future
        finally:
            del self._waiting[question_id]

    async def close(self) -> None:
        await background_tasks.end(self._answering)
        await self.loops.end()

    async def _post(self, to: str, row: Document) -> None:
        await self._rows.insert_one(
            {**row, "to": to, "sender": self._owner, "at": self._mongo.now()}
        )

    async def _operation_time(self) -> Any:
        return (await self._mongo.client.admin.command("ping"))["operationTime"]

    async def _read(self, since: Any) -> None:
        """Take what arrives. After a failure the stream begins where the last look ended."""
        pipeline = [{"$match": {"operationType": "insert", "fullDocument.to": self._owner}}]
        while True:
            try:
                with self.loops["mailbox"].step():
                    async with self._mongo.watch(
                        self._rows, pipeline, start_at_operation_time=since
                    ) as stream:
                        async for change in stream:
                            since = change["clusterTime"]
                            self._take(change["fullDocument"])
            except PyMongoError as error:
                log.warning("worker", extra={"action": "mailbox", "error": type(error).__name__})
                await asyncio.sleep(_PAUSE_AFTER_FAILURE)

    def _take(self, row: Document) -> None:
        step = self._settle if "answer" in row else self._reply
        task = asyncio.create_task(step(row))
        self._answering.add(task)
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("worker", extra={"action": "mailbox", "error": type(error).__name__})

    async def _settle(self, row: Document) -> None:
        future = self._waiting.get(row["of"])
        if future is not None and not future.done():
            future.set_result(row["answer"])
        await self._rows.delete_one({"_id": row["_id"]})

    async def _reply(self, row: Document) -> None:
        """Answer a question once, also where the stream brings it twice."""
        if (await self._rows.delete_one({"_id": row["_id"]})).deleted_count:
            answer = await self._answer(row["question"])
            await self._post(row["sender"], {"of": row["_id"], "answer": answer})
