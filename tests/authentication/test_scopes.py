"""SMART scopes by themselves: what their texts mean, and what is left of them."""

from __future__ import annotations

import pytest

from app.authentication.scopes import CONSENT_AUTHORITY, Scopes, intersect, parse


@pytest.mark.parametrize(
    ("text", "resource_type", "actions", "restriction"),
    [
        pytest.param("system/Patient.read", "Patient", "rs", "", id="v1-read"),
        pytest.param("system/Patient.write", "Patient", "cud", "", id="v1-write"),
        pytest.param("system/*.*", "*", "cruds", "", id="v1-everything"),
        pytest.param("system/Patient.rs", "Patient", "rs", "", id="v2"),
        pytest.param("system/*.cruds", "*", "cruds", "", id="v2-everything"),
        pytest.param(
            "system/Encounter.rs?patient=Patient/1",
            *("Encounter", "rs", "patient=Patient/1"),
            id="v2-restricted",
        ),
    ],
)
def test_a_scope_is_read(text: str, resource_type: str, actions: str, restriction: str) -> None:
    found = parse(text)
    assert (found.resource_type, found.actions, found.restriction) == (
        resource_type,
        actions,
        restriction,
    )


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("patient/Patient.rs", id="patient"),
        pytest.param("user/Patient.rs", id="user"),
        pytest.param("system/Patient.sr", id="wrong-order"),
        pytest.param("system/Patient.rr", id="twice"),
        pytest.param("system/Patient.x", id="unknown-right"),
        pytest.param("system/Patient.", id="no-right"),
        pytest.param("system/Patient", id="no-dot"),
        pytest.param("system/Nothing.rs", id="unknown-type"),
        pytest.param("system/Patient.read?active=true", id="v1-restricted"),
        pytest.param("system/Patient.rs?", id="empty-restriction"),
        pytest.param("openid", id="openid"),
        pytest.param("system/Patient.rs?name=" + "x" * 600, id="too-long"),
        pytest.param("", id="empty"),
    ],
)
def test_what_is_no_system_scope_grants_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="scope"):
        parse(text)
    assert Scopes.of([text]).each == ()


def test_rights_are_those_of_all_scopes_together() -> None:
    scopes = Scopes.of(["system/Patient.r", "system/*.s", "system/Encounter.u?status=finished"])
    assert scopes.restrictions("Patient", "r") == ()
    assert scopes.restrictions("Patient", "s") == ()
    assert scopes.restrictions("Encounter", "u") == ("status=finished",)
    assert scopes.restrictions("Encounter", "r") is None
    assert not scopes.allows("Patient", "c")


def test_an_unrestricted_scope_lifts_the_restriction_of_another() -> None:
    scopes = Scopes.of(["system/Encounter.rs?status=finished", "system/*.r"])
    assert scopes.restrictions("Encounter", "r") == ()
    assert scopes.restrictions("Encounter", "s") == ("status=finished",)


@pytest.mark.parametrize(
    ("requested", "registered", "granted"),
    [
        pytest.param(
            *(["system/Patient.read"], ["system/*.cruds"], ("system/Patient.read",)),
            id="as-written",
        ),
        pytest.param(
            *(["system/*.cruds"], ["system/Patient.rs"], ("system/Patient.rs",)), id="narrowed"
        ),
        pytest.param(["system/Patient.c"], ["system/Patient.rs"], (), id="nothing-in-common"),
        pytest.param(["system/Patient.r"], ["system/Encounter.r"], (), id="other-type"),
        pytest.param(
            ["system/Encounter.rs"],
            ["system/Encounter.rs?status=finished"],
            ("system/Encounter.rs?status=finished",),
            id="restriction-of-the-registration",
        ),
        pytest.param(
            ["system/Encounter.rs?class=IMP"],
            ["system/Encounter.r?status=finished"],
            ("system/Encounter.r?class=IMP&status=finished",),
            id="both-restrictions",
        ),
        pytest.param(["patient/*.rs", "openid"], ["system/*.cruds"], (), id="foreign"),
        pytest.param([CONSENT_AUTHORITY], ["system/*.cruds"], (), id="own-only-by-name"),
        pytest.param(
            [CONSENT_AUTHORITY, "system/*.r"],
            [CONSENT_AUTHORITY],
            (CONSENT_AUTHORITY,),
            id="own-grants-nothing-else",
        ),
    ],
)
def test_what_is_granted_is_what_both_have(
    requested: list[str], registered: list[str], granted: tuple[str, ...]
) -> None:
    assert intersect(requested, registered) == granted
