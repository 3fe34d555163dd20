"""What the MongoDB URI may not change: reads of the primary, concerns of the majority, a replica set."""

from __future__ import annotations

import asyncio
import logging

import pytest

from app.errors import Unavailable
from app.runtime.mongo import Mongo
from tests.builders.mongo_standin import saying_hello
from tests.conftest import make_settings
from tests.processes import carerelay

pytestmark = pytest.mark.mongo

BREAKING = {
    "readPreference": "secondaryPreferred",
    "readPreferenceTags": "dc:east",
    "maxStalenessSeconds": "120",
    "readConcernLevel": "local",
    "w": "1",
    "wTimeoutMS": "1",
    "journal": "false",
    "retryWrites": "false",
    "timeoutMS": "1",
    "appName": "mine",
}


async def refusal(uri: str) -> str:
    with pytest.raises(Unavailable) as refused:
        await Mongo.open(make_settings(uri))
    return str(refused.value)


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize("separator", ["&", ";"])
async def test_options_that_break_a_promise_are_left_out_and_the_log_names_them(
    mongod: str, driver: str, separator: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = separator.join(f"{name}={value}" for name, value in BREAKING.items())
    uri = f"{mongod}{separator}{options}"
    caplog.set_level(logging.WARNING)
    mongo = await Mongo.open(make_settings(uri, mongodb_driver=driver), "1-a")
    chosen = mongo.client.options
    assert mongo.db.read_preference.mongos_mode == "primary"
    assert mongo.db.read_concern.level == "majority"
    assert mongo.db.write_concern.document == {"w": "majority"}
    assert chosen.retry_writes
    assert chosen.timeout is None
    assert chosen.pool_options.appname == "carerelay 1-a"
    assert ", ".join(BREAKING) in caplog.text
    assert "secondaryPreferred" not in caplog.text
    await mongo.close()


async def test_what_the_server_does_anyway_and_what_is_the_operators_is_nothing_to_tell(
    mongod: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    uri = f"{mongod}&w=majority&retryWrites=true&readPreference=primary&maxIdleTimeMS=60000"
    mongo = await Mongo.open(make_settings(uri))
    assert not caplog.text
    assert mongo.client.options.pool_options.max_idle_time_seconds == 60
    await mongo.close()


@pytest.mark.processes
async def test_a_mongos_is_refused_with_the_reason() -> None:
    async with saying_hello(msg="isdbgrid") as address:
        uri = f"mongodb://{address}/"
        for command in (("serve", "--port", "0"), ("clients", "list")):
            done = await asyncio.to_thread(carerelay, *command, mongodb_uri=uri)
            assert done.returncode == 1
            said = " ".join((done.stdout + done.stderr).split())
            assert "is a mongos" in said
            assert "needs a replica set" in said


async def test_load_balancing_which_only_a_sharded_cluster_has_is_refused() -> None:
    assert "sharded cluster" in await refusal("mongodb://127.0.0.1:1/?loadBalanced=true")


async def test_a_direct_connection_to_one_of_several_members_is_refused() -> None:
    """After a change of primary it would read what is old."""
    hosts = ["a.example:27017", "b.example:27017"]
    async with saying_hello(setName="rs0", hosts=hosts, me=hosts[0]) as address:
        assert "directConnection" in await refusal(f"mongodb://{address}/?directConnection=true")


async def test_a_direct_connection_to_the_only_member_is_not(mongod: str) -> None:
    uri = mongod.partition("?")[0] + "?directConnection=true"
    await (await Mongo.open(make_settings(uri))).close()


async def test_a_standalone_server_is_refused() -> None:
    async with saying_hello() as address:
        assert "standalone" in await refusal(f"mongodb://{address}/")


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1/", "mongodb://user:s3cr@t@h@127.0.0.1:x/", "mongodb://"]
)
async def test_what_is_no_uri_is_refused_without_repeating_it(uri: str) -> None:
    said = await refusal(uri)
    assert "MongoDB URI" in said
    assert uri.partition("//")[2] not in said or not uri.partition("//")[2]
