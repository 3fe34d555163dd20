"""Messages of one hospital visit, as interface engines make them of ADT, and the ways in which they may arrive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from app.fhir import codes
from tests.builders.subscriptions import ACT_CODE

Message = dict[str, Any]

# Lately: what was over long ago is no news. All that a drawn visit tells of has happened by now. No message falls on a
# whole minute, which would be taken for a time without seconds.
START = datetime.now(UTC).replace(second=7, microsecond=0) - timedelta(days=10)
# The status that each event leaves a visit in; A08 does not say.
STATUS = {
    "A05": "planned",
    "A04": "arrived",
    "A01": "in-progress",
    "A02": "in-progress",
    "A03": "finished",
    "A13": "in-progress",
    "A11": "cancelled",
    "A08": "unknown",
}
# What may come next in a visit.
_NEXT = {
    "": ("A05", "A04", "A01"),
    "A05": ("A04", "A01", "A11"),
    "A04": ("A01", "A02", "A03", "A11", "A08"),
    "A01": ("A02", "A03", "A11", "A08"),
    "A02": ("A02", "A03", "A08"),
    "A08": ("A02", "A03", "A08"),
    "A03": ("A13",),
    "A13": ("A02", "A03"),
    "A11": (),
}


def EVENT_TIME(text: str) -> Message:  # noqa: N802 - reads as the element that it is
    """The extension that says when the event of a message happened."""
    return {"extension": [{"url": codes.EVENT_TIME, "valueDateTime": text}]}


def message(event: str, hour: float, **more: Any) -> Message:
    """An Encounter as an ADT message of that event, so many hours after the visit began, describes it."""
    at = (START + timedelta(hours=hour)).isoformat()
    by_event: dict[str, Message] = {
        "A05": {"period": {"start": at}},
        "A04": {"period": {"start": at}},
        "A01": {"period": {"start": at}},
        "A03": {
            "period": {"end": at},
            "hospitalization": {"dischargeDisposition": {"text": "home"}},
        },
    }
    return {
        "resourceType": "Encounter",
        **EVENT_TIME(at),
        "status": STATUS[event],
        "class": {"system": ACT_CODE, "code": "EMER" if event == "A04" else "IMP"},
        **by_event.get(event, {}),
        **more,
    }


_EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "location": st.sampled_from(["ward", "icu", "bay"]).map(
            lambda name: [{"location": {"display": name}, "status": "active"}]
        ),
        "serviceProvider": st.sampled_from(["north", "south"]).map(lambda name: {"display": name}),
        "reasonCode": st.sampled_from(["falls", "cough"]).map(lambda text: [{"text": text}]),
        "participant": st.sampled_from(["Ash", "Birch"]).map(
            lambda name: [{"individual": {"display": name}}]
        ),
        "hospitalization": st.sampled_from(["walked", "helicopter"]).map(
            lambda text: {"specialArrangement": [{"text": text}]}
        ),
    },
)


@st.composite
def visits(draw: st.DrawFn) -> list[Message]:
    """The messages of a visit in the order in which things happened."""
    event, hour, made = "", 0.0, []
    for _ in range(draw(st.integers(1, 7))):
        if not _NEXT[event]:
            break
        event = draw(st.sampled_from(_NEXT[event]))
        hour += draw(st.sampled_from([0.001, 0.5, 3, 26]))
        made.append(message(event, hour, **draw(_EXTRAS)))
    return made


def deliveries(visit: list[Message]) -> st.SearchStrategy[list[Message]]:
    """Every message at least once, some twice, in any order."""
    twice = st.lists(st.sampled_from(visit), max_size=3)
    return twice.flatmap(lambda extra: st.permutations([*visit, *extra]))
