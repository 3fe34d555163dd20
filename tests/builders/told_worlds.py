"""Small worlds of members, practices and stays, and by a plain table what each practice has to hear of each stay.

The table knows nothing of the server: a step of a stay fires topics, and a practice hears of them at once, later, when
what keeps it from hearing is mended, or never.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import strategies as st

# What a step writes, and the topics that it fires.
STEPS: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "register": ("in-progress", "EMER", ("admission",)),
    "admit": ("in-progress", "IMP", ("admission",)),
    "rise": ("in-progress", "IMP", ("admission", "transfer")),
    "ward": ("in-progress", None, ()),
    "transfer": ("in-progress", None, ("transfer",)),
    "discharge": ("finished", None, ("discharge",)),
    "reopen": ("in-progress", None, ("cancelled",)),
    "cancel": ("cancelled", None, ("cancelled",)),
    # First heard of when it is over: today, or long after.
    "over": ("finished", "IMP", ("discharge",)),
    "record": ("finished", "IMP", ("discharge",)),
}
NEXT = {
    "": ("register", "admit", "over", "record"),
    "register": ("rise", "transfer", "discharge", "cancel"),
    **dict.fromkeys(
        ("admit", "rise", "ward", "transfer"), ("ward", "transfer", "discharge", "cancel")
    ),
    **dict.fromkeys(("discharge", "over"), ("reopen",)),
    "reopen": ("ward", "discharge", "cancel"),
    "cancel": (),
    "record": (),
}
# What keeps a practice from hearing, as a review reason; None where nothing does.
PRACTICES: dict[str, str | None] = {
    "organization": None,
    "role": None,
    "managed": "no-endpoint",
    "bare": "no-endpoint",
    "endpoint-off": "no-endpoint",
    "switched-off": "nobody-listens",
    "down": "subscription-error",
}
# What keeps everybody from hearing of a member; `refused` is no fault.
MEMBERS: dict[str, str | None] = {
    "general-practitioner": None,
    "care-team": None,
    "panel": None,
    "two": None,
    "merged": None,
    "nobody": "no-pcp",
    "ended": "pcp-period-ended",
    "stranger": "unknown-patient",
    "by-identifier": "subject-by-identifier",
    "refused": "withheld",
}
_WITHOUT_ENDPOINT = ("managed", "bare", "endpoint-off")


class Member(NamedTuple):
    """How a member is attributed, and to which practices once all is mended."""

    kind: str
    practices: tuple[int, ...]


class Op(NamedTuple):
    """`stay`: the next step of a stay; `member`, `practice`: what is wrong with one is mended."""

    what: str
    number: int
    step: str = ""


@dataclass(frozen=True)
class World:
    """`kept`: whether the server subscribes practices from the beginning, or from a second start on."""

    kept: bool
    practices: tuple[str, ...]
    members: tuple[Member, ...]
    stays: tuple[int, ...]
    ops: tuple[Op, ...]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    practices = draw(st.lists(st.sampled_from(sorted(PRACTICES)), min_size=1, max_size=3))
    numbers = st.integers(0, len(practices) - 1)
    members = []
    for kind in draw(st.lists(st.sampled_from(sorted(MEMBERS)), min_size=1, max_size=4)):
        several = 2 if kind == "two" and len(practices) > 1 else 1
        named = draw(st.lists(numbers, min_size=several, max_size=several, unique=True))
        members.append(Member(kind, tuple(named)))
    stays = draw(st.lists(st.integers(0, len(members) - 1), min_size=1, max_size=5))
    last = dict.fromkeys(range(len(stays)), "")
    ops: list[Op] = []
    mends = [("practice", each) for each in range(len(practices))]
    mends += [("member", each) for each in range(len(members))]
    for _ in range(draw(st.integers(3, 14))):
        open_ = [each for each in last if NEXT[last[each]]]
        if mends and draw(st.integers(0, 4)) == 0:
            mend = draw(st.sampled_from(mends))
            mends.remove(mend)
            ops.append(Op(*mend))
        elif open_:
            stay = draw(st.sampled_from(open_))
            last[stay] = draw(st.sampled_from(NEXT[last[stay]]))
            ops.append(Op("stay", stay, last[stay]))
    return World(draw(st.booleans()), tuple(practices), tuple(members), tuple(stays), tuple(ops))


class Fired(NamedTuple):
    """A topic that a version of a stay fired, for a practice; or for nobody known, `practice` is None."""

    stay: int
    version: int
    topic: str
    practice: int | None


@dataclass
class Oracle:
    """What became of each fired topic: `told`, `waits`, `withheld`, or the review reason of what keeps it back."""

    world: World
    is_kept: bool
    endings: dict[Fired, str] = field(default_factory=dict)
    heard: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    versions: dict[int, int] = field(default_factory=dict)
    last: dict[int, str] = field(default_factory=dict)
    mended: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def of(cls, world: World) -> Oracle:
        return cls(world, world.kept)

    def of_practice(self, practice: int) -> str:
        kind = self.world.practices[practice]
        if ("practice", practice) not in self.mended and kind in _WITHOUT_ENDPOINT:
            return "no-endpoint"
        if not self.is_kept:
            return "nobody-listens"
        if ("practice", practice) in self.mended:
            return "told"
        return {"switched-off": "nobody-listens", "down": "waits"}.get(kind, "told")

    def of_member(self, member: int) -> str | None:
        kind = self.world.members[member].kind
        return None if ("member", member) in self.mended else MEMBERS[kind]

    def step(self, stay: int, step: str) -> None:
        version = self.versions[stay] = self.versions.get(stay, 0) + 1
        self.last[stay] = step
        member = self.world.stays[stay]
        keeps = self.of_member(member)
        for topic in STEPS[step][2]:
            if topic == "cancelled" and not self._is_known(stay):
                continue
            if keeps is not None and keeps != "withheld":
                if step != "record":
                    self.endings[Fired(stay, version, topic, None)] = keeps
                continue
            for practice in self.world.members[member].practices:
                ending = self.of_practice(practice)
                # A record of the past is no news: nobody has to be told of it who does not hear it.
                if step == "record" and ending not in ("told", "waits"):
                    continue
                withheld = keeps == "withheld" and ending in ("told", "waits")
                self._end(Fired(stay, version, topic, practice), "withheld" if withheld else ending)

    def _is_known(self, stay: int) -> bool:
        """Whether there is anything to take back: a notice that was sent, or is under way."""
        return any(
            each.stay == stay and each.topic != "cancelled" and ending in ("told", "waits")
            for each, ending in self.endings.items()
        )

    def _end(self, fired: Fired, ending: str) -> None:
        self.endings[fired] = ending
        admission = fired._replace(topic="admission")
        if ending == "told" and fired.practice is not None:
            # A rise is an admission and a transfer; one Endpoint is told once.
            if fired.topic == "transfer" and self.endings.get(admission) == "told":
                return
            self.heard.setdefault((fired.practice, fired.stay), []).append(fired.topic)

    def mend(self, *what: tuple[str, int]) -> None:
        """What was kept back by it goes on: is told, withheld, or kept back by something else."""
        self.mended.update(what)
        for kind, number in what:
            if kind == "member" and self.world.members[number].kind == "by-identifier":
                self._name(number)
        for fired, ending in sorted(self.endings.items(), key=lambda each: each[0][:3]):
            if ending in ("told", "withheld"):
                continue
            member = self.world.stays[fired.stay]
            keeps = self.of_member(member)
            if keeps is not None and keeps != "withheld":
                continue
            del self.endings[fired]
            for practice in self._practices(fired, member):
                now = self.of_practice(practice)
                if ending != "waits" and now in ("told", "waits") and self._is_taken_back(fired):
                    continue
                withheld = keeps == "withheld" and now in ("told", "waits")
                self._end(fired._replace(practice=practice), "withheld" if withheld else now)

    def _is_taken_back(self, fired: Fired) -> bool:
        """Whether the stay says otherwise by now: that is not told after all."""
        status = STEPS[self.last[fired.stay]][0]
        if fired.topic == "cancelled":
            return False
        return status == "cancelled" or (fired.topic == "discharge" and status == "in-progress")

    def is_doubtful(self, fired: Fired) -> bool:
        """Whether what a visit fired that named nobody then waits beside what it fires since it names its patient."""
        member = self.world.stays[fired.stay]
        is_named = ("member", member) in self.mended
        return self.world.members[member].kind == "by-identifier" and is_named

    def _name(self, member: int) -> None:
        """A visit that names its patient for the first time is withdrawn, and begins for the patient as it is."""
        for stay, of in enumerate(self.world.stays):
            if of != member or stay not in self.last:
                continue
            for fired in [each for each in self.endings if each.stay == stay]:
                del self.endings[fired]
            status = STEPS[self.last[stay]][0]
            if status != "cancelled":
                version = self.versions[stay] = self.versions[stay] + 2
                topic = "discharge" if status == "finished" else "admission"
                for practice in self.world.members[member].practices:
                    self._end(Fired(stay, version, topic, practice), self.of_practice(practice))

    def _practices(self, fired: Fired, member: int) -> Iterator[int]:
        yield from (
            self.world.members[member].practices if fired.practice is None else [fired.practice]
        )

    def beside(self) -> list[Fired]:
        """The transfers that an admission of the same version stands for."""
        return [
            each
            for each in self.endings
            if each.topic == "transfer" and each._replace(topic="admission") in self.endings
        ]

    def rest(self) -> list[tuple[str, int]]:
        """What is not mended yet."""
        every = [("practice", each) for each in range(len(self.world.practices))]
        every += [("member", each) for each in range(len(self.world.members))]
        return [each for each in every if each not in self.mended]


def resource_of(step: str, before: dict[str, Any] | None, base: dict[str, Any]) -> dict[str, Any]:
    """The next version of a stay."""
    status, class_, _ = STEPS[step]
    made = {**base, **(before or {}), "status": status}
    if class_ is not None:
        made["class"] = {
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode",
            "code": class_,
        }
    match step:
        case "ward":
            made["type"] = [*made.get("type", ()), {"text": "Another ward"}]
        case "transfer":
            away = made["serviceProvider"]["reference"] == "Organization/hospital-a"
            made["serviceProvider"] = {"reference": f"Organization/hospital-{'b' if away else 'a'}"}
        case "record":
            made["period"] = {"start": "2019-03-01", "end": "2019-03-04"}
    return made
