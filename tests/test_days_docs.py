"""docs/days.md: every call in it is made, in its order, and its pictures show what is answered.

Beside each picture of docs/pictures/ that begins with `days-` lies the text that it shows. A picture that was deleted
is made anew, with its text.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

from tests.processes import environment, started

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = DOCS / "pictures"
CALL = re.compile(r"^```sh\n(.*?)^```\n\n```(?:csv|json|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]
# Seconds in which what follows from a write is to be seen.
PATIENCE = 20

STYLE = """body { font: 15px "Liberation Sans", sans-serif; margin: 16px; }
table { border-collapse: collapse; } td, th { border: 1px solid #9db4c9; padding: 4px 10px; text-align: left; }
th { background: #1f4e79; color: #fff; }"""
AGNES = "Patient/agnes-thistlewick"


def lines_of(output: str) -> list[str]:
    """The lines of what a shell printed, where each FHIR resource has a line for each of its elements."""
    found: list[str] = []
    for line in output.splitlines():
        if line.startswith(("{", "[")):
            line = json.dumps(json.loads(line), indent=1, ensure_ascii=False)
        found += [each.strip() for each in line.splitlines()]
    return found


def pattern_of(shown: str) -> re.Pattern[str]:
    """What a line of the page stands for; a comma at its end is of no account."""
    return re.compile(".*".join(map(re.escape, shown.rstrip(",").split("…"))) + ",?")


def missing(shown: str, output: str) -> str | None:
    """The first of the lines that are shown that is not in the output, in that order."""
    rest = iter(lines_of(output))
    for line in shown.splitlines():
        pattern = pattern_of(line)
        if not any(pattern.fullmatch(each) for each in rest):
            return line
    return None


def resources(bundle: Any, resource_type: str) -> list[Any]:
    found = [entry["resource"] for entry in bundle["entry"]]
    return [each for each in found if each["resourceType"] == resource_type]


def table(rows: Sequence[Sequence[str]]) -> str:
    """A page with a table, whose first row are the headings."""
    head, *body = [[escape(cell) for cell in row] for row in rows]
    written = [f"<tr><th>{'<th>'.join(head)}</tr>"]
    written += [f"<tr><td>{'<td>'.join(row)}</tr>" for row in body]
    return f"<!doctype html><style>{STYLE}</style><table>{''.join(written)}</table>"


def worklist_table(output: str) -> str:
    columns = ("name", "birth_date", "identifier", "reason", "since", "due", "practice_name")
    lines = csv.DictReader(io.StringIO(output))
    return table([columns, *([line[each] for each in columns] for line in lines)])


def notices_table(*outputs: str) -> str:
    """Who was told what, by the Communications of `$notices`."""
    rows = [("about", "what", "event", "to", "status", "why not")]
    for output in outputs:
        for told in resources(json.loads(output), "Communication"):
            (event_time,) = [
                each["valueInstant"]
                for each in told["extension"]
                if each["url"].endswith("/event-time")
            ]
            rows.append(
                (
                    told["subject"]["reference"],
                    told["topic"]["coding"][0]["display"],
                    event_time[:16].replace("T", " ") + " UTC",
                    told["recipient"][0]["reference"],
                    told["status"],
                    told.get("statusReason", {}).get("text", ""),
                )
            )
    return table(rows)


def inbox_table(output: str) -> str:
    """What an endpoint was sent about Agnes: the trigger of each notice, and the sentences that came with it."""
    rows = [("path", "about", "what", "in words")]
    for received in json.loads(output):
        bundle = received["body"]
        if received["kind"] != "event-notification" or AGNES not in json.dumps(bundle):
            continue
        (event,) = [
            each
            for each in resources(bundle, "Parameters")[0]["parameter"]
            if each["name"] == "notification-event"
        ]
        (trigger,) = [
            each["valueCoding"]["display"] for each in event["part"] if each["name"] == "trigger"
        ]
        said = [each["payload"][0]["contentString"] for each in resources(bundle, "Communication")]
        kind = received["focus"].split("/")[-2]
        rows.append((received["path"], kind, trigger, " ".join(said)))
    return table(rows)


async def look(page: Page, name: str, shown: str, directory: Path) -> None:
    """Make the picture, and compare what it shows with what the one of the page does."""
    picture, text = PICTURES / f"{name}.png", PICTURES / f"{name}.txt"
    made = directory / picture.name
    await page.screenshot(path=made, full_page=name != "days-care-plan")
    if not picture.exists():
        shutil.copy(made, picture)
        text.write_text(shown, "utf-8")
    assert shown == text.read_text("utf-8"), f"delete {picture.name} and run this again"


async def test_two_people_at_work(tmp_path: Path) -> None:
    said: list[str] = []
    with started("server are up: ", "run", "--port", "0", is_log=False) as (process, base):
        assert process.stdout is not None
        said += iter(process.stdout.readline, "Ctrl-C stops everything.\n")
        received = next(line.split()[-1] for line in said if line.rstrip().endswith("/received"))
        surroundings = {**environment(), "BASE": base, "RECEIVED": received}
        async with async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox"]
            )
            page = await browser.new_page(viewport={"width": 1000, "height": 1000})
            await page.goto(f"{base}/CarePlan/agnes-thistlewick-plan/$summary")
            whole = await page.inner_text("body")
            cut = set(re.findall(r"(\S+)…", whole))
            assert cut <= {word.rstrip(",;.") for word in whole.split()}, "a word or a day is cut"
            headings = await page.locator("h1, h2").all_inner_texts()
            await look(page, "days-care-plan", "\n".join(headings) + "\n", tmp_path)
            outputs = play((DOCS / "days.md").read_text("utf-8"), surroundings)
            tables = {
                "days-worklist": worklist_table(outputs[0]),
                "days-notices": notices_table(*outputs[1:3]),
                "days-inbox": inbox_table(next(o for o in outputs if o.startswith("[{"))),
            }
            # The policy of the plan's page would hold for what is set into it.
            page = await browser.new_page(viewport={"width": 1300, "height": 200})
            for name, content in tables.items():
                await page.set_content(content)
                await look(page, name, await page.inner_text("body") + "\n", tmp_path)
            await browser.close()


def play(text: str, surroundings: dict[str, str]) -> list[str]:
    """Every call of the page, each with what it printed, which is compared with what is shown."""
    calls = CALL.findall(text)
    assert len(calls) == text.count("```sh\n")
    return [answered(command, shown, surroundings) for command, shown in calls]


def answered(command: str, shown: str, surroundings: dict[str, str]) -> str:
    """What a call prints. What only reads is asked again until the answer has come that follows from earlier calls."""
    give_up = time.monotonic() + (0 if " -X " in command else PATIENCE)
    while True:
        output = shell(command, surroundings)
        lacking = missing(shown, output)
        if lacking is None:
            return output
        assert time.monotonic() < give_up, f"{command}: no {lacking} in\n{output}"
        time.sleep(0.1)


def shell(command: str, surroundings: dict[str, str]) -> str:
    # An answer of JSON has no end of line.
    script = re.sub(r"^curl ", "curl -sS --fail-with-body -w '\\n' ", command, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euc", script],
        env={**os.environ, **surroundings},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout
