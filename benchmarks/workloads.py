"""What a load generator may send: each workload makes its n-th request, whole, as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from benchmarks import resources

STORED = 4000
# The environment variable with the access token of the requests, where one is wanted.
BEARER_FROM = "CARERELAY_BENCH_BEARER_FROM"
_AUTHORIZATION = (
    f"Authorization: Bearer {os.environ[BEARER_FROM]}\r\n" if os.environ.get(BEARER_FROM) else ""
)
_HEAD = f"{{}} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/fhir+json\r\n{_AUTHORIZATION}"


@dataclass(frozen=True)
class Workload:
    """`connections` send requests one after another; each answer must have `status` and counts for `units`."""

    connections: int
    status: int
    request: Callable[[int], bytes]
    units: int = 1


def _read(number: int) -> bytes:
    # A stride that is prime to STORED visits all of them, out of order.
    return _get(f"/fhir/Encounter/bench-{number * 1237 % STORED}")


def _create(number: int) -> bytes:
    templates = _encounter_posts()
    return _numbered(templates[number % len(templates)], number)


def _transaction(number: int) -> bytes:
    templates = _bundle_posts()
    return _numbered(templates[number % len(templates)], number)


def _page(number: int) -> bytes:
    return _get("/fhir/CarePlan?status=active&_count=50")


def _fill(number: int) -> bytes:
    resource_id = f"bench-{number}"
    texts = _encounter_texts()
    text = _numbered(texts[number % len(texts)], number)
    text = text.replace(b"{", b'{"id":"%s",' % resource_id.encode(), 1)
    return _send("PUT", f"/fhir/Encounter/{resource_id}", text)


WORKLOADS = {
    "fill": Workload(16, 201, _fill),
    "read": Workload(16, 200, _read),
    "page50": Workload(4, 200, _page),
    "create": Workload(16, 201, _create),
    "tx100": Workload(2, 200, _transaction, units=100),
}


@cache
def _encounter_texts() -> list[bytes]:
    return resources.encounters()


@cache
def _encounter_posts() -> list[bytes]:
    return [_send("POST", "/fhir/Encounter", text) for text in _encounter_texts()]


@cache
def _bundle_posts() -> list[bytes]:
    return [_send("POST", "/fhir", text) for text in resources.bundles()]


def _numbered(template: bytes, number: int) -> bytes:
    return template.replace(resources.SERIAL.encode(), b"%08d" % (number % 10**8))


def _get(path: str) -> bytes:
    return f"{_HEAD.format(f'GET {path}')}\r\n".encode()


def _send(method: str, path: str, body: bytes) -> bytes:
    kind = f"Content-Type: application/fhir+json\r\nContent-Length: {len(body)}\r\n"
    return f"{_HEAD.format(f'{method} {path}')}{kind}\r\n".encode() + body
