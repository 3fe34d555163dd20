"""The status that the server gives a Subscription: proven, failed, ended; and the heartbeats in between.

requested -> active (handshake accepted; at once where there is nothing to prove: classic, websocket, davinci-alerts)
or, where it is not accepted again and again, error; active -> error when deliveries fail for too long; any -> off at
its `end`, or when its endpoint answers 410. Only the client sets it to `requested` again. These writes go through the
store as all do.

    subscription_state  {..., heartbeat_at?, handshake?: {version, attempt, tries, lease_until?, owner?, done?}}

One process at a time sends the handshake of a version (app/runtime/leases.py). A newer version begins anew, whoever is
at the older one. Handshakes and heartbeats go through the queue of their target, as notices do.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypedDict

from pymongo.errors import DuplicateKeyError

from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.records.versions import Change, VersionConflict, stored_current
from app.runtime.leases import NO_END, BackOff, Claim, Fields, Leases, LostError, is_nobodys_fault
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.channels import AttemptOutcome, Channel
from app.subscriptions.ledger.sequence_numbers import SUBSCRIPTION_STATE_COLLECTION
from app.subscriptions.matching.registration import Registration
from app.subscriptions.notices.composer import Composer
from app.subscriptions.notices.notification import NotificationKind
from app.subscriptions.sending.dispatcher import Dispatcher
from app.subscriptions.sending.retry import Verdict
from app.subscriptions.sending.targets import Targets

log = logging.getLogger(__name__)

_MAX_RACES = 20
_HEARTBEATS_AT_ONCE = 100
_REMEMBERED = 100_000
# When a heartbeat is tried again that could not be made.
_BEAT_AGAIN = timedelta(minutes=1)
_LEASE = timedelta(seconds=60)
# A quarter of an hour until a handshake is given up.
_BACK_OFF = BackOff(timedelta(seconds=2), timedelta(minutes=5), most=10)
# Seconds until a handshake is looked at again that is another process's, or not due.
_LOOK_AGAIN = 2.0
_UNSENT = "The handshake could not be sent"


class _UnprovenError(Exception):
    """The endpoint did not accept the handshake; the text is for the client."""

    def __init__(self, outcome: AttemptOutcome) -> None:
        super().__init__(outcome.failure)
        self.cause = outcome.reason or f"answered {outcome.status}"


class State(TypedDict, total=False):
    """A row of `subscription_state`, as far as it says something of the handshake."""

    _id: str
    number: int
    handshake: dict[str, Any]


class Lifecycle:
    """Moves Subscriptions between their states."""

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        composer: Composer,
        channels: Mapping[str, Channel],
        targets: Targets,
        dispatcher: Dispatcher,
    ) -> None:
        self._mongo = mongo
        self._targets = targets
        self._dispatcher = dispatcher
        self._store = store
        self._composer = composer
        self._channels = channels
        self._states = mongo.collection(SUBSCRIPTION_STATE_COLLECTION)
        self._handshakes = Leases[State](
            mongo,
            SUBSCRIPTION_STATE_COLLECTION,
            store.owner,
            lease=_LEASE,
            back_off=_BACK_OFF,
            fields=Fields(*(f"handshake.{name}" for name in Fields())),
            is_open={"handshake.done": None},
        )
        self._beating = asyncio.Lock()
        self._activating: set[tuple[str, int]] = set()
        # Handshakes that are not to be claimed before: by Subscription, with its version.
        self._not_before: dict[str, tuple[int, float]] = {}
        # Subscriptions whose heartbeat waits for its target, or is being sent.
        self._beats: set[str] = set()

    async def activate(self, registration: Registration) -> None:
        """Prove the endpoint of a requested Subscription, in one process at a time, and set its status accordingly."""
        key = (registration.id, registration.version)
        version, not_before = self._not_before.get(registration.id, (0, 0.0))
        too_early = version == registration.version and time.monotonic() < not_before
        if key in self._activating or too_early:
            return
        self._activating.add(key)
        try:
            await self._activate(registration)
        finally:
            self._activating.discard(key)

    async def _activate(self, registration: Registration) -> None:
        version = registration.version
        if not registration.channel.proves:
            await self._change(registration.id, _status("active", only_version=version))
            await self._schedule_heartbeat(registration)
            return
        claim = await self._claim_handshake(registration)
        if claim is None:
            self._wait(registration, _LOOK_AGAIN)
            return
        if self._handshakes.is_spent(claim):
            await self._give_up(registration, claim, NO_END)
            return
        try:
            async with self._handshakes.kept(claim):
                await self._prove(registration, claim)
        except LostError:
            log.info("handshake left", extra={"action": "handshake", "id": registration.id})
        except _UnprovenError as refusal:
            extra = {"action": "handshake", "id": registration.id, "reason": refusal.cause}
            log.info("handshake refused", extra=extra)
            await self._again(registration, claim, refusal, str(refusal))
        except Exception as error:
            name = type(error).__name__
            log.warning(
                "handshake failed",
                extra={"action": "handshake", "id": registration.id, "error": name},
                exc_info=not is_nobodys_fault(error),
            )
            await self._again(registration, claim, error, _UNSENT)

    async def _again(
        self, registration: Registration, claim: Claim[State], error: Exception, reason: str
    ) -> None:
        """Put a handshake off that failed; after the last try the Subscription is in error, with the reason."""
        if not self._handshakes.is_last(claim, error):
            await self._handshakes.postpone(claim, error)
            pause = _BACK_OFF.pause(claim.tries)
            if pause is not None and not is_nobodys_fault(error):
                self._wait(registration, pause.total_seconds())
        elif isinstance(error, _UnprovenError):
            if await self._handshakes.renew(claim):
                ended = _status("error", reason, only_version=registration.version)
                await self._change(registration.id, ended)
                await self._handshakes.settle(claim, {"handshake.done": True})
        else:
            await self._give_up(registration, claim, type(error).__name__)

    def _wait(self, registration: Registration, seconds: float) -> None:
        if len(self._not_before) >= _REMEMBERED:
            self._not_before.clear()
        self._not_before[registration.id] = registration.version, time.monotonic() + seconds

    async def _prove(self, registration: Registration, claim: Claim[State]) -> None:
        """Send the handshake and say what came of it. Raises LostError where that is another's to say by then."""
        version = registration.version
        number = claim.row["number"]
        await self._composer.make_ready([registration.id])
        target = self._targets.of(registration)
        outcome = await self._dispatcher.ask(
            target, lambda: self._send(registration, "handshake", number)
        )
        if not await self._handshakes.renew(claim):
            raise LostError
        if outcome is not None and outcome.verdict is Verdict.DELIVERED:
            await self._change(registration.id, _status("active", only_version=version))
            await self._schedule_heartbeat(registration)
        elif outcome is not None:
            if outcome.verdict is not Verdict.GONE:
                raise _UnprovenError(outcome)
            ended = _status("off", outcome.failure, only_version=version)
            await self._change(registration.id, ended)
        await self._handshakes.settle(claim, {"handshake.done": True})

    async def _give_up(self, registration: Registration, claim: Claim[State], why: str) -> None:
        """The client sees that it failed; the reason is in the log."""
        if not await self._handshakes.renew(claim):
            return
        gave_up = _status("error", _UNSENT, only_version=registration.version)
        await self._change(registration.id, gave_up)
        await self._handshakes.give_up(claim, why, {"handshake.done": True})

    async def fail(self, registration: Registration, reason: str, *, gone: bool) -> None:
        """Set `error` after deliveries failed, `off` where the endpoint is gone for good.

        Unless the client has changed the Subscription since.
        """
        status = "off" if gone else "error"

        def change(resource: Resource, version: int) -> Resource | None:
            same = resource["channel"].get("endpoint") == registration.channel.endpoint
            if resource["status"] != "active" or not (same or version == registration.version):
                return None
            return {**resource, "status": status, "error": reason}

        await self._change(registration.id, change)

    async def refuse(self, subscription: str, version: int, reason: str) -> None:
        """Set `error` since the Subscription's own text cannot be evaluated, unless it was written anew since."""

        def change(resource: Resource, current: int) -> Resource | None:
            if current != version or resource["status"] not in ("active", "requested"):
                return None
            return {**resource, "status": "error", "error": reason}

        await self._change(subscription, change)

    async def end(self, registration: Registration) -> None:
        """Set `off`, since the Subscription's `end` has come."""
        await self._change(registration.id, _status("off", only_version=registration.version))

    async def beat(self) -> None:
        """Send the heartbeats that are due; a Subscription gets one after so many seconds without an event."""
        if self._beating.locked():
            return
        async with self._beating:
            due = _HEARTBEATS_AT_ONCE
            while due == _HEARTBEATS_AT_ONCE:
                now = self._mongo.now()
                cursor = self._states.find({"heartbeat_at": {"$lte": now}}, {"_id": 1})
                rows = await cursor.limit(_HEARTBEATS_AT_ONCE).to_list(None)
                due = len(rows)
                for row in rows:
                    await self._beat_or_skip(row["_id"], now)

    async def _beat_or_skip(self, subscription: str, now: datetime) -> None:
        """As `_beat`; a Subscription whose heartbeat cannot be made is looked at again in a while."""
        try:
            await self._beat(subscription, now)
        except Exception as error:
            if is_nobodys_fault(error):
                raise
            log.warning(
                "no heartbeat",
                extra={"action": "beat", "id": subscription, "error": type(error).__name__},
            )
            later = {"$set": {"heartbeat_at": now + _BEAT_AGAIN}}
            await self._states.update_one({"_id": subscription}, later)

    async def _beat(self, subscription: str, now: datetime) -> None:
        """Queue a heartbeat at its target, unless nothing is to be sent there now."""
        registration = await self._composer.registration(subscription)
        period = registration.channel.heartbeat if registration else None
        if registration is None or period is None or registration.status != "active":
            await self._states.update_one({"_id": subscription}, {"$unset": {"heartbeat_at": ""}})
            return
        next_at = {"$add": ["$$NOW", round(period * 1000)]}
        state = await self._states.find_one_and_update(
            {"_id": subscription, "heartbeat_at": {"$lte": now}},
            [{"$set": {"heartbeat_at": next_at}}],
        )
        target = self._targets.of(registration)
        clock = self._targets.clock()
        if state is None or subscription in self._beats or target.is_paused(clock):
            return
        self._beats.add(subscription)
        self._dispatcher.submit(
            target, partial(self._send_heartbeat, registration, state["number"]), first=True
        )

    async def _send_heartbeat(self, registration: Registration, number: int) -> None:
        try:
            await self._send(registration, "heartbeat", number)
        finally:
            self._beats.discard(registration.id)

    async def take_from(self, owner: str) -> None:
        """End the leases of the handshakes that a process which is gone had begun."""
        await self._handshakes.take_from(owner)
        self._not_before.clear()

    async def _schedule_heartbeat(self, registration: Registration) -> None:
        if registration.channel.heartbeat is not None:
            due = self._mongo.now() + timedelta(seconds=registration.channel.heartbeat)
            await self._states.update_one(
                {"_id": registration.id},
                {"$set": {"heartbeat_at": due}, "$setOnInsert": {"number": 0}},
                upsert=True,
            )

    async def _send(
        self, registration: Registration, kind: NotificationKind, number: int
    ) -> AttemptOutcome | None:
        current = await self._composer.registration(registration.id)
        if current is None or current.version != registration.version:
            return None
        notice = await self._composer.status_notice(current, kind, number, self._mongo.now())
        outcome = await self._channels[current.channel.type].send(notice)
        self._targets.learn(self._targets.of(current), current.id, outcome)
        return outcome

    async def _claim_handshake(self, registration: Registration) -> Claim[State] | None:
        """The handshake of this version, if it is this process's to send."""
        version = registration.version
        begun = {
            "number": {"$ifNull": ["$number", 0]},
            "handshake.version": version,
            # Attempts are counted on: what was begun for the older version is another attempt.
            "handshake.attempt": {"$ifNull": ["$handshake.attempt", 0]},
            "handshake.tries": 0,
            **{f"handshake.{name}": "$$REMOVE" for name in ("owner", "lease_until", "done")},
        }
        is_newer = {"_id": registration.id, "handshake.version": {"$not": {"$gte": version}}}
        with suppress(DuplicateKeyError):  # it has begun, here or elsewhere
            await self._states.update_one(is_newer, [{"$set": begun}], upsert=True)
        return await self._handshakes.claim({"_id": registration.id, "handshake.version": version})

    async def _change(
        self, subscription: str, change: Callable[[Resource, int], Resource | None]
    ) -> None:
        """Write a Subscription anew from its current version; `change` returns None where nothing is to be done."""
        for _ in range(_MAX_RACES):
            found = await self._store.find("Subscription", {"_id": subscription})
            if not found or "deleted" in found[0]:
                return
            document = found[0]
            resource = change(fhir_json.decode_stored(document["text"]), document["v"])
            if resource is None:
                return
            previous = stored_current("Subscription", document)
            private: Any = document.get("private")
            try:
                await self._store.commit(
                    [Change("update", "Subscription", subscription, resource, previous, private)]
                )
            except VersionConflict:
                continue
            log.info(
                "subscription status",
                extra={
                    "action": resource["status"],
                    "resource_type": "Subscription",
                    "id": subscription,
                },
            )
            return


def _status(
    status: str, error: str | None = None, *, only_version: int
) -> Callable[[Resource, int], Resource | None]:
    def change(resource: Resource, version: int) -> Resource | None:
        if version != only_version:
            return None  # the client has written since; the newer version is activated by itself
        changed = {key: value for key, value in resource.items() if key != "error"}
        changed["status"] = status
        return changed if error is None else {**changed, "error": error}

    return change
