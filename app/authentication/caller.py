"""The caller of an interaction: the client, its organisation, role and scopes.

It travels from the router into every interaction, search, operation and delivery, so that scopes, compartments,
consent and audit have one place to act. With `--auth off` everybody is `EVERYBODY`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# An organization's role towards its patients; docs/access.md says what each may see and write.
Role = Literal[
    "practice",
    "hospital",
    "plan",
    "state",
    "directory",
    "consent-authority",
    "administrator",
    "everybody",
    "server",
]


@dataclass(frozen=True, slots=True)
class Caller:
    """`organization` is a relative reference such as `Organization/hospital-1`; `scopes` are SMART scopes.

    Without a role nothing is allowed.
    """

    client_id: str
    organization: str | None = None
    role: Role | None = None
    scopes: tuple[str, ...] = ()


EVERYBODY = Caller("anonymous", role="everybody", scopes=("system/*.cruds",))
# The server's own work: loading topics, settling deliveries, timers.
SERVER = Caller("carerelay", role="server", scopes=("system/*.cruds",))
# The caller of a request without a token, or of work whose client is gone: no role, no scopes.
NOBODY = Caller("anonymous")
# Callers without limits. No token ever makes one of them.
UNLIMITED = (EVERYBODY, SERVER)
