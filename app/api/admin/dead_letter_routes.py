"""The operator's routes for what the server has given up; app/api/admin/operators.py serves them.

GET    /admin/dead-letters
POST   /admin/dead-letters/retry    queue=, and id= for one of its rows
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from app.automation.dead_letter_tasks import DeadLetters
from app.context import Services
from app.errors import BadRequest
from app.fhir.instants import instant
from app.runtime.dead_letters import DeadLetter

Answer = tuple[int, Any]
_PARAMETERS = frozenset({"queue", "id"})


async def list_dead_letters(request: Request, services: Services) -> Answer:
    found = await services.get(DeadLetters).list()
    return 200, {"dead_letters": [_shown(each) for each in found]}


async def retry(request: Request, services: Services) -> Answer:
    """`{queued}`: how many are to be tried again. All of a queue, where no id is given."""
    query, dead_letters = request.query_params, services.get(DeadLetters)
    for name in query:
        if name not in _PARAMETERS:
            raise BadRequest(f"Unknown parameter '{name}'", code="not-supported", expression=name)
    if query.get("queue") not in dead_letters.queues:
        known = ", ".join(dead_letters.queues)
        raise BadRequest(f"A queue is one of {known}", code="value", expression="queue")
    return 202, {"queued": await dead_letters.run_again(query["queue"], query.get("id"))}


def _shown(letter: DeadLetter) -> dict[str, Any]:
    shown = {"queue": letter.queue, "id": letter.id, "what": letter.what, "error": letter.error}
    if letter.focus is not None:
        shown["focus"] = letter.focus
    if letter.at is not None:
        shown["at"] = instant(letter.at)
    return shown


HANDLERS = (
    ("GET", "/dead-letters", list_dead_letters),
    ("POST", "/dead-letters/retry", retry),
)
