"""The caller of an interaction: who asks, for which organisation, with which scopes.

It travels from the router into every interaction, search, operation and delivery, so that scopes, compartments,
consent and audit have one place to act. With `--auth off` everybody is `EVERYBODY`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """`organization` is a relative reference such as `Organization/hospital-1`; `scopes` are SMART scopes."""

    client_id: str
    organization: str | None = None
    scopes: tuple[str, ...] = ()


EVERYBODY = Caller("anonymous", scopes=("system/*.cruds",))
# The server's own work: loading topics, settling deliveries, timers.
SERVER = Caller("carerelay", scopes=("system/*.cruds",))
