"""Settings: what an operator may set, and that docs/settings.md says the same.

`python -m tests.test_settings` writes the table anew.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from app.settings import Settings

DOCS = Path(__file__).parent.parent / "docs" / "settings.md"
TABLE = re.compile(r"(?<=\n)\| Variable .*?\n\n", re.DOTALL)


def row(name: str, field: FieldInfo) -> str:
    """A setting's line in the table; a choice is shown with all it may be."""
    default = field.default
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    shown = "" if default in (None, "") else f"`{str(default).lower()}`"
    if isinstance(default, str | Path) and default not in ("", None):
        shown = f"`{default}`"
    choices = [choice for choice in choices_of(field.annotation) if choice]
    description = str(field.description)
    if choices:
        description += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"| `CARERELAY_{name.upper()}` | {shown} | {description} |"


def choices_of(annotation: Any) -> list[str]:
    found: list[str] = []
    for argument in get_args(annotation):
        found += [argument] if isinstance(argument, str) else choices_of(argument)
    return found


def table() -> str:
    """The table of all settings, in the order of the class."""
    rows = [row(name, field) for name, field in Settings.model_fields.items()]
    return "\n".join(["| Variable | Default | What it is |", "| --- | --- | --- |", *rows]) + "\n\n"


def test_the_documentation_lists_every_setting_as_it_is() -> None:
    found = TABLE.search(DOCS.read_text())
    assert found is not None
    assert found.group() == table(), "run `python -m tests.test_settings`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described_in_a_sentence(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith((".", "all.", "it."))


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARERELAY_PORT", "9000")
    monkeypatch.setenv("CARERELAY_SEARCH_HANDLING", "lenient")
    monkeypatch.setenv("CARERELAY_SKIP_IDENTICAL_UPDATES", "false")
    settings = Settings()
    assert (settings.port, settings.search_handling) == (9000, "lenient")
    assert settings.skip_identical_updates is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("port", "70000", id="port"),
        pytest.param("workers", "0", id="workers"),
        pytest.param("auth", "none", id="choice"),
        pytest.param("max_resource_bytes", str(16 * 1024 * 1024), id="over-mongodbs-limit"),
        pytest.param("max_resource_bytes", "1024", id="under-our-own-definitions"),
        pytest.param("conditional_delete", "all", id="another-choice"),
        pytest.param("delivery_timeout", "0", id="no-time"),
        pytest.param("allow_open", "perhaps", id="no-boolean"),
        pytest.param("metrics_token", "secret", id="easy-to-guess"),
        pytest.param("ready_event_age", "0", id="never-ready"),
        pytest.param("cors_origins", "app.example", id="a-name-is-no-origin"),
        pytest.param("cors_origins", "https://app.example/fhir", id="an-address-is-no-origin"),
        pytest.param("cors_origins", "https://*.app.example", id="no-pattern"),
        pytest.param("cors_origins", "https://app.example,*", id="all-or-some"),
        pytest.param("cors_origins", "null", id="anybodys-sandbox"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"CARERELAY_{name.upper()}", value)
    with pytest.raises(ValidationError, match=name):
        Settings()


if __name__ == "__main__":
    DOCS.write_text(TABLE.sub(lambda _: table(), DOCS.read_text()))
