"""Review Tasks that list Endpoints: one for each reason and whom it concerns, whatever the number of Endpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.automation import review_tasks
from app.automation.follow_up_tasks import OPEN, amend
from app.context import Context
from app.fhir.json import Resource

_MOST_LISTED = 200


async def keep_task(
    context: Context,
    reason: str,
    focus: str | None,
    amiss: Sequence[str],
    is_mended: Callable[[str], bool],
) -> None:
    """Bring the Task in line; it is completed when no Endpoint is left. Endpoints are references.

    What a person has closed stays closed, until there is another Endpoint.
    """
    asked = review_tasks.task(context, reason, focus, patient=None)

    def change(current: Resource | None) -> Resource | None:
        before = [] if current is None else _listed(current)
        names = [each for each in before if not is_mended(each)]
        new = [each for each in amiss if each not in names]
        names = [*names, *new][:_MOST_LISTED]
        if names == before:
            return None
        is_open = current is None or current["status"] in OPEN
        status = current["status"] if current is not None else "requested"
        if new and not is_open:
            status = "requested"
        elif not names and is_open:
            status = "completed"
        inputs = [
            {"type": {"text": "Endpoint"}, "valueReference": {"reference": each}} for each in names
        ]
        changed = {**(asked if current is None else current), "status": status, "input": inputs}
        return changed if inputs else {key: changed[key] for key in changed if key != "input"}

    await amend(context, "Task", asked["id"], change)


def _listed(task: Resource) -> list[str]:
    return [each["valueReference"]["reference"] for each in task.get("input", ())]
