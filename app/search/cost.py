"""What a search may ask for: each has a budget, and everything that it is made of takes something of it.

A search takes the database's time by how many values it compares with, and how: a request of 200 kB could keep MongoDB
busy for a minute, or the process for seconds. What asks for more than the budget is refused before anything is read.
"""

from __future__ import annotations

from app.errors import Unprocessable

# A parameter, or a test of `_filter`: each candidate is looked at once more. What is negated has the more candidates.
PARAMETER = 20
NEGATION = 20
# A value that an index finds, or a name of an element.
VALUE = 1
# A string's beginning: a range of the index for each.
BEGINNING = 5
# A text that is looked for inside of others, in all that the parameter has or in every candidate.
PATTERN = 50
# A word of a text; a resource has at most 200 of each kind.
WORD = 10
# A step of a chain, for each type that it leads to.
STEP = 10
# An inclusion is a query for each page, one of everything a query for each type.
INCLUSION = 40
EVERYTHING = 500
# What has to be read and worked out first: a value set, a place in a code system, a List.
STORED = 100

_SORT_KEYS = 8
_NEGATIONS = frozenset({"not", "not-in", "missing"})
_STORED_MODIFIERS = frozenset({"in", "not-in"})
_PATTERN_MODIFIERS = frozenset({"contains", "text"})


class Budget:
    """What is left of `most`; None is without end."""

    __slots__ = ("_left", "_most")

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._left = most

    def spend(self, cost: int, name: str, times: int = 1) -> None:
        """Take what `times` things of a parameter cost. Raises Unprocessable where it is not there."""
        if self._left is None:
            return
        self._left -= cost * times
        if self._left < 0:
            raise Unprocessable(
                f"The search asks for too much, at the latest with '{name}': its parameters, values, words, tests, "
                f"steps and inclusions may cost {self._most} together. Search in smaller steps.",
                code="too-costly",
                expression=f"http.{name.partition(':')[0]}",
            )


def check_sort_keys(count: int) -> None:
    """Raises Unprocessable for more sort keys than a page can follow."""
    if count > _SORT_KEYS:
        raise Unprocessable(
            f"'_sort' may name at most {_SORT_KEYS} parameters",
            code="too-costly",
            expression="http._sort",
        )


def of_parameter(modifier: str | None) -> int:
    """What a parameter costs beside its values."""
    return PARAMETER + NEGATION if modifier in _NEGATIONS else PARAMETER


def of_value(type_: str, modifier: str | None) -> int:
    """What a value costs of a parameter of this type with this modifier."""
    if modifier in _STORED_MODIFIERS or (type_ == "token" and modifier in ("above", "below")):
        return STORED
    if modifier in _PATTERN_MODIFIERS:
        return PATTERN
    if type_ == "string" and modifier != "exact":
        return BEGINNING
    return VALUE
