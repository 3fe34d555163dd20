"""How the dispatcher ends: what is under way may end, what waits is left for other processes."""

from __future__ import annotations

import asyncio

from app.subscriptions.sending.dispatcher import Dispatcher
from app.subscriptions.sending.targets import Target


async def test_once_it_ends_it_begins_nothing_more() -> None:
    dispatcher, begun = Dispatcher(), list[str]()
    under_way, may_end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        begun.append("first")
        under_way.set()
        await may_end.wait()

    async def next_() -> None:
        begun.append("next")

    own, other = Target(allowed=1), Target()
    dispatcher.submit(own, first)
    dispatcher.submit(own, next_)
    await under_way.wait()
    finishing = asyncio.create_task(dispatcher.finish(10))
    await asyncio.sleep(0)
    dispatcher.submit(other, next_)
    may_end.set()
    await finishing
    assert dispatcher.is_idle
    assert begun == ["first"]
    assert [len(each.jobs) for each in (own, other)] == [1, 1]


async def test_what_does_not_end_in_time_is_cancelled() -> None:
    dispatcher, under_way = Dispatcher(), asyncio.Event()

    async def hang() -> None:
        under_way.set()
        await asyncio.Event().wait()

    dispatcher.submit(Target(), hang)
    await under_way.wait()
    await dispatcher.finish(0)
    await dispatcher.wait()
    await asyncio.sleep(0)
    assert dispatcher.is_idle
