"""`workbench`: seconds that each question about 100,000 members takes, without limits and for a plan, which is judged.

`python -m benchmarks.workbench SCALE` runs with so many times fewer members, for a quick look.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from bson import CodecOptions
from pymongo import MongoClient

from app.authentication.caller import EVERYBODY, Caller
from app.context import Context
from app.coordination.workbench.questions import QUESTIONS
from app.fhir import json as fhir_json
from app.fhir.codes import ACT_CODE, PCP_ROLES, SNOMED
from app.main import create_app
from app.operations import registry
from app.operations.arguments import Given
from app.records.versions import with_meta
from app.runtime.embedded_mongod import EmbeddedMongo
from app.search.extract import extract, index_models
from app.settings import Settings
from benchmarks.resources import Resource, concept

NAME = "workbench"
MEMBERS, BLOCK, ROUNDS = 100_000, 1_000, 3
SECONDS_BAR = 2.0
PLAN = "Organization/plan"
_PRACTICES, _HOSPITALS = 500, 20
_DATABASE = "workbench"
_HRA = "http://carerelay.example/Questionnaire/health-risk-assessment"
_NOW = datetime.now(UTC)
_CALLERS = {
    "all": EVERYBODY,
    "plan": Caller("plan", PLAN, "plan", ("system/*.rs",)),
}


def measure(say: Callable[[str], None], *, scale: int = 1) -> dict[str, Any]:
    """The slowest question, and for each its median in seconds and how many it finds."""
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
    ):
        say(f"{NAME}: storing {MEMBERS // scale:,} members")
        seed(mongo.uri, MEMBERS // scale)
        figures = asyncio.run(_ask(mongo.uri, say))
    slowest = max(each["seconds"] for each in figures.values())
    return {
        "members": MEMBERS // scale,
        "slowest_s": slowest,
        "slowest_s_bar": SECONDS_BAR,
        "by_question": figures,
    }


async def _ask(uri: str, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    app = create_app(Settings(mongodb_uri=uri, mongodb_database=_DATABASE))
    figures: dict[str, dict[str, float]] = {}
    async with app.router.lifespan_context(app):
        for name, caller in _CALLERS.items():
            context = Context(app.state.services, caller, "http://localhost/fhir")
            for form in ("bundle", "csv"):
                for question in (*QUESTIONS, "utilization"):
                    say(f"{NAME}: {question}, {form}, {name}")
                    figures[f"{question} {form} {name}"] = await _time(context, question, form)
    return figures


async def _time(context: Context, question: str, form: str) -> dict[str, float]:
    query = [("organization", PLAN)]
    code = "worklist"
    if question == "utilization":
        code = question
    else:
        query.append(("question", question))
    if form == "csv":
        query.append(("_outputFormat", form))
    spent, found = [], 0
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        answer = await registry.invoke(context, code, ("Patient", None), Given(None, query))
        spent.append(time.perf_counter() - begin)
        text = answer.body or b""
        content = text.encode() if isinstance(text, str) else text
        found = content.count(b"\r\n") - 1 if form == "csv" else len(content)
    return {"seconds": round(median(spent), 3), "found": found}


def seed(uri: str, members: int) -> None:
    """Store a plan's members (whole blocks) in an empty database."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        made = [pool.submit(_seed_block, uri, first) for first in range(0, members, BLOCK)]
        kinds = {kind for each in made for kind in each.result()}
    with MongoClient[dict[str, Any]](uri) as client:
        for kind in kinds:
            client[_DATABASE][kind].create_indexes(index_models(kind))


def _seed_block(uri: str, first: int) -> set[str]:
    documents: dict[str, list[dict[str, Any]]] = {}
    at = _NOW - timedelta(days=100)
    for number in range(first, first + BLOCK):
        for made in _of(number):
            kind = made["resourceType"]
            resource = with_meta(made, made["id"], 1, at)
            text = fhir_json.encode(resource).decode()
            fields = extract(kind, resource)
            row = {"_id": made["id"], "v": 1, "at": at, **fields, "text": text}
            documents.setdefault(kind, []).append(row)
    with MongoClient[dict[str, Any]](uri) as client:
        db = client.get_database(_DATABASE, CodecOptions(tz_aware=True, tzinfo=UTC))
        for kind, rows in documents.items():
            db[kind].insert_many(rows, ordered=False)
    return set(documents)


def _of(number: int) -> Iterator[Resource]:
    """One member: nine of ten have a PCP, by the record or a team; 15 % no plan, every fifth was in hospital."""
    random = Random(number)  # noqa: S311 - the same data in every run
    patient = {"reference": f"Patient/m{number:07}"}
    practice = {"reference": f"Organization/practice-{number % _PRACTICES}"}
    if number < _PRACTICES:
        yield {
            "resourceType": "Organization",
            "id": f"practice-{number}",
            "name": f"Practice {number}",
        }
    if number < _HOSPITALS:
        yield {
            "resourceType": "Organization",
            "id": f"hospital-{number}",
            "name": f"Hospital {number}",
        }
    if number == 0:
        yield {"resourceType": "Organization", "id": "plan", "name": "The plan"}
    way = random.random()
    person = {
        "resourceType": "Patient",
        "id": f"m{number:07}",
        "identifier": [{"system": "https://plan.example.org/members", "value": f"{number:09}"}],
        "name": [{"use": "official", "family": f"Okafor{number % 997}", "given": ["Marisol"]}],
        "birthDate": f"{1930 + number % 60}-03-17",
        "address": [{"line": ["12 Quay Street"], "city": "Rockport", "state": "ME"}],
    }
    yield {**person, "generalPractitioner": [practice]} if way < 0.6 else person
    if 0.5 < way < 0.9:
        yield {
            "resourceType": "CareTeam",
            "id": f"t{number:07}",
            "status": "active",
            "subject": patient,
            "period": {"start": _day(-900)},
            "participant": [{"role": [concept(SNOMED, min(PCP_ROLES), "PCP")], "member": practice}],
        }
    yield {
        "resourceType": "Coverage",
        "id": f"c{number:07}",
        "status": "active",
        "beneficiary": patient,
        "payor": [{"reference": PLAN}],
        "period": {"start": _day(-random.randrange(30, 2000))},
    }
    if random.random() < 0.85:
        yield {
            "resourceType": "CarePlan",
            "id": f"p{number:07}",
            "status": "active",
            "intent": "plan",
            "subject": patient,
            "period": {"start": _day(-400), "end": _day(random.randrange(-10, 300))},
        }
    if random.random() < 0.85:
        yield {
            "resourceType": "QuestionnaireResponse",
            "id": f"q{number:07}",
            "status": "completed",
            "questionnaire": _HRA,
            "subject": patient,
            "authored": _day(-random.randrange(0, 500)),
        }
    if random.random() < 0.05:
        yield _consent(number, patient)
    yield from _encounters(random, number, patient)


def _encounters(random: Random, number: int, patient: Resource) -> Iterator[Resource]:
    """Six of three years: visits, emergencies, and for one of five members a stay or two."""
    classes = ["AMB", "AMB", "AMB", "EMER", "AMB", "AMB"]
    if number % 5 == 0:
        classes[:2] = ["IMP", "IMP"] if number % 20 == 0 else ["IMP", "AMB"]
    for index, class_ in enumerate(classes):
        start = -random.randrange(0, 1_000)
        end = start + (random.randrange(1, 9) if class_ == "IMP" else 0)
        yield {
            "resourceType": "Encounter",
            "id": f"e{number:07}{index}",
            "status": "finished" if end <= 0 else "in-progress",
            "class": {"system": ACT_CODE, "code": class_},
            "subject": patient,
            "period": {"start": f"{_day(start)}T09:00:00Z"}
            | ({"end": f"{_day(end)}T15:00:00Z"} if end <= 0 else {}),
            "serviceProvider": {"reference": f"Organization/hospital-{number % _HOSPITALS}"},
            "reasonCode": [concept(SNOMED, "84114007", "Heart failure (disorder)")],
        }


def _consent(number: int, patient: Resource) -> Resource:
    return {
        "resourceType": "Consent",
        "id": f"r{number:07}",
        "status": "active",
        "scope": concept(
            "http://terminology.hl7.org/CodeSystem/consentscope", "patient-privacy", ""
        ),
        "category": [
            concept("http://carerelay.example/CodeSystem/consent-category", "provider-access", "")
        ],
        "patient": patient,
        "policyRule": {"text": "Policy"},
        "provision": {"type": "deny" if number % 2 else "permit"},
    }


def _day(days: int) -> str:
    day: date = _NOW.date() + timedelta(days=days)
    return day.isoformat()


if __name__ == "__main__":
    print(json.dumps(measure(print, scale=int(sys.argv[1]) if sys.argv[1:] else 1), indent=2))
