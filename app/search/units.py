"""UCUM units: which are commensurable, and how their values become comparable. https://ucum.org/ucum

A unit is a factor, and for temperatures an offset, to a unit of base dimensions. Factors of the units that R4 names as
common lie in `profiles/ucum.json`, written by `profiles/units.py`; others are worked out by `ucumvert` at their first
use, which costs the process two seconds once, for loading it. Arbitrary units (`[iU]`) compare among themselves only;
logarithmic ones, and those that are mere annotation (`{score}`), with no other unit at all.
"""

from __future__ import annotations

from decimal import Context, Decimal
from functools import cache, lru_cache
from typing import Any

import msgspec

from app.fhir.definitions import PROFILES

UCUM = "http://unitsofmeasure.org"
_LONGEST = 64
# The library would work out any power of ten, however long it takes.
_POWER = 30
# Factors come from floating point; products are rounded further, so that 60 /h and 1 /min meet.
_FACTOR, _VALUE = Context(prec=14), Context(prec=12)
_TEMPERATURES = frozenset({"Cel", "[degF]"})
# The library reads `mg%` as milligram times percent instead of a thousandth of g%.
_MISREAD = frozenset({"g%"})


class Unit(msgspec.Struct, frozen=True, array_like=True):
    """`value * factor + offset` is the value in the `base` unit; units with the same base are commensurable."""

    base: str
    factor: Decimal
    offset: Decimal = Decimal(0)

    def canonical(self, value: Decimal | int) -> Decimal:
        """A value of this unit in the base unit, to 12 digits."""
        exact = Decimal(value)
        return _VALUE.plus(exact * self.factor + self.offset) if exact.is_finite() else exact


@lru_cache(maxsize=4096)
def unit(code: str) -> Unit | None:
    """The unit of a UCUM code; None where it cannot be compared with any other."""
    common = _common()
    if code in common:
        return common[code]
    return work_out(code) if len(code) <= _LONGEST else None


@cache
def _common() -> dict[str, Unit | None]:
    text = (PROFILES / "ucum.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, Unit | None])


def work_out(code: str) -> Unit | None:
    """The unit by the library's rules, whatever the table says."""
    library = _library()
    try:
        tree = library.parser.parse(code)
        if any(abs(int(power)) > _POWER for power in _tokens(tree, "EXPONENT")):
            return None
        atoms = set(_tokens(tree, "UNIT"))
        arbitrary = {"[iU]" if atom == "[IU]" else atom for atom in atoms & library.arbitrary}
        if not atoms or atoms & library.incomparable or len(arbitrary) > 1:
            return None
        if any("/" in code.partition(atom)[0] for atom in atoms & library.arbitrary):
            return None
        if atoms & _TEMPERATURES and code not in _TEMPERATURES:
            return None
        one = library.registry.from_ucum(code)
        zero = library.registry.Quantity(0, one.units).to_base_units()
        one = one.to_base_units()
        factor, offset = _decimal(one.magnitude - zero.magnitude), _decimal(zero.magnitude)
    except Exception:  # whatever a parser makes of hostile text: it is no unit
        return None
    base = " ".join([f"{one.units:~C}" or "1", *arbitrary])
    return Unit(base, factor, offset) if factor.is_finite() and factor > 0 else None


def _decimal(number: Any) -> Decimal:
    return _FACTOR.create_decimal(repr(number)).normalize()


def _tokens(tree: Any, kind: str) -> list[str]:
    """The texts of a kind in a parsed code: UNIT atoms are without their prefixes."""
    return [str(token) for token in tree.scan_values(lambda token: token.type.startswith(kind))]


class _Library:
    """ucumvert, loaded, and what of its units must not be taken for plain factors."""

    def __init__(self) -> None:
        import ucumvert  # type: ignore[import-untyped]
        from ucumvert import xml_util

        self.parser: Any = ucumvert.get_ucum_parser()
        self.registry: Any = ucumvert.PintUcumRegistry()
        known = xml_util.get_units_with_full_definition()
        special = {unit.code_cs for unit in known if unit.is_special}
        self.arbitrary = frozenset(unit.code_cs for unit in known if unit.is_arbitrary)
        self.incomparable = (special | _MISREAD) - _TEMPERATURES


@cache
def _library() -> _Library:
    return _Library()
