"""UCUM units: the table and the library agree, and what is not comparable is not compared."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import pytest

from app.search.units import unit, work_out


@pytest.mark.parametrize(
    ("value", "code", "same", "other"),
    [
        pytest.param("100", "mg/dL", "1", "g/L", id="concentration"),
        pytest.param("98.6", "[degF]", "37", "Cel", id="temperature"),
        pytest.param("60", "/h", "1", "/min", id="rate"),
        pytest.param("1", "kg", "1000", "g", id="mass"),
        pytest.param("1", "[in_i]", "2.54", "cm", id="inch"),
        pytest.param("1", "[lb_av]", "453.59237", "g", id="pound"),
        pytest.param("7", "d", "1", "wk", id="time"),
        pytest.param("1", "[iU]/mL", "1000", "[IU]/L", id="arbitrary"),
        pytest.param("1", "10*3/uL", "1", "10*9/L", id="count"),
        pytest.param("760", "mm[Hg]", "101.325", "kPa", id="pressure"),
        pytest.param("50", "%", "500", "[ppth]", id="percent"),
    ],
)
def test_same_amount_in_two_units(value: str, code: str, same: str, other: str) -> None:
    left, right = unit(code), unit(other)
    assert left is not None
    assert right is not None
    assert left.base == right.base
    difference = left.canonical(Decimal(value)) - right.canonical(Decimal(same))
    assert abs(difference) <= abs(left.canonical(Decimal(value))) * Decimal("1e-6")


@pytest.mark.parametrize(
    "code",
    [
        "{score}",
        "[pH]",
        "dB",
        "g%",
        "1",
        "bogus",
        "",
        " mg",
        "/[iU]",
        "mg" * 100,
        "10*99999999",
        "Cel/m",
    ],
)
def test_unit_that_compares_with_no_other(code: str) -> None:
    assert unit(code) is None


@pytest.mark.parametrize(
    "code", ["mg/dL", "Cel", "[degF]", "m[IU]/mL", "{score}", "mL/min/{1.73_m2}"]
)
def test_the_table_is_what_the_library_says(code: str) -> None:
    assert unit(code) == work_out(code)


@pytest.mark.processes
@pytest.mark.slow
def test_importing_search_does_not_load_the_library() -> None:
    """Nor does a common unit; it takes two seconds."""
    script = (
        "import sys, app.main; from app.search.units import unit; assert unit('mg/dL');"
        "assert not {'pint', 'ucumvert'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
