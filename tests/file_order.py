"""The order of the test files: those that take longest first.

`--dist loadfile` gives a whole file to one worker. A long file that begins last leaves the other worker idle.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent
# Files of more than some ten seconds, the longest first; all others follow in the order of their names.
_LONGEST = (
    "examples_roundtrip",
    "access_matrix",
    "capabilities",
    "access_matrix_writes",
    "run",
    "injection",
    "subscription_endpoints",
    "stay",
    "obligations",
    "access_matrix_rights",
    "smart_commands",
    "search_cohort",
    "chaos",
    "subscription_delivery",
    "export",
    "cli",
    "care_plan_notices",
    "measure",
    "hardening",
    "search_store",
    "access",
    "search_property",
    "proof",
    "two_organizations_fuzz",
    "audit",
    "panel",
    "embedded",
    "fuzz",
    "starting_together",
    "load",
    "models_oracle",
    "definitions",
    "structure",
    "wheel",
)
_RANK = {_HERE / f"test_{name}.py": place for place, name in enumerate(_LONGEST)}


def pytest_configure(config: pytest.Config) -> None:
    """Have xdist hand the files out as they come, and not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if gone := [path.name for path in _RANK if not path.exists()]:
        raise pytest.UsageError(f"tests/file_order.py names files that are not there: {gone}")
    items.sort(key=lambda item: _RANK.get(item.path, len(_RANK)))
