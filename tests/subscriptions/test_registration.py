"""What a Subscription may ask for: every check with the element it names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.errors import Unprocessable
from app.settings import Settings
from app.subscriptions.matching.channel_terms import CHANNEL_TYPE, MAX_COUNT, PAYLOAD_CONTENT
from app.subscriptions.matching.registration import FILTER_CRITERIA, Registration, read
from app.subscriptions.topics import topic_store
from tests.builders.subscriptions import ADMISSION, ENDPOINT, classic, email, topic_based, websocket

SETTINGS = Settings(smtp_host="127.0.0.1")
# What the conformance tests of the guide send: it must not be taken for no filter at all.
MISNAMED = (
    "http://hl7.org/fhir/5.0/subscriptions-backport/StructureDefinition/backport-filter-criteria"
)
REST_HOOK = {
    "system": "http://terminology.hl7.org/CodeSystem/subscription-channel-type",
    "code": "rest-hook",
}
CATALOGUE = topic_store.load(SETTINGS)
Edit = Callable[[dict[str, Any]], None]


def registered(subscription: dict[str, Any]) -> Registration:
    return read(subscription, CATALOGUE, SETTINGS)


def put(path: str, value: Any) -> Edit:
    """Set `channel.payload` and the like; None takes it away."""

    def edit(subscription: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        target = subscription
        for parent in parents:
            target = target.setdefault(parent, {})
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value

    return edit


def extension(url: str, **value: Any) -> list[dict[str, Any]]:
    return [{"url": url, **value}]


def refusals(subscription: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(Unprocessable) as caught:
        registered(subscription)
    assert all(issue.diagnostics for issue in caught.value.issues)
    return [(issue.code, issue.expression[0]) for issue in caught.value.issues]


@pytest.mark.parametrize(
    ("subscription", "edit", "expected"),
    [
        pytest.param(
            topic_based(), put("criteria", ADMISSION + "-x"), ("not-supported", "criteria"),
            id="unknown-topic",
        ),
        pytest.param(
            topic_based(), put("criteria", ADMISSION + "|2"), ("not-supported", "criteria"),
            id="unknown-topic-version",
        ),
        pytest.param(classic(), put("criteria", "Encounter"), ("value", "criteria"), id="no-query"),
        pytest.param(
            classic(), put("criteria", "Visit?status=x"), ("not-supported", "criteria"),
            id="unknown-type",
        ),
        pytest.param(
            classic(), put("criteria", "Subscription?status=active"), ("not-supported", "criteria"),
            id="about-subscriptions",
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?colour=red"), ("not-supported", "criteria"),
            id="unknown-parameter",
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?status:sideways=x"), ("not-supported", "criteria"),
            id="unknown-modifier",
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?patient.colour=x"), ("not-supported", "criteria"),
            id="chained-to-nothing",
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?_count=1"), ("not-supported", "criteria"),
            id="result-parameter",
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?_has:Condition:encounter:colour=x"),
            ("not-supported", "criteria"), id="reverse-chained-to-nothing",
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?status="), ("value", "criteria"), id="no-value"
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?status"), ("value", "criteria"), id="no-equals"
        ),
        pytest.param(
            classic(), put("criteria", "Encounter?date=yesterday"), ("value", "criteria"),
            id="malformed-value",
        ),
        pytest.param(
            topic_based("colour=red"), None, ("not-supported", "criteria.extension[0]"),
            id="unknown-filter",
        ),
        pytest.param(
            topic_based("patient=Patient/p1", "status=finished"), None,
            ("not-supported", "criteria.extension[1]"), id="search-parameter-but-no-filter",
        ),
        pytest.param(
            topic_based("general-practitioner=Patient/1"), None,
            ("value", "criteria.extension[0]"), id="filter-by-another-type",
        ),
        pytest.param(
            topic_based("patient:missing=true"), None, ("not-supported", "criteria.extension[0]"),
            id="filter-modifier",
        ),
        pytest.param(
            topic_based("CarePlan?patient=p1"), None, ("not-supported", "criteria.extension[0]"),
            id="filter-on-other-type",
        ),
        pytest.param(
            topic_based("trigger=A03"), None, ("code-invalid", "criteria.extension[0]"),
            id="unknown-trigger",
        ),
        pytest.param(topic_based("patient="), None, ("value", "criteria.extension[0]"), id="empty"),
        pytest.param(topic_based(""), None, ("value", "criteria.extension[0]"), id="blank"),
        pytest.param(
            topic_based(),
            put("_criteria.extension", extension(MISNAMED, valueString="patient=p1")),
            ("not-supported", "criteria.extension[0]"), id="filter-under-wrong-name",
        ),
        pytest.param(
            topic_based(), put("_criteria.extension", extension(FILTER_CRITERIA, valueUri="a=b")),
            ("required", "criteria.extension[0]"), id="filter-of-wrong-type",
        ),
        pytest.param(
            classic(), put("_criteria.extension", extension(FILTER_CRITERIA, valueString="a=b")),
            ("not-supported", "criteria.extension[0]"), id="filter-on-classic",
        ),
        pytest.param(
            topic_based(), put("channel.extension", extension("http://x.example/e", valueCode="x")),
            ("not-supported", "channel.extension[0]"), id="unknown-channel-extension",
        ),
        pytest.param(
            classic(), put("channel.extension", extension(MAX_COUNT, valuePositiveInt=1)),
            ("not-supported", "channel.extension[0]"), id="backport-extension-on-classic",
        ),
        pytest.param(
            topic_based(), put("channel.extension", extension(MAX_COUNT, valuePositiveInt=100_000)),
            ("value", "channel.extension[0]"), id="max-count-range",
        ),
        pytest.param(
            topic_based(), put("channel.extension", extension(MAX_COUNT, valueInteger=1)),
            ("required", "channel.extension[0]"), id="max-count-type",
        ),
        pytest.param(
            topic_based(max_count=0), None, ("value", "channel.extension[0]"), id="no-events"
        ),
        pytest.param(
            topic_based(max_count=1001), None, ("value", "channel.extension[0]"), id="most-events"
        ),
        pytest.param(
            topic_based(heartbeat=0), None, ("value", "channel.extension[0]"), id="heartbeat-range"
        ),
        pytest.param(
            topic_based(heartbeat=60, timeout=3600), None, ("value", "channel.extension[1]"),
            id="timeout-range",
        ),
        pytest.param(
            topic_based(), put("channel._type.extension", extension(CHANNEL_TYPE, valueCoding={"code": "zulip"})),
            ("not-supported", "channel.type.extension[0]"), id="additional-channel-type",
        ),
        pytest.param(
            topic_based(), put("channel.type", "sms"), ("not-supported", "channel.type"),
            id="channel-type",
        ),
        pytest.param(
            topic_based(), put("channel.payload", None), ("required", "channel.payload"),
            id="no-payload",
        ),
        pytest.param(
            topic_based(), put("channel.payload", "text/html"), ("not-supported", "channel.payload"),
            id="payload-type",
        ),
        pytest.param(
            topic_based(), put("channel._type.extension", extension("http://x.example/e", valueCode="x")),
            ("not-supported", "channel.type.extension[0]"), id="unknown-type-extension",
        ),
        pytest.param(
            websocket(), put("channel.endpoint", ENDPOINT), ("not-supported", "channel.endpoint"),
            id="websocket-endpoint",
        ),
        pytest.param(
            websocket(header=["X-A: b"]), None, ("not-supported", "channel.header"),
            id="websocket-header",
        ),
        pytest.param(
            websocket(), put("channel.payload", "text/plain"), ("not-supported", "channel.payload"),
            id="websocket-payload",
        ),
        pytest.param(
            {**websocket(), "criteria": "Encounter?"}, put("channel._payload", None),
            ("not-supported", "channel.payload"), id="classic-websocket-payload",
        ),
        pytest.param(
            email(endpoint="https://a.example"), None, ("value", "channel.endpoint"),
            id="email-endpoint",
        ),
        pytest.param(
            email(endpoint="mailto:a@b.example,c@d.example"), None, ("value", "channel.endpoint"),
            id="email-two-addresses",
        ),
        pytest.param(
            email(endpoint="mailto:a@b.example%0d%0aBcc:c@d.example"), None,
            ("value", "channel.endpoint"), id="email-injected-header",
        ),
        pytest.param(
            email(payload="application/fhir+json"), None, ("not-supported", "channel.payload"),
            id="email-machine-readable-body",
        ),
        pytest.param(
            email(payload="text/plain;attach=image/png"), None, ("not-supported", "channel.payload"),
            id="email-attachment-type",
        ),
        pytest.param(
            email(payload="text/plain", content="full-resource"), None,
            ("not-supported", "channel.payload"), id="email-resources-in-body",
        ),
        pytest.param(
            email(header=["Bcc: c@d.example"]), None, ("value", "channel.header[0]"),
            id="email-header",
        ),
        pytest.param(
            topic_based(), put("channel.payload", "application/fhir+json; fhirVersion=5.0"),
            ("not-supported", "channel.payload"), id="fhir-version",
        ),
        pytest.param(
            classic(), put("channel.payload", "text/plain"), ("not-supported", "channel.payload"),
            id="classic-payload",
        ),
        pytest.param(
            topic_based(), put("channel._payload", None), ("required", "channel.payload"),
            id="no-content-level",
        ),
        pytest.param(
            topic_based(content="everything"), None,
            ("not-supported", "channel.payload.extension[0]"), id="content-level",
        ),
        pytest.param(
            topic_based(),
            put("channel._payload.extension", extension(PAYLOAD_CONTENT, valueCode="empty") * 2),
            ("structure", "channel.payload.extension[1]"), id="two-content-levels",
        ),
        pytest.param(
            topic_based(), put("channel._payload.extension", extension("http://x.example/e")),
            ("not-supported", "channel.payload.extension[0]"), id="unknown-payload-extension",
        ),
        pytest.param(
            topic_based(), put("modifierExtension", extension("http://x.example/e", valueCode="x")),
            ("not-supported", "modifierExtension"), id="modifier-extension",
        ),
        pytest.param(
            topic_based(),
            put("channel.modifierExtension", extension("http://x.example/e", valueCode="x")),
            ("not-supported", "channel.modifierExtension"), id="modifier-extension-below",
        ),
        pytest.param(
            topic_based(), put("channel.endpoint", None), ("required", "channel.endpoint"),
            id="no-endpoint",
        ),
        pytest.param(
            topic_based(), put("channel.endpoint", "mailto:a@b.example"),
            ("value", "channel.endpoint"), id="endpoint-scheme",
        ),
        pytest.param(
            topic_based(), put("channel.endpoint", "https://[::1"), ("value", "channel.endpoint"),
            id="endpoint-unreadable",
        ),
        pytest.param(
            topic_based(content="full-resource"), put("channel.endpoint", "http://pcp.example/hook"),
            ("security", "channel.endpoint"), id="resources-in-clear",
        ),
        pytest.param(
            topic_based(), put("channel.header", ["X-A: b\r\nX-C: d"]),
            ("value", "channel.header[0]"), id="header-line-break",
        ),
        pytest.param(
            topic_based(), put("channel.header", ["X-A: b", "Bearer x"]),
            ("value", "channel.header[1]"), id="header-without-name",
        ),
        pytest.param(
            topic_based(), put("channel.header", ["Host: other.example"]),
            ("value", "channel.header[0]"), id="header-host",
        ),
        pytest.param(
            topic_based(), put("channel.header", ["Content-length: 5"]),
            ("value", "channel.header[0]"), id="header-length",
        ),
        pytest.param(
            topic_based(), put("channel.header", [f"X-A: {'b' * 8188}"]),
            ("too-long", "channel.header[0]"), id="long-header",
        ),
        pytest.param(
            topic_based(), put("channel.header", [f"X-{n}: b" for n in range(21)]),
            ("too-long", "channel.header"), id="many-headers",
        ),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_at_its_element(
    subscription: dict[str, Any], edit: Edit | None, expected: tuple[str, str]
) -> None:
    if edit is not None:
        edit(subscription)
    assert refusals(subscription) == [(expected[0], f"Subscription.{expected[1]}")]


def test_all_complaints_come_at_once() -> None:
    subscription = topic_based("colour=red", content="everything", header=["x"], endpoint="x")
    assert [path for _, path in refusals(subscription)] == [
        "Subscription.criteria.extension[0]",
        "Subscription.channel.payload.extension[0]",
        "Subscription.channel.endpoint",
        "Subscription.channel.header[0]",
    ]


@pytest.mark.parametrize(
    "subscription",
    [
        pytest.param(classic(), id="classic"),
        pytest.param(classic("Encounter?"), id="classic-all"),
        pytest.param(classic("Encounter?patient=Patient/p1&date=ge2026"), id="classic-date"),
        pytest.param(classic("Observation?code=http%3A%2F%2Floinc.org%7C1234-5"), id="classic-encoded"),
        pytest.param(classic(payload="application/json"), id="classic-payload"),
        pytest.param(topic_based(), id="topic"),
        pytest.param(topic_based("patient=Patient/p1", "class=IMP,EMER"), id="topic-filters"),
        pytest.param(topic_based("Encounter.patient=p1"), id="filter-dotted"),
        pytest.param(topic_based("Encounter?patient=p1&trigger=A01"), id="filter-query"),
        pytest.param(topic_based("class:not=EMER"), id="filter-modifier"),
        pytest.param(topic_based(header=[f"X-A: {'b' * 8187}"] * 20, max_count=1000), id="limits"),
        pytest.param(topic_based(payload="application/fhir+json; fhirVersion=4.0"), id="version"),
        pytest.param(topic_based(heartbeat=86400, timeout=60, max_count=10), id="times"),
        pytest.param(topic_based(payload="application/fhir+xml"), id="xml"),
        pytest.param(websocket(), id="websocket"),
        pytest.param(websocket(content="full-resource"), id="websocket-on-loopback"),
        pytest.param(email(), id="email"),
        pytest.param(email(payload="text/plain"), id="email-plain"),
        pytest.param(email(content="full-resource", header=["Subject: Hi"]), id="email-resources"),
        pytest.param({**topic_based(), "channel": {**topic_based()["channel"], "type": "message"}}, id="message"),
        pytest.param(topic_based(_type={"extension": extension(CHANNEL_TYPE, valueCoding=REST_HOOK)}), id="same-type"),
        pytest.param(topic_based(content="full-resource", endpoint="https://p.example/h"), id="full"),
        pytest.param(topic_based(header=["Authorization: Bearer a.b-c_d=", "X-Empty:"]), id="headers"),
    ],
)  # fmt: skip
def test_what_is_supported_is_taken(subscription: dict[str, Any]) -> None:
    registered(subscription)


def test_a_topic_based_subscription_is_read_whole() -> None:
    subscription = topic_based("patient=p1", content="full-resource", heartbeat=60, timeout=5)
    subscription.update(
        id="s1", status="active", end="2027-12-31T00:00:00Z", meta={"versionId": "3"}
    )
    found = registered(subscription)
    assert (found.id, found.version, found.status) == ("s1", 3, "active")
    assert found.end is not None
    assert found.end.year == 2027
    assert found.topic is not None
    assert found.topic.url == ADMISSION
    assert found.channel.content == "full-resource"
    assert found.channel.heartbeat == 60
    assert found.channel.timeout == 5.0


def test_times_default_to_the_settings() -> None:
    assert registered(topic_based()).channel.timeout == SETTINGS.delivery_timeout
    assert registered(classic()).channel.content is None


@pytest.mark.parametrize(
    ("subscription", "settings", "expected"),
    [
        pytest.param(email(), Settings(), ("not-supported", "channel.type"), id="no-smtp-server"),
        pytest.param(
            email(content="full-resource"),
            Settings(smtp_host="mail.example"),
            ("security", "channel.payload"),
            id="resources-by-open-mail",
        ),
        pytest.param(
            websocket(content="full-resource"),
            Settings(host="10.0.0.1", base_url="http://hub.example/fhir"),
            ("security", "channel.payload"),
            id="resources-by-open-websocket",
        ),
    ],
)
def test_what_the_server_is_not_set_up_for_is_refused(
    subscription: dict[str, Any], settings: Settings, expected: tuple[str, str]
) -> None:
    with pytest.raises(Unprocessable) as caught:
        read(subscription, topic_store.load(settings), settings)
    (issue,) = caught.value.issues
    assert (issue.code, issue.expression[0]) == (expected[0], f"Subscription.{expected[1]}")
