"""`python -m tests.mutants`: how many small faults in the code the tests of its room notice.

Cosmic Ray knows every fault that it can put into the rooms below. A sample is drawn of them: places first, so that each
counts once, then one of the changes that are possible there. Each is put into a copy of the tree and those tests of its
room that run the line are run on it, first those that are most likely to fail, until one does. (All tests of the room
where the line is run by an import alone.) Two copies are at work at the same time, each with a mongod of its own. The
tests have to pass on the copies before anything is changed there, and that is when it is noted which runs what.

A fault that no test meets because nothing can be imported with it is replaced by another one and not counted. One that
makes tests hang counts as caught. What a reader found to make no difference stands in equivalent_mutants.toml, with the
reason, and is not drawn. The report is in build/mutants.txt and build/mutants.json; the exit code is 1 where
fewer than 95 % were caught.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from cosmic_ray.commands import init
from cosmic_ray.modules import find_modules
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.testing import run_tests
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome
from rich.console import Console

from app.runtime import child_process
from tests import covering_tests
from tests.behaviour import behaviour

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build" / "mutants"
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
LEAST_PERCENT = 95

# Where the tests of each room of app/ are. Those of what one room does for another stand in the other's.
ROOMS = {
    "search": ("tests/search",),
    "store": (
        "tests/store",
        "tests/interactions",
        "tests/search/test_paging.py",
        "tests/automation/test_engine.py",
        "tests/runtime/test_cluster.py",
        "tests/subscriptions/test_deliveries_of_format_1.py",
        "tests/subscriptions/test_shared_lanes.py",
    ),
    "subscriptions": (
        "tests/subscriptions",
        "tests/attribution/test_panel_subscriptions.py",
        "tests/authorization/test_access_delivery.py",
        "tests/authorization/test_kept_subscriptions.py",
        "tests/authorization/test_matching_needs.py",
        "tests/consent/test_consent_delivery.py",
        "tests/audit/test_audit_delivery.py",
        "tests/network/test_endpoint_credentials.py",
        "tests/api/test_readiness.py",
    ),
    "authorization": ("tests/authorization", "tests/consent/test_consent_writers.py"),
    "attribution": (
        "tests/attribution",
        "tests/coordination",
        "tests/subscriptions/test_topics_stays.py",
    ),
    "consent": ("tests/consent",),
    "audit": ("tests/audit",),
}

# An operator becomes its counterpart. Cosmic Ray would put every other one in its place, and most of those fail
# wherever the line is run at all.
OPERATORS = re.compile(
    r"""core/(
        AddNot | ReplaceUnaryOperator_Delete_\w+ | ReplaceAndWithOr | ReplaceOrWithAnd
        | ReplaceTrueWithFalse | ReplaceFalseWithTrue | NumberReplacer
        | ReplaceBreakWithContinue | ReplaceContinueWithBreak | ZeroIterationForLoop
        | ExceptionReplacer | RemoveDecorator
        | ReplaceComparisonOperator_(
            Eq_NotEq | NotEq_Eq | Is_IsNot | IsNot_Is
            | Lt_LtE | Lt_GtE | LtE_Lt | LtE_Gt | Gt_GtE | Gt_LtE | GtE_Gt | GtE_Lt)
        | ReplaceBinaryOperator_(
            Add_Sub | Sub_Add | Mul_Div | Div_Mul | FloorDiv_Mul | Mod_Mul | Pow_Mul
            | BitOr_BitAnd | BitAnd_BitOr | BitXor_BitOr | LShift_RShift | RShift_LShift)
    )""",
    re.VERBOSE,
)
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", re.MULTILINE)
_HUNG = "from pytest-timeout"
_PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short")
_TEST_SECONDS = 60
# To note what each test runs takes longer than to run it.
_BASELINE_TEST_SECONDS = 180
# Longest that the unchanged tests of a room may take.
_BASELINE_SECONDS = 1800

console = Console(highlight=False, soft_wrap=True)


@dataclass
class Mutant:
    """A fault and what became of it."""

    room: str
    file: str
    line: int
    last_line: int
    operator: str
    occurrence: int
    before: str
    after: str
    outcome: str = ""
    seconds: float = 0
    test: str = ""
    diff: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.outcome:9} {self.file}:{self.line} {self.operator} {self.test}".rstrip()


class RoomFails(Exception):
    """The tests of a room do not pass on the unchanged code."""


def main(
    sample: Annotated[int, typer.Option(min=1, help="How many faults to try.")] = 200,
    seed: Annotated[int, typer.Option(help="Draws another sample.")] = 1,
    room: Annotated[
        list[str] | None, typer.Option(help=f"Some of {', '.join(ROOMS)}; all by default.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="How many to try at the same time.")] = 2,
) -> None:
    """Put faults into copies of the code, one at a time, and see whether a test notices each."""
    rooms = room or list(ROOMS)
    if unknown := sorted(set(rooms) - set(ROOMS)):
        raise typer.BadParameter(f"no room is called {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A fault of the same length, written within the same second, would meet what was compiled before.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    tried: list[Mutant] = []
    try:
        with TemporaryDirectory(prefix="carerelay-mutants-") as place:
            tree = Path(place) / "tree"
            ignored = (".*", "__pycache__", "build", "data", "dist", "htmlcov")
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*ignored))
            os.chdir(tree)  # so that work can go on in the other one
            for mutant in _try_all(draw(rooms, seed, Path(place)), rooms, sample, workers):
                tried.append(mutant)
                console.print(f"{len(tried):4} {mutant.seconds:6.1f} s  {mutant}", markup=False)
                _write(tried, seed)
    except RoomFails as error:
        console.print(str(error), markup=False)
        raise typer.Exit(2) from None
    console.print(f"{summary(tried)}. The report is in {OUTPUT.relative_to(ROOT)}.txt")
    raise typer.Exit(1 if share(tried) < LEAST_PERCENT else 0)


def draw(rooms: Iterable[str], seed: int, scratch: Path) -> Iterator[Mutant]:
    """Faults in a random order that the seed decides, one for each place of the code that can have any."""
    places: dict[tuple[str, tuple[int, int], tuple[int, int]], list[MutationSpec]]
    places = defaultdict(list)
    with use_db(scratch / "session.sqlite", WorkDB.Mode.create) as session:
        init(sorted(find_modules([Path("app") / room for room in rooms])), session, {})
        for item in session.work_items:
            [spec] = item.mutations
            if OPERATORS.fullmatch(spec.operator_name):
                places[str(spec.module_path), spec.start_pos, spec.end_pos].append(spec)
    lots = random.Random(seed)
    left_out = equivalents()
    for place in lots.sample(sorted(places), len(places)):
        specs = sorted(places[place], key=lambda spec: (spec.operator_name, spec.occurrence))
        lots.shuffle(specs)
        for spec in specs:
            if (change := _change(spec)) and (str(spec.module_path), *change) not in left_out:
                file, (line, _), (last_line, _) = place
                room = spec.module_path.parts[1]
                lines = (line, last_line)
                yield Mutant(room, file, *lines, spec.operator_name, spec.occurrence, *change)
                break


def equivalents() -> set[tuple[str, str, str]]:
    """File, line and changed line of each fault that makes no difference."""
    listed = tomllib.loads(EQUIVALENT.read_text())["mutant"]
    return {(each["file"], each["before"], each["after"]) for each in listed}


def _change(spec: MutationSpec) -> tuple[str, str] | None:
    """The line that a fault changes, before and after; None where the behaviour stays.

    None too for what is no Python: the stars of `{**a}` and of `def f(*, a)` are no operators. And for what Cosmic Ray
    cannot do: it cannot replace an exception that is called by its module, `except errors.Conflict`.
    """
    source = spec.module_path.read_text()
    try:
        mutated = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
        if mutated is None or behaviour(mutated) == behaviour(source):
            return None
    except (AttributeError, SyntaxError):
        return None
    lines = zip(source.split("\n"), mutated.split("\n"), strict=False)
    return next((old.strip(), new.strip()) for old, new in lines if old != new)


def ordered_tests(file: str) -> list[str]:
    """The test files of a module's room, those first that are about the module by name, by import, by words."""
    path = Path(file)
    module = ".".join(path.with_suffix("").parts)
    words = _words(" ".join(path.with_suffix("").parts[2:]))
    tests: list[Path] = []
    for name in ROOMS[path.parts[1]]:
        found = Path(name)
        tests += [found] if found.is_file() else sorted(found.rglob("test_*.py"))

    def distance(test: Path) -> tuple[bool, bool, int]:
        return (
            test.stem != f"test_{path.stem}",
            re.search(rf"\b{re.escape(module)}\b", test.read_text()) is None,
            -len(words & _words(test.stem)),
        )

    return [str(test) for test in sorted(tests, key=distance)]


def _words(name: str) -> set[str]:
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", name.replace("_", " "))} - {"test"}


def _try_all(
    drawn: Iterator[Mutant], rooms: list[str], sample: int, workers: int
) -> Iterator[Mutant]:
    """Each fault as it is done with, until as many as asked for have met a test."""
    with _pool(workers) as pool:
        running_room = {room: pool.submit(_baseline, room) for room in rooms}
        baselines = {room: baseline.result() for room, baseline in running_room.items()}

        def start(count: int) -> set[Future[Mutant]]:
            return {
                pool.submit(_try, mutant, baselines[mutant.room]) for mutant in islice(drawn, count)
            }

        running = start(sample)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                mutant = each.result()
                running |= start(mutant.outcome == "stillborn")
                yield mutant


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that each work in a copy of this directory. However this process ends, all of theirs end with it."""
    context = multiprocessing.get_context("spawn")
    copies: Queue[str] = context.Queue()
    for number in range(workers):
        copy = f"{Path.cwd()}-{number}"
        shutil.copytree(Path.cwd(), copy)
        copies.put(copy)
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_settle, initargs=(copies, os.getpid())
    ) as pool:
        try:
            yield pool
        except BaseException:
            for child in multiprocessing.active_children():
                child.kill()
            raise


def _settle(copies: Queue[str], parent: int) -> None:
    child_process.end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    copy = copies.get()
    os.chdir(copy)
    os.environ["PYTHONPATH"] = copy
    os.environ.setdefault("CARERELAY_SHARED", str(ROOT.parent / "shared"))


def _command(tests: Iterable[str], *options: str, seconds: int = _TEST_SECONDS) -> str:
    """Runs tests so that they end with this process, none longer than so many seconds."""
    listed = Path(f"{Path.cwd()}-tests")
    listed.write_text("\n".join(tests))
    command = [sys.executable, *_PYTEST, f"--timeout={seconds}", *options]
    scratch = f"--basetemp={Path.cwd()}-scratch"
    return shlex.join([*child_process.launcher(), *command, scratch, f"@{listed}"])


@dataclass
class Baseline:
    """How long the tests of a room take on the unchanged code, in seconds, and where it is noted what each runs."""

    seconds: float
    coverage: Path


def _baseline(room: str) -> Baseline:
    started = time.monotonic()
    coverage = Path(f"{Path.cwd()}-coverage-{room}")
    os.environ["COVERAGE_FILE"] = str(coverage)
    tests = ordered_tests(f"app/{room}/__init__.py")
    command = _command(tests, *covering_tests.options(room), seconds=_BASELINE_TEST_SECONDS)
    outcome, output = run_tests(command, _BASELINE_SECONDS)
    if outcome != TestOutcome.SURVIVED:
        raise RoomFails(f"the tests of {room} fail on the unchanged code:\n{output}")
    return Baseline(time.monotonic() - started, coverage)


def _try(mutant: Mutant, baseline: Baseline) -> Mutant:
    """Put a fault into the copy, run the tests that meet it, take it out again."""
    started = time.monotonic()
    spec = MutationSpec(mutant.file, mutant.operator, mutant.occurrence, (0, 0), (0, 1))
    command = _command(_tests_of(mutant, baseline))
    result = mutate_and_test([spec], command, 30 + 3 * baseline.seconds)
    mutant.seconds = round(time.monotonic() - started, 1)
    mutant.diff = "\n".join((result.diff or "").splitlines()[1:])
    mutant.outcome, mutant.test = judge(result.test_outcome, result.output or "")
    return mutant


def _tests_of(mutant: Mutant, baseline: Baseline) -> list[str]:
    """The tests that run the changed lines, those of the likeliest file first; else all files of the room."""
    files = ordered_tests(mutant.file)
    lines = range(mutant.line, mutant.last_line + 1)
    covering = covering_tests.of(baseline.coverage, mutant.file, lines)
    return sorted(covering, key=lambda test: files.index(test.partition("::")[0])) or files


def judge(outcome: TestOutcome | None, output: str) -> tuple[str, str]:
    """What became of a fault, and the test that failed."""
    if outcome == TestOutcome.SURVIVED:
        return "survived", ""
    if outcome != TestOutcome.KILLED:
        raise RuntimeError(f"a fault could not be tried:\n{output}")
    failed = _FAILED.search(output)
    test = failed[1] if failed else ""
    if output == "timeout" or _HUNG in output:
        return "timeout", test
    return ("caught" if test else "stillborn"), test


def share(tried: list[Mutant]) -> float:
    """How many percent of those that met a test were caught."""
    counted = [mutant for mutant in tried if mutant.outcome != "stillborn"]
    caught = [mutant for mutant in counted if mutant.outcome != "survived"]
    return 100 * len(caught) / len(counted) if counted else 0


def summary(tried: list[Mutant]) -> str:
    """The figures in one line."""
    counts = [
        f"{sum(mutant.outcome == outcome for mutant in tried)} {outcome}"
        for outcome in ("caught", "timeout", "survived", "stillborn")
    ]
    return f"{share(tried):.1f} % caught: {', '.join(counts)}"


def _write(tried: list[Mutant], seed: int) -> None:
    order = ("survived", "timeout", "caught", "stillborn")
    ranked = sorted(
        tried, key=lambda mutant: (order.index(mutant.outcome), mutant.file, mutant.line)
    )
    lines = [f"{summary(tried)} (seed {seed})"]
    for mutant in ranked:
        lines += ["", str(mutant)]
        if mutant.outcome == "caught":
            lines += [f"  - {mutant.before}", f"  + {mutant.after}"]
        else:
            lines.append(mutant.diff)
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.with_suffix(".txt").write_text("\n".join(lines) + "\n")
    report = {"seed": seed, "percent": share(tried), "mutants": [asdict(each) for each in ranked]}
    OUTPUT.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
