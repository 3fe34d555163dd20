"""Each dead letter (app/runtime/dead_letters.py) has a review Task, until what it is about has been done.

The look over all queues, every few seconds and in every process, asks for those that are new, also where the process
that gave them up died of it. It closes the Tasks of what has been done since: an operator has had it run again
(`carerelay dead-letters`), or something else has set the same work anew. Doing so twice changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from app.automation import review_tasks
from app.automation.follow_up_tasks import OPEN, Closing, amend, close, is_open
from app.automation.set_aside import set_aside
from app.context import Context
from app.errors import NotFound
from app.fhir.codes import DEAD_LETTER, REVIEW_REASON
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.runtime.dead_letters import DeadLetter, Queue
from app.runtime.leases import is_nobodys_fault
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.search.terms import escape

log = logging.getLogger(__name__)

REASON = "work-given-up"
SWEEP_SECONDS = 5.0
# As many as one look asks for, and as many as a list shows, of each queue.
_AT_ONCE, MOST_LISTED = 100, 1000


class DeadLetters:
    """The dead letters of all queues, and the Tasks that ask about them."""

    def __init__(self, queues: Sequence[Queue]) -> None:
        self._queues = {queue.name: queue for queue in queues}
        self.loops = Loops(Loop("dead-letters", patience=LONG_PATIENCE))

    @property
    def queues(self) -> list[str]:
        return sorted(self._queues)

    def start(self, context: Context) -> None:
        self.loops["dead-letters"].start(self._loop(context))

    async def stop(self) -> None:
        await self.loops.end()

    async def list(self) -> list[DeadLetter]:
        """Those of all queues."""
        return [
            letter for queue in self._queues.values() for letter in await queue.dead(MOST_LISTED)
        ]

    async def run_again(self, queue: str, row_id: str | None = None) -> int:
        """Let one be tried anew, or all of a queue; returns how many. Raises NotFound where there is none such."""
        count = await self._queues[queue].run_again(row_id)
        if row_id is not None and not count:
            raise NotFound("No such dead letter")
        return count

    async def look(self, context: Context) -> None:
        """Ask about what is new, and close the Tasks about what has been done."""
        context = context.about(())
        for queue in self._queues.values():
            for letter in await queue.dead(_AT_ONCE, unasked=True):
                with set_aside("dead-letter-ask", letter.key):
                    await _ask(context, letter)
                    await queue.asked(letter)
        for task in await _open_tasks(context):
            with set_aside("dead-letter-close", task.id):
                await self._close_if_done(context, task)

    async def _close_if_done(self, context: Context, task: ResourceVersion) -> None:
        queue, _, row_id = _key_in(task.resource()).partition("|")
        if queue in self._queues and await self._queues[queue].is_done(row_id):
            await close(context, task.id, Closing("completed", "done-after-all"))

    async def _loop(self, context: Context) -> None:
        while True:
            try:
                with self.loops["dead-letters"].step():
                    await self.look(context)
            except Exception as error:
                tell = log.warning if is_nobodys_fault(error) else log.exception
                tell("dead letters", extra={"action": "look", "error": type(error).__name__})
            await asyncio.sleep(SWEEP_SECONDS)


async def _ask(context: Context, letter: DeadLetter) -> None:
    """A Task for the dead letter, opened again where it has been one before."""
    asked = review_tasks.task(context, REASON, letter.focus, patient=None, about=letter.key)
    asked["identifier"] = [{"system": DEAD_LETTER, "value": letter.key}]
    asked["description"] += f": {letter.queue}, {letter.what} ({letter.error})"

    def change(current: Resource | None) -> Resource:
        return current if current is not None and is_open(current) else asked

    await amend(context, "Task", asked["id"], change)


async def _open_tasks(context: Context) -> list[ResourceVersion]:
    term = f"code={escape(REVIEW_REASON)}|{REASON}"
    open_ = [f"status={status}" for status in sorted(OPEN)]
    wanted = {"terms": {"$all": [term], "$in": open_}}
    return await context.services.store.search("Task", wanted, MOST_LISTED)


def _key_in(task: Resource) -> str:
    """The queue and the row's id that a Task is about."""
    found = [each for each in task.get("identifier", ()) if each.get("system") == DEAD_LETTER]
    return str(found[0].get("value", "")) if found else ""
