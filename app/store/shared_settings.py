"""What all processes on a database share beside resources, a row for each matter.

settings   {_id: name, ...}
"""

from __future__ import annotations

from app.runtime.mongo import Collection, Mongo


def shared_settings(mongo: Mongo) -> Collection:
    """The rows of `settings`; each has one owner, who says what is in it."""
    return mongo.collection("settings")
