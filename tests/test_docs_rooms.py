"""Every room has a map: the docstring of its `__init__` gives each of its modules and folders a line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import app

ROOT = Path(app.__file__).parent
ROOMS = sorted(init.parent for init in ROOT.rglob("__init__.py") if init.parent != ROOT)


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(ROOT).as_posix())
def test_a_room_names_each_of_its_files(room: Path) -> None:
    told = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
    lines = {line.split()[0] for line in told.splitlines() if len(line.split()) > 1}
    modules = {path.stem for path in room.glob("*.py")} - {"__init__"}
    folders = {f"{path.parent.name}/" for path in room.glob("*/__init__.py")}
    assert not (modules | folders) - lines
    assert {line for line in lines if line.endswith("/")} == folders
