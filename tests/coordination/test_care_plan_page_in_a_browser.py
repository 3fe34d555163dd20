"""The page of a care plan, looked at in Debian's chromium, on a screen, on a telephone and on paper.

docs/pictures/ has what it shows; a picture that was deleted there is made anew.
"""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright
from pypdf import PdfReader

from tests.builders.care_plans import desk
from tests.builders.listening import listening
from tests.builders.rich_member import directory, member, of_the_plan, of_the_record
from tests.conftest import make_settings

CHROMIUM = shutil.which("chromium")
PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
pytestmark = [
    pytest.mark.mongo,
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
# A screen, and a telephone.
WIDTHS = (1000, 390)


async def keep(page: Page, name: str) -> None:
    """Put a picture of what the page shows where the docs have it, unless it is there."""
    shown = await page.screenshot()
    kept = PICTURES / f"{name}.png"
    if not kept.exists():
        kept.write_bytes(shown)


async def test_the_page_on_a_screen_and_on_paper(mongod: str) -> None:
    async with (
        listening(make_settings(mongod, hosts="", test_clock=True)) as pair,
        desk(pair) as at,
        async_playwright() as playwright,
    ):
        await at.put(
            *directory(), member("en"), *of_the_record(at.server.clock.now()), *of_the_plan()
        )
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        answer = await page.goto(f"{at.client.base_url}{at.ref('CarePlan/plan')}/$summary")
        assert answer is not None
        assert answer.status == 200
        # The style counts only where the policy has its digest.
        colour = "getComputedStyle(document.querySelector('h1')).color"
        assert await page.evaluate(colour) == "rgb(31, 78, 121)"
        for width in WIDTHS:
            await page.set_viewport_size({"width": width, "height": 1100})
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await keep(page, f"care-plan-{width}")
        sections = page.locator("section h2")
        assert (await sections.all_inner_texts())[:3] == [
            "Summary for the clinician",
            "Point of contact",
            "What matters to the member",
        ]
        paper = PdfReader(io.BytesIO(await page.pdf(prefer_css_page_size=True)))
        first, second, *_ = [each.extract_text() for each in paper.pages]
        assert "Summary for the clinician" in first
        assert "Anaphylaxis" in first
        assert second.startswith("Point of contact")
        assert complaints == []
        await browser.close()
