"""The terms of a contract with a state or a plan as an operator writes them; only this module reads that JSON.

    {"id": "state-dsnp", "title": "...", "group": "Group/high-risk", "recipient": "Organization/medicaid",
     "plan": "Organization/dual-advantage", "deadline": 24, "alert_before": 4, "payload": "id-only",
     "channel": {"type": "rest-hook", "endpoint": "https://...", "headers": ["Authorization: Bearer ..."]}}

docs/contracts.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.context import Context
from app.errors import Issue, Unprocessable
from app.fhir.codes import ADMISSION, INPATIENT, SNF_ADMISSION
from app.runtime.masking import mask
from app.runtime.mongo import Collection

_ID = r"[A-Za-z0-9\-.]{1,64}"
_Code = Annotated[str, Field(pattern=r"^[^\s,|&]+$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ContractChannel(_Model):
    """The channel of a contract's notices, as in Subscription.channel. Header values are secrets."""

    type: Literal["rest-hook", "message", "email"] = "rest-hook"
    endpoint: str = Field(min_length=1)
    headers: tuple[str, ...] = ()
    mime_type: str = Field("application/fhir+json", min_length=1)


class ContractTerms(_Model):
    """One contract. `plan` owes the notices to `recipient`.

    `deadline` and `alert_before` are hours after the event, and before the deadline.
    """

    id: str = Field(pattern=f"^{_ID}$")
    title: str = Field(min_length=1)
    group: str = Field(pattern=f"^Group/{_ID}$")
    recipient: str = Field(pattern=f"^Organization/{_ID}$")
    plan: str | None = Field(None, pattern=f"^Organization/{_ID}$")
    topics: tuple[str, ...] = Field((ADMISSION, SNF_ADMISSION), min_length=1)
    classes: tuple[_Code, ...] = INPATIENT
    deadline: float = Field(gt=0, le=24 * 366)
    alert_before: float = Field(0, ge=0)
    payload: Literal["empty", "id-only", "full-resource"] = "id-only"
    channel: ContractChannel

    def model_post_init(self, _: Any) -> None:
        if self.alert_before >= self.deadline:
            raise ValueError("alert_before must be less than deadline")


def read(given: Any) -> ContractTerms:
    """The terms. Raises Unprocessable with an issue for each error, without the values, which may be secrets."""
    try:
        return ContractTerms.model_validate_json(json.dumps(given, default=float))
    except ValidationError as error:
        issues = [
            Issue(
                "required" if problem["type"] == "missing" else "value",
                _words(problem),
                (".".join(str(part) for part in problem["loc"]),) if problem["loc"] else (),
            )
            for problem in error.errors(include_url=False, include_input=False)
        ]
        raise Unprocessable(issues=issues) from None


def _words(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def read_files(place: Path) -> list[ContractTerms]:
    """The contracts of a file, one or a list, or of a directory's .json files. Raises ValueError naming the file."""
    files = sorted(place.glob("*.json")) if place.is_dir() else [place]
    found: dict[str, ContractTerms] = {}
    for file in files:
        for each in _read_file(file):
            if each.id in found:
                raise ValueError(f"{file}: there are two contracts with the id {each.id}")
            found[each.id] = each
    return list(found.values())


def _read_file(file: Path) -> Iterable[ContractTerms]:
    try:
        given = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON: {error}") from None
    for each in given if isinstance(given, list) else [given]:
        try:
            yield read(each)
        except Unprocessable as error:
            words = "; ".join(issue.diagnostics for issue in error.issues)
            raise ValueError(f"{file}: {words}") from None


def dumped(terms: ContractTerms) -> dict[str, Any]:
    """The terms as JSON, with header values masked."""
    shown = terms.model_dump(mode="json")
    shown["channel"]["headers"] = [mask(header) for header in terms.channel.headers]
    return shown


def contract_rows(context: Context) -> Collection:
    """The collection `contracts`: the terms that an operator has put, and the ids of the Subscriptions for them."""
    return context.services.mongo.collection("contracts")
