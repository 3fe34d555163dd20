"""The result of an interaction, before the API encodes it as a response."""

from __future__ import annotations

from dataclasses import dataclass, field

from app.errors import Issue
from app.fhir.shape import AnswerShape
from app.records.versions import ResourceVersion


@dataclass(slots=True)
class InteractionResult:
    """The result of an interaction: a status and one version, or a Bundle or outcome as JSON text.

    `issues` are told where there is room for them, `warnings` only to whom asks for an outcome. `shape` is what the
    interaction itself was asked for, where that is more than its URL says: in a form, or behind the link to a page.
    With a `media_type` the text is no resource and is answered as it is.
    """

    status: int
    stored: ResourceVersion | None = None
    text: str | bytes | None = None
    issues: tuple[Issue, ...] = ()
    warnings: tuple[Issue, ...] = ()
    location: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    shape: AnswerShape | None = None
    media_type: str | None = None

    @property
    def outcome(self) -> tuple[Issue, ...]:
        """What is told of a write to whom asks for an outcome rather than for the resource."""
        done = Issue("informational", "Done", severity="information")
        return (self.issues or (done,)) + self.warnings

    @property
    def body(self) -> str | bytes | None:
        if self.text is not None:
            return self.text
        if self.stored is not None and not self.stored.deleted:
            return self.stored.text
        return None


@dataclass(slots=True)
class RawAnswer(InteractionResult):
    """The result of an interaction that is answered by content of another type than FHIR's own, all of it or a part."""

    content: bytes = b""
