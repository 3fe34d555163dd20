"""FHIR messages on their way: each through `$process-message`, which knows whom it is about and what is newer.

https://hl7.org/fhir/R4/messageheader-operation-process-message.html and docs/messages.md. The ids in a message are its
sender's own. Sent again a message is answered as the first time and writes nothing, so a load may begin again.
"""

from __future__ import annotations

from datetime import UTC, datetime

from app.cli.load.files import Document
from app.cli.load.outcome import LoadReport, reason_of
from app.cli.load.server import FhirServer
from app.fhir import instants, json as fhir_json
from app.fhir.json import Resource

MESSAGE = "message"
_LAST = datetime.max.replace(tzinfo=UTC)


def made_at(message: Resource) -> datetime:
    """When a message says that it was made; one that does not say it goes last, and is refused."""
    try:
        return instants.moment(str(message.get("timestamp")))
    except (ValueError, OverflowError):
        return _LAST


class MessageSender:
    """Sends messages one after another, in the order in which they are given."""

    def __init__(self, server: FhirServer, report: LoadReport) -> None:
        self._server = server
        self._report = report

    async def send(self, document: Document, message: Resource) -> None:
        """Send one. What is refused, or kept and not in force, is told with the reason in the answer."""
        response = await self._server.request("POST", "$process-message", fhir_json.encode(message))
        if response.is_success and response.status_code != 202:
            self._report.created["Bundle"] += 1
            return
        label = f"{document.label}, the message" if document.is_line else "the message"
        self._report.refuse(document.file, "Bundle", label, reason_of(response))
