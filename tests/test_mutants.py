"""What `make mutants` is told about the tree is true of it, and what it makes of Cosmic Ray's answers."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from cosmic_ray import work_item
from coverage import CoverageData

from tests import covering_tests, mutants
from tests.behaviour import behaviour

SOURCE = """
from __future__ import annotations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    LIMIT = 1

@dataclass(frozen=True)
class Page(Base, gc=False, total=False):
    size: int | None = 10

    @lru_cache(maxsize=8)
    def rows(self, *, most: int | None = 7) -> list[int] | None:
        log.info("asked for %s", most + 1)
        if most == 0:
            raise Empty(404, f"none of {most + 1}" + "rows")
        return [row for row, _ in zip(self.all, range(most), strict=True)]
"""


def _mutant(outcome: str) -> mutants.Mutant:
    return mutants.Mutant("audit", "app/audit/log.py", 1, 1, "core/AddNot", 0, "a", "b", outcome)


def test_the_rooms_and_their_tests_exist() -> None:
    for room, tests in mutants.ROOMS.items():
        assert (mutants.ROOT / "app" / room).is_dir()
        assert all((mutants.ROOT / each).exists() for each in tests)


@pytest.mark.parametrize(
    ("file", "first"),
    [
        pytest.param("app/search/words.py", "tests/search/test_words.py", id="by-name"),
        pytest.param("app/store/reindexing.py", "tests/store/test_reindex.py", id="by-import"),
    ],
)
def test_the_tests_about_a_module_come_first_and_the_others_after_them(
    file: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mutants.ROOT)
    ordered = mutants.ordered_tests(file)
    assert ordered[0] == first
    assert sorted(ordered) == sorted(mutants.ordered_tests(str(Path(file).with_name("other.py"))))


@pytest.mark.parametrize(
    ("lines", "tests"),
    [
        pytest.param(range(4, 5), ["tests/a.py::b[x|y]", "tests/a.py::c"], id="run"),
        pytest.param(range(5, 6), ["tests/a.py::b[x|y]", "tests/a.py::c"], id="inside-a-statement"),
        pytest.param(range(1, 2), [], id="run-by-the-import"),
        pytest.param(range(3, 4), [], id="declaration"),
    ],
)
def test_a_fault_meets_the_tests_that_run_its_line(
    tmp_path: Path, lines: range, tests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("app").mkdir()
    Path("app/rows.py").write_text("ENOUGH = 9\n\ndef f(a=1):\n    return max(\n        a, 2)\n")
    data = CoverageData(basename=str(tmp_path / "coverage"))
    for context, ran in {
        "": [1, 3],
        "tests/a.py::b[x|y]|run": [4],
        "tests/a.py::c|setup": [4],
        "tests/a.py::c|run": [4],
    }.items():
        data.set_context(context)
        data.add_lines({"/elsewhere/app/rows.py": ran})
    data.write()
    assert sorted(covering_tests.of(tmp_path / "coverage", "app/rows.py", lines)) == tests


def test_every_listed_equivalent_still_stands_in_the_code_and_says_why() -> None:
    for each in tomllib.loads(mutants.EQUIVALENT.read_text())["mutant"]:
        lines = [line.strip() for line in (mutants.ROOT / each["file"]).read_text().splitlines()]
        assert each["before"] in lines, each
        assert each["why"]


@pytest.mark.parametrize(
    ("old", "new", "is_behaviour"),
    [
        pytest.param("size: int | None", "size: int & None", False, id="annotation"),
        pytest.param("most: int | None", "most: int & None", False, id="argument"),
        pytest.param("list[int] | None", "list[int] & None", False, id="return"),
        pytest.param("LIMIT = 1", "LIMIT = 2", False, id="type-checking"),
        pytest.param("frozen=True", "frozen=False", False, id="frozen"),
        pytest.param("gc=False", "gc=True", False, id="gc"),
        pytest.param("total=False", "total=True", False, id="total"),
        pytest.param("(self, *,", "(self, /,", False, id="how-an-argument-is-passed"),
        pytest.param("= 7)", "= 8)", True, id="default-of-an-argument"),
        pytest.param("@lru_cache(maxsize=8)\n", "\n", False, id="cache"),
        pytest.param("strict=True", "strict=False", False, id="strict-zip"),
        pytest.param('%s", most + 1', '%s", most - 1', False, id="log"),
        pytest.param("{most + 1}", "{most - 1}", False, id="error-text"),
        pytest.param('}" + "rows', '}" - "rows', False, id="joined-error-text"),
        pytest.param("404", "405", True, id="error-code"),
        pytest.param("= 10", "= 11", True, id="default"),
        pytest.param("most == 0", "most != 0", True, id="condition"),
    ],
)
def test_what_is_behaviour(old: str, new: str, is_behaviour: bool) -> None:
    assert old in SOURCE
    assert (behaviour(SOURCE.replace(old, new)) != behaviour(SOURCE)) is is_behaviour


def test_an_annotation_that_checks_is_behaviour() -> None:
    source = "count: Annotated[int, Field(ge=1)]"
    assert behaviour(source) != behaviour(source.replace("1", "2"))


@pytest.mark.parametrize(
    ("killed", "output", "expected"),
    [
        pytest.param(False, "9 passed", ("survived", ""), id="survived"),
        pytest.param(
            True,
            "FAILED tests/a.py::b[c d] - assert",
            ("caught", "tests/a.py::b[c d]"),
            id="failed",
        ),
        pytest.param(True, "ERROR tests/a.py::b - Boom", ("caught", "tests/a.py::b"), id="set-up"),
        pytest.param(True, "ERROR tests/a.py - TypeError", ("stillborn", ""), id="no-import"),
        pytest.param(True, "", ("stillborn", ""), id="no-conftest"),
        pytest.param(True, "timeout", ("timeout", ""), id="hung"),
        pytest.param(
            True,
            "FAILED tests/a.py::b - Failed: Timeout (>60.0s) from pytest-timeout.",
            ("timeout", "tests/a.py::b"),
            id="test-hung",
        ),
    ],
)
def test_what_became_of_a_fault(killed: bool, output: str, expected: tuple[str, str]) -> None:
    outcome = work_item.TestOutcome.KILLED if killed else work_item.TestOutcome.SURVIVED
    assert mutants.judge(outcome, output) == expected


def test_the_stillborn_do_not_count_and_the_hung_do() -> None:
    tried = [_mutant(each) for each in ("caught", "timeout", "survived", "stillborn")]
    assert mutants.share(tried) == pytest.approx(66.67, abs=0.01)
    assert mutants.share([]) == 0
