"""Pages in a real browser that try to take a server without authorization over.

Debian's chromium by Playwright. The pages are called by another port of the same host, by another host, and by a name
that leads to the server itself (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from aiohttp import web
from playwright.async_api import Page, Request, async_playwright

from tests.builders.listening import listening
from tests.conftest import Server, make_settings

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.mongo,
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

# Every way in which a page can send something without being asked first, and some others. Each tells what came of it.
ATTACK = """
async (root) => {
  const told = {};
  const attempt = async (name, act) => {
    try { told[name] = await act(); } catch (error) { told[name] = "refused"; }
  };
  const subscription = JSON.stringify({
    resourceType: "Subscription", status: "requested", reason: "x", criteria: "Encounter?",
    channel: { type: "rest-hook", endpoint: "http://127.0.0.1:9/", payload: "application/json" },
  });
  const client = JSON.stringify({
    client_id: "intruder", name: "x", role: "administrator", scopes: "system/*.cruds",
  });
  const blind = (path, body, headers = {}) => async () => {
    await fetch(root + path, { method: "POST", mode: "no-cors", body, headers });
    return "sent";
  };
  const form = (path, text) => () => new Promise((done) => {
    const frame = document.createElement("iframe");
    frame.name = path;
    document.body.append(frame);
    const sheet = document.createElement("form");
    Object.assign(sheet, { method: "POST", enctype: "text/plain", target: path, action: root + path });
    const field = document.createElement("input");
    [field.name, field.value] = [text.slice(0, -1) + ',"id":"', '"}'];
    sheet.append(field);
    document.body.append(sheet);
    frame.onload = () => done("sent");
    sheet.submit();
  });
  const socket = () => new Promise((done) => {
    const opened = new WebSocket(root.replace("http", "ws") + "/fhir/websocket");
    opened.onopen = () => done("open");
    opened.onerror = () => done("refused");
  });
  await attempt("form", form("/fhir/Subscription", subscription));
  await attempt("blind text", blind("/fhir/Subscription", subscription, { "content-type": "text/plain" }));
  await attempt("blind, no type", blind("/fhir/Subscription", new Blob([subscription])));
  await attempt("blind client", blind("/admin/clients", client, { "content-type": "text/plain" }));
  await attempt("blind client, no type", blind("/admin/clients", new Blob([client])));
  await attempt("blind topic", blind("/admin/deliveries/resend?state=dead"));
  await attempt("blind reindex", blind("/fhir/$reindex"));
  for (const [method, path, body] of [
    ["GET", "/fhir/Patient/seen"],
    ["GET", "/admin/deliveries"],
    ["DELETE", "/fhir/Patient/seen"],
    ["POST", "/fhir/Subscription", subscription],
    ["POST", "/admin/clients", client],
  ]) {
    await attempt(`${method} ${path}`, async () => {
      const headers = body ? { "content-type": "application/fhir+json" } : {};
      const answer = await fetch(root + path, { method, body, headers });
      return answer.status;
    });
  }
  await attempt("socket", socket);
  told.beacon = navigator.sendBeacon(root + "/fhir/Subscription?beacon", new Blob([subscription]));
  return told;
}
"""


@dataclass
class Browser:
    """A tab, and a server of pages on another port, which are empty."""

    page: Page
    pages: str
    answered: dict[str, int] = field(default_factory=dict)

    async def attack(self, root: str) -> dict[str, object]:
        """What the open page was told of each attempt, once all of them were answered."""
        beacon = asyncio.Event()

        def heard(request: Request) -> None:
            if request.url.endswith("?beacon"):
                beacon.set()

        for event in ("requestfinished", "requestfailed"):
            self.page.context.on(event, heard)
        told: dict[str, object] = await self.page.evaluate(ATTACK, root)
        assert told.pop("beacon") is True
        await asyncio.wait_for(beacon.wait(), 20)
        return told


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    async def empty(_: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>x</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/{tail:.*}", empty)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=["--no-sandbox", "--host-resolver-rules=MAP *.test 127.0.0.1"],
            )
            page = await browser.new_page()
            yield Browser(page, str(runner.addresses[0][1]))
            await browser.close()
    finally:
        await runner.cleanup()


async def untouched(server: Server, client: httpx.AsyncClient) -> None:
    """Nothing was installed, deleted or begun."""
    assert (await client.get("/Patient/seen")).status_code == 200
    for collection in ("Subscription", "clients", "reindex"):
        assert await server.mongo.collection(collection).count_documents({}) == 0, collection


@pytest.mark.timeout(180)
async def test_a_page_from_elsewhere_does_nothing_and_sees_nothing(mongod: str) -> None:
    async with (
        listening(make_settings(mongod, hosts="")) as (server, client),
        browsing() as browser,
    ):
        await client.put("/Patient/seen", json={"resourceType": "Patient", "id": "seen"})
        root = str(client.base_url).rstrip("/").removesuffix("/fhir")
        port = root.rpartition(":")[2]
        # By another port, which is the same site, by another host, and by a name of a page's own for the server.
        for page, target in (
            (f"http://127.0.0.1:{browser.pages}/", root),
            (f"http://localhost:{browser.pages}/", root),
            (f"http://evil.test:{browser.pages}/", root),
            (f"http://evil.test:{browser.pages}/", f"http://evil.test:{port}"),
            (f"http://evil.test:{port}/", f"http://evil.test:{port}"),
        ):
            if page.endswith(f":{port}/"):
                await browser.page.route(page, lambda route: route.fulfill(body="<!doctype html>"))
            await browser.page.goto(page)
            told = await browser.attack(target)
            assert {told[name] for name in told if "blind" not in name and name != "form"} <= {
                "refused",
                403,
            }, (page, told)
            await untouched(server, client)


async def test_a_link_from_elsewhere_can_be_followed_and_its_own_pages_may_ask(mongod: str) -> None:
    async with (
        listening(make_settings(mongod, hosts="")) as (_, client),
        browsing() as browser,
    ):
        root = str(client.base_url).rstrip("/").removesuffix("/fhir")
        await browser.page.goto(f"http://evil.test:{browser.pages}/")
        async with browser.page.expect_navigation() as navigation:
            await browser.page.evaluate("(url) => { location.href = url }", f"{root}/admin/topics")
        shown = await (await navigation.value).json()
        assert shown == {"topics": []}
        # The console's pages will be the server's own.
        await browser.page.route(f"{root}/own", lambda route: route.fulfill(body="<!doctype html>"))
        await browser.page.goto(f"{root}/own")
        put = """async () => (await fetch("/fhir/Patient/own", {
          method: "PUT", headers: {"content-type": "application/json"},
          body: JSON.stringify({resourceType: "Patient", id: "own"}),
        })).status"""
        assert await browser.page.evaluate(put) == 201
