"""The only reader of the environment: one typed class; a variable is `CARERELAY_` and the field's name."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024
KEY_FILE = "secret.key"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.\-]*://(?:[a-z0-9_.\-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
# Who has the Tasks of a work list (app/fhir/codes.py, TASK_QUEUES).
_TASK_OWNER = re.compile(
    r"(?:care-management|consent|contracts|operations|patient-records|provider-directory)"
    r"=(?:CareTeam|HealthcareService|Organization|Practitioner|PractitionerRole)/[A-Za-z0-9\-.]{1,64}"
)
_DEFAULT_PORT = re.compile(r"^(https://.+):443$|^(http://.+):80$")


def _home(variable: str, default: str) -> Path:
    """The server's part of one of the user's directories.

    Raises RuntimeError where the user has none. https://specifications.freedesktop.org/basedir-spec/latest/
    """
    named = os.environ.get(variable, "")
    return (Path(named) if named.startswith("/") else Path.home() / default) / "carerelay"


class Settings(BaseSettings):
    """What an operator may set. The defaults serve a laptop; docs/settings.md lists them all."""

    model_config = SettingsConfigDict(env_prefix="CARERELAY_", extra="ignore", frozen=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    workers: int = Field(1, ge=1, description="Number of server processes.")
    base_url: str = Field(
        "",
        description="Public FHIR base, as https://fhir.example.org/fhir; by default the address of each request.",
    )
    auth: Literal["off", "smart"] | None = Field(
        None,
        description="Authorization: off, or smart (docs/smart.md). Unset means off on loopback and smart elsewhere.",
    )
    hosts: str = Field(
        "",
        description="Names, separated by commas, that a server without authorization answers to beside loopback, its "
        "address and the name in the base URL.",
    )
    allow_open: bool = Field(
        False,
        description="Accept --auth off, or tokens without TLS, beyond loopback, with a loud warning.",
    )
    token: SecretStr = Field(
        SecretStr(""),
        description="Access token that `carerelay load`, `deliveries` and `report` show to a server.",
    )
    oidc_issuer: str = Field(
        "",
        description="Issuer of an outside OpenID provider whose access tokens are taken too: docs/smart.md.",
    )
    oidc_audience: str = Field(
        "", description="Audience that its tokens are made for; needed where there is an issuer."
    )
    oidc_client_claim: str = Field(
        "client_id", description="Claim of its tokens that names a client of the registry."
    )
    oidc_scopes_claim: str = Field("scope", description="Claim of its tokens with the scopes.")
    tls_certificate: Path | None = Field(
        None, description="PEM file with the server's certificate and its chain: docs/hardening.md."
    )
    tls_key: Path | None = Field(
        None, description="PEM file with its private key; unset where the certificate's has it."
    )
    trusted_proxy: str = Field(
        "",
        description="Addresses and CIDRs, by commas, whose X-Forwarded-Proto and X-Forwarded-For are believed.",
    )
    rate_limit: float | None = Field(
        None,
        ge=0,
        description="Requests a second of one client, or address, in each process; 0 for no limit. "
        "Unset means 200 with authorization and none without.",
    )
    rate_burst: float = Field(
        2.0, gt=0, description="Seconds of requests that a client may bring at once after a pause."
    )
    token_rate_limit: float | None = Field(
        None,
        ge=0,
        description="Requests for tokens a second of one address, as rate_limit. Unset means 5 with authorization.",
    )
    max_concurrent_requests: int | None = Field(
        None,
        ge=0,
        description="Requests of one client, or address, under way at once in each process; 0 for any. "
        "Unset means 256 with authorization and any without.",
    )
    websocket_rate_limit: float | None = Field(
        None,
        ge=0,
        description="Websocket handshakes of one address a second, as rate_limit. Unset means 5 with authorization.",
    )
    max_websockets: int | None = Field(
        None,
        ge=0,
        description="Websockets of one client open at once in each process, and of one address that have bound "
        "nothing yet; 0 for any. Unset means 64 with authorization and any without.",
    )
    request_timeout: float = Field(
        120.0, gt=0, description="Seconds until an answer is given up: 503, and its work cancelled."
    )
    body_timeout: float = Field(
        20.0,
        gt=0,
        description="Seconds a body may take to arrive, besides one for each 16 KiB of it: 408.",
    )

    metrics_token: SecretStr = Field(
        SecretStr(""),
        description="Bearer token that may read /metrics, beside administrators; at least 16 characters.",
    )
    metrics_directory: Path | None = Field(
        None,
        description="Directory in which the workers of one server add up their metrics; unset makes a temporary one.",
    )
    ready_event_age: float = Field(
        60.0,
        gt=0,
        description="Seconds for which a committed event may wait to be matched before /readyz says 503.",
    )
    ready_delivery_age: float = Field(
        60.0,
        gt=0,
        description="Seconds for which a delivery that is due may wait to be begun before /readyz says 503.",
    )

    data: Path = Field(Path("data"), description="Directory for the embedded database.")
    mongodb_uri: str = Field(
        "",
        description="MongoDB connection string (a replica set): docs/mongodb.md; empty starts the embedded one.",
    )
    mongodb_database: str = Field("carerelay", description="Database name.")
    mongodb_driver: Literal["pymongo", "motor"] = Field(
        "pymongo", description="Driver: the PyMongo Async API, or Motor."
    )

    max_resource_bytes: int = Field(
        8 * MIB, ge=64 * 1024, le=15 * MIB, description="Largest resource accepted, in bytes."
    )
    max_binary_bytes: int = Field(
        8 * MIB,
        ge=64 * 1024,
        le=11 * MIB,
        description="Largest content of a Binary, in bytes; as base64 it takes a third more in the database.",
    )
    max_bundle_bytes: int = Field(
        64 * MIB, ge=1024, description="Largest Bundle accepted at the server's root, in bytes."
    )
    max_bundle_entries: int = Field(
        10_000, ge=1, description="Most entries of one batch or transaction."
    )
    max_elements: int = Field(
        1_000_000,
        ge=256 * 1024,
        description="Most elements (objects, lists, values) of one body; beyond it answers 422 too-costly.",
    )
    large_body_timeout: float = Field(
        60.0,
        gt=0,
        description="Seconds that decoding, patching or validating a large body may take; then 422 too-costly.",
    )
    max_bytes_under_way: int = Field(
        128 * MIB,
        ge=MIB,
        description="Bytes of large bodies of one client, or address, under way at once in each process; "
        "beyond, 429. One body alone is always taken.",
    )
    max_total_bytes_under_way: int = Field(
        256 * MIB,
        ge=MIB,
        description="The same of all clients together; beyond, 503.",
    )
    max_url_bytes: int = Field(
        8192, ge=256, description="Longest path and query of a request, in bytes."
    )
    cors_origins: str = Field(
        "",
        description="Origins such as https://app.example.org, separated by commas, whose pages may call the server "
        "(CORS); * for all.",
    )
    search_handling: Literal["strict", "lenient"] = Field(
        "strict",
        description="What happens to unknown search parameters unless Prefer: handling says otherwise.",
    )
    ignored_parameters: str = Field(
        "",
        pattern=r"^([A-Za-z_][A-Za-z0-9_-]*(, *[A-Za-z_][A-Za-z0-9_-]*)*)?$",
        description="Names of request parameters, separated by commas, that narrow nothing and are left out with a "
        "warning, beside _totalMethod, _, _t and _dc (docs/search.md).",
    )
    default_count: int = Field(50, ge=1, description="Page size where _count is not given.")
    search_words: bool = Field(
        True,
        description="Index the words of resources for _text and _content; after a change, POST $reindex.",
    )
    search_explain: bool = Field(
        False, description="Answer _explain=true with the database's plan; not for outsiders."
    )
    search_snapshot: bool = Field(
        False,
        description="All pages of a search show the database as it was at the first, for about five minutes.",
    )
    page_link_lifetime: float = Field(
        86_400, gt=0, description="Seconds after which the page links of a search are answered 410."
    )
    max_kept_searches: int = Field(
        100,
        ge=1,
        description="Most searches too long for a URL that are kept for the page links of one client.",
    )
    max_count: int = Field(1000, ge=1, description="Largest page size.")

    export_hours: float = Field(
        24, gt=0, description="Hours for which the files of a bulk export can be fetched."
    )
    max_exports: int = Field(
        4, ge=1, description="Most bulk exports that wait or are under way at once; beyond, 429."
    )
    max_exports_per_client: int | None = Field(
        None,
        ge=1,
        description="Of these, most of one client that is no administrator. Unset means half of max_exports with "
        "authorization and any without.",
    )
    max_subscriptions_per_client: int | None = Field(
        None,
        ge=0,
        description="Most Subscriptions that are not off of one client that is no administrator; beyond, 403; 0 for "
        "any. Unset means 1,000 with authorization and any without.",
    )

    max_chain_found: int = Field(
        5_000,
        ge=1,
        description="Resources that a step of a chained search may find before the search starts from its other side.",
    )
    max_chain_examined: int = Field(
        100_000,
        ge=1,
        description="Candidates that one page of a search driven so may examine; beyond it answers 422 too-costly.",
    )
    max_criteria_bytes: int = Field(
        256 * 1024,
        ge=1024,
        description="Longest criteria of a Subscription, its filters included, in bytes; beyond, 422 too-costly.",
    )
    max_search_cost: int = Field(
        2_000,
        ge=100,
        description="What the values, words, tests, steps and inclusions of one search may cost: docs/search.md.",
    )
    max_included: int = Field(
        1_000, ge=1, description="Most resources that _include and _revinclude add to one page."
    )

    skip_identical_updates: bool = Field(
        True, description="An update that changes nothing makes no new version."
    )
    referential_integrity: Literal["off", "checked"] = Field(
        "off", description="Whether references must lead somewhere, on write and on delete."
    )
    conditional_delete: Literal["single", "multiple"] = Field(
        "single", description="Whether a conditional delete may delete more than one resource."
    )

    hra_questionnaires: str = Field(
        "http://carerelay.example/Questionnaire/health-risk-assessment",
        description="Canonical URLs, comma separated, of the questionnaires that are health risk assessments.",
    )
    hra_lookback_days: int = Field(
        90,
        ge=0,
        description="A health risk assessment made at most so many days before an enrolment counts as its first.",
    )
    continuity_days: int = Field(
        90,
        ge=1,
        description="Days for which a new member's earlier plan of care is honoured.",
    )
    continuity_payors: str = Field(
        "",
        description="Organizations, by commas, whose new Coverages begin continuity of care; empty for any payor.",
    )
    plan_quiet_period: int = Field(
        900,
        ge=0,
        description="Seconds for which changes of a care plan are gathered into one notice; 0 sends each at once.",
    )
    task_owners: str = Field(
        "",
        description="Whose the Tasks of each work list are, as care-management=Organization/o1, separated by commas: "
        "docs/case-management.md.",
    )
    test_clock: bool = Field(
        False,
        description="Let `carerelay clock` move the calendar of this server's database, for tests and demonstrations: "
        "docs/clock.md.",
    )
    attribution: str = Field(
        "care-team,general-practitioner,group",
        pattern=r"^(care-team|general-practitioner|group)(,(care-team|general-practitioner|group))*$",
        description="Where a patient's PCP is looked for; the first that names anybody wins: docs/routing.md.",
    )
    facilities: Path | None = Field(
        None,
        description="JSON file that says what facilities are (hospital, snf ...) by identifier: docs/routing.md.",
    )
    endpoint_subscriptions: bool | Literal["confirmed"] = Field(
        False,
        description="Keep a Subscription for each active FHIR Endpoint of a primary care practice; `confirmed`, where "
        "somebody stands for its address: docs/routing.md.",
    )
    endpoint_content: Literal["empty", "id-only", "full-resource"] = Field(
        "id-only", description="How much the notices of these Subscriptions tell."
    )
    unrouted: bool = Field(
        True,
        description="Say in the ledger and the review queue when no primary care practice can be told of an event.",
    )
    endpoint_topics: str = Field(
        "encounter-admission,encounter-discharge,encounter-transfer,encounter-cancelled,careplan-change,"
        "careplan-annual-review,letter",
        description="Topics of these Subscriptions, separated by commas: names under the topic base, or canonicals.",
    )
    topic_base: str = Field(
        "http://carerelay.example/SubscriptionTopic/",
        description="Canonical base of the server's own SubscriptionTopics.",
    )
    topics: Path | None = Field(
        None,
        description="Directory of further SubscriptionTopics (R5-shaped JSON), see docs/topics.md.",
    )
    carequality_topics: bool = Field(
        False,
        description="Take Subscriptions to Carequality's topics, as to our own that tell the same: docs/topics.md.",
    )
    contracts: Path | None = Field(
        None,
        description="JSON file, or directory of them, with the contracts that notices are owed by: docs/contracts.md.",
    )
    publish_notices: bool = Field(
        True,
        description="Keep a Communication and an AuditEvent for each notice of the server's own topics: docs/proof.md.",
    )
    time_zone: str = Field(
        "UTC",
        description="Time zone (IANA name) of facilities that do not say theirs, for calendar days: docs/proof.md.",
    )
    labelled_content: Literal["id-only", "withhold"] = Field(
        "id-only",
        description="What becomes of notices about content labelled sensitive or restricted, see docs/consent.md.",
    )
    egress_allow: str = Field(
        "",
        description="Hosts and CIDRs, separated by commas, that deliveries may go to beside public addresses.",
    )
    delivery_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds a delivery attempt may take where the Subscription does not say.",
    )
    delivery_window: float = Field(
        72 * 3600, gt=0, description="Seconds during which a failing delivery is tried again."
    )
    refusal_window: float = Field(
        6 * 3600,
        ge=0,
        description="Seconds during which a delivery is tried again that is answered 401, 403 or 404; 0: not at all.",
    )
    delivery_retention_days: float = Field(
        90,
        ge=4,
        description="Days for which deliveries are kept, and with them what $events and $resend can tell.",
    )
    event_retention_days: float = Field(
        7, ge=1, description="Days for which the outbox keeps events that are done."
    )
    message_retention_days: float = Field(
        30,
        ge=1,
        description="Days for which a message that comes again is known, and answered as the first time.",
    )
    audit: Literal["off", "best-effort", "required"] | None = Field(
        None,
        description="Whether all is put on record, or else refused; unset: required with smart (docs/audit.md).",
    )
    audit_head_directory: Path | None = Field(
        None,
        description="Directory for what is kept of the audit outside of the database; unset: ~/.local/state/carerelay.",
    )
    audit_syslog: str = Field(
        "",
        pattern=r"^(/.+|[^/]+:\d+)?$",
        description="Syslog that hears each minute how far the audit has come: a socket's path, or host:port by UDP.",
    )
    audit_retention_days: float = Field(
        2190, ge=1, description="Days for which the audit is kept; six years as HIPAA asks."
    )

    secret_key: SecretStr = Field(
        SecretStr(""),
        description="Keys that encrypt secrets at rest (32 bytes each, base64url), newest first, separated by commas.",
    )
    secret_key_file: Path | None = Field(
        None,
        description="File with these keys, one a line; without either, the server makes one: docs/delivery.md.",
    )
    endpoints_file: Path | None = Field(
        None,
        description="JSON file with what endpoints ask for (signatures, certificates, tokens): docs/delivery.md.",
    )

    smtp_host: str = Field(
        "", description="SMTP server for the email channel; without one no mail is sent."
    )
    smtp_port: int = Field(587, ge=1, le=65535, description="Port of the SMTP server.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="How the connection to the SMTP server is encrypted."
    )
    smtp_user: str = Field("", description="User at the SMTP server; empty for none.")
    smtp_password: SecretStr = Field(SecretStr(""), description="Password at the SMTP server.")
    smtp_from: str = Field(
        "carerelay@localhost", description="Sender address of mail from the email channel."
    )
    smtp_secure: bool = Field(
        False,
        description="Mail is secured all the way to its reader (as Direct is), so it may carry whole resources.",
    )

    @property
    def state_home(self) -> Path:
        """Where the server keeps what it has to know of the database apart from it. Raises RuntimeError for nowhere."""
        return self.audit_head_directory or _home("XDG_STATE_HOME", ".local/state")

    @property
    def own_key_file(self) -> Path:
        """The file with the key that the server makes for itself: apart from what it protects, and from its copies.

        One that an earlier version made beside the database goes on to be used.
        """
        beside = self.data / KEY_FILE
        return beside if beside.exists() else _home("XDG_CONFIG_HOME", ".config") / KEY_FILE

    @property
    def max_binary_resource_bytes(self) -> int:
        """The largest Binary with its content in base64 and what it has beside that."""
        return -(-self.max_binary_bytes // 3) * 4 + 64 * 1024

    @property
    def audit_mode(self) -> Literal["off", "best-effort", "required"]:
        """What `audit` comes to."""
        return self.audit or ("required" if self.auth == "smart" else "off")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        """Each as browsers write it, https://fetch.spec.whatwg.org/#origin-header: they are compared as they are."""
        listed = [entry.strip().rstrip("/").lower() for entry in text.split(",") if entry.strip()]
        if listed != ["*"] and not all(map(_ORIGIN.fullmatch, listed)):
            raise ValueError("not a list of origins such as https://app.example.org, nor * alone")
        return ",".join(_DEFAULT_PORT.sub(r"\1\2", entry) for entry in listed)

    @field_validator("trusted_proxy")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for entry in text.split(","):
            if entry.strip():
                try:
                    ip_network(entry.strip())
                except ValueError:
                    raise ValueError("not a list of addresses and CIDRs") from None
        return text

    @model_validator(mode="after")
    def _names_an_audience(self) -> Self:  # noqa: N804 - an instance, after validation
        if self.oidc_issuer and not self.oidc_audience:
            raise ValueError("oidc_issuer needs oidc_audience: tokens are made for somebody")
        return self

    @property
    def token_header(self) -> dict[str, str]:
        """The header of requests to a server that wants a token; empty where there is none to show."""
        token = self.token.get_secret_value()
        return {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def owners_of_lists(self) -> dict[str, str]:
        """The owner of the Tasks of each work list that has one, as a reference."""
        pairs = (each.partition("=") for each in self.task_owners.split(",") if each)
        return {work_list: owner for work_list, _, owner in pairs}

    @field_validator("metrics_token")
    @classmethod
    def _is_hard_to_guess(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < 16:
            raise ValueError("shorter than 16 characters")
        return token

    @field_validator("task_owners")
    @classmethod
    def _is_of_owners(cls, text: str) -> str:
        for each in filter(None, text.split(",")):
            if not _TASK_OWNER.fullmatch(each):
                raise ValueError("not a work list and a reference, as consent=Organization/o1")
        return text

    @field_validator("time_zone")
    @classmethod
    def _is_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, OSError, ValueError):  # no such name, a folder of names, no name at all
            raise ValueError("not a known time zone") from None
        return name
