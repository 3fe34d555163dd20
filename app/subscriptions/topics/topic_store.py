"""Topics that were put through the admin API, kept in the database for all processes.

    topics {_id: slug, revision, url, at, text: the SubscriptionTopic's JSON}

Files come first: a topic of the server or of the operator's directory is changed in its file, not by the API.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path

from bson import ObjectId

from app.errors import BadRequest, Conflict, FhirError, NotFound
from app.fhir import json as fhir_json
from app.fhir.definitions import PROFILES
from app.fhir.json import Resource
from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.subscriptions.topics.topic_aliases import aliases
from app.subscriptions.topics.topic_reader import compile_topic
from app.subscriptions.topics.topics import Catalogue, Topic

log = logging.getLogger(__name__)

_SLUG = re.compile(r"^[a-z0-9][a-z0-9.-]{0,63}$")


class TopicStore:
    """The collection, and the catalogue of its topics and of those in files."""

    def __init__(self, settings: Settings, mongo: Mongo) -> None:
        self._settings = settings
        self._mongo = mongo
        self._topics = mongo.collection("topics")
        # Read and compiled at start, once.
        self.of_files = load(settings)
        self._revisions: set[tuple[str, ObjectId]] = set()
        self._retired: set[str] = set()

    async def changed(self) -> bool:
        """Whether the collection has changed since the catalogue was made."""
        rows = await self._topics.find({}, {"revision": 1}).to_list(None)
        return {(row["_id"], row["revision"]) for row in rows} != self._revisions

    async def catalogue(self) -> Catalogue:
        """All current topics; one that this program cannot evaluate is left out and logged."""
        rows = await self._topics.find({}).sort("_id", 1).to_list(None)
        self._revisions = {(row["_id"], row["revision"]) for row in rows}
        self._retired = {row["url"] for row in rows if _status(row) != "active"}
        topics = list(self.of_files.by_url.values())
        taken = {topic.url for topic in topics}
        for row in rows:
            topic = self._compiled(row)
            if topic is not None and topic.url not in taken:
                topics.append(topic)
                taken.add(topic.url)
        return Catalogue(topics, aliases(self._settings))

    def is_retired(self, canonical: str) -> bool:
        """Whether an operator has put this topic out of use."""
        url = canonical.partition("|")[0]
        return url in self._retired and url not in self.of_files.by_url

    def _compiled(self, row: Document) -> Topic | None:
        if _status(row) != "active":
            return None
        try:
            return compile_topic(fhir_json.decode_stored(row["text"]), self._settings)
        except Exception:  # whatever is wrong with it, the others are evaluated
            log.error("topic cannot be evaluated", extra={"action": "topic", "id": row["_id"]})
            return None

    async def list(self) -> list[Resource]:
        """The topics that were put, whatever their status."""
        rows = await self._topics.find({}).sort("_id", 1).to_list(None)
        return [fhir_json.decode_stored(row["text"]) for row in rows]

    async def read(self, slug: str) -> Resource:
        """A topic that was put. Raises NotFound."""
        row = await self._topics.find_one({"_id": slug})
        if row is None:
            raise NotFound("No such topic was put here")
        return fhir_json.decode_stored(row["text"])

    async def put(
        self, slug: str, resource: Resource, check: Callable[[Topic], Awaitable[None]]
    ) -> bool:
        """Keep a topic under its slug, the end of its URL; returns whether it is new.

        Raises Unprocessable with the reasons where it cannot be evaluated, which `check` raises where only the database
        can tell, and Conflict where a file has its URL.
        """
        if not _SLUG.match(slug):
            raise BadRequest("A topic's name has lower-case letters, digits, dots and hyphens")
        if resource.get("id", slug) != slug:
            raise BadRequest(
                "The id is not the one in the address", expression="SubscriptionTopic.id"
            )
        resource = {**resource, "id": slug}
        topic = compile_topic(resource, self._settings)
        await check(topic)
        await self._check_free(slug, topic.url)
        row = {
            "revision": ObjectId(),
            "url": topic.url,
            "at": self._mongo.now(),
            "text": fhir_json.encode(resource).decode(),
        }
        result = await self._topics.replace_one({"_id": slug}, row, upsert=True)
        return bool(result.matched_count == 0)

    async def _check_free(self, slug: str, url: str) -> None:
        """Raises Conflict where another topic has the URL, or this one has another, by which Subscriptions name it."""
        if url in self.of_files.by_url:
            raise Conflict("A file of this server defines the topic with this URL")
        async for row in self._topics.find({"$or": [{"url": url}, {"_id": slug}]}, {"url": 1}):
            if (row["_id"], row["url"]) != (slug, url):
                raise Conflict("Another topic has this URL, or this topic has another one")

    async def delete(self, slug: str) -> None:
        """Delete a topic unless Subscriptions use it. Raises NotFound, Conflict."""
        row = await self._topics.find_one({"_id": slug}, {"url": 1})
        if row is None:
            raise NotFound("No such topic was put here")
        using = {"terms": {"$regex": f"^criteria=.*\t{re.escape(row['url'])}(\\||%7C|$)"}}
        subscriptions = self._mongo.collection("Subscription")
        if await subscriptions.find_one(using) is not None:
            raise Conflict("Subscriptions use this topic; retire it (status) or delete them first")
        await self._topics.delete_one({"_id": slug})


def _status(row: Document) -> str | None:
    """The status of a topic; of one that cannot be read that of one in use."""
    try:
        resource = fhir_json.decode_stored(row["text"])
    except ValueError:
        return "active"
    return resource.get("status") if isinstance(resource, dict) else "active"


# The SubscriptionTopics in files: those of the server, and those of the operator's directory.
#
# docs/topics.md says what operators may write; `topic_reader` reads it.


@cache
def _files(directory: Path) -> Mapping[str, Resource]:
    """The JSON files of a directory by name."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        try:
            found[path.name] = fhir_json.decode(path.read_bytes())
        except FhirError as error:
            raise ValueError(f"{path}: {error}") from None
    return found


def load(settings: Settings, directory: Path = PROFILES / "topics") -> Catalogue:
    """The topics of profiles/topics and of the operator's directory; one of the operator replaces ours by its URL.

    Raises ValueError, which names the file and the reason, for one that cannot be evaluated.
    """
    topics: dict[str, Topic] = {}
    for each in (directory, settings.topics):
        if each is None or each == Path():  # an empty variable
            continue
        if not each.is_dir():
            raise ValueError(f"{each} is no directory of topics")
        for name, resource in _files(each).items():
            try:
                topic = compile_topic(resource, settings)
            except FhirError as error:
                reasons = "; ".join(
                    f"{' '.join(issue.expression)}: {issue.diagnostics}" for issue in error.issues
                )
                raise ValueError(f"{each / name}: {reasons}") from None
            if resource.get("status") == "active":
                topics[topic.url] = topic
    return Catalogue(topics.values(), aliases(settings))
