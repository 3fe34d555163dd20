"""The MongoDB connection string: its options that would break a promise of this server are left out, or refused.

https://www.mongodb.com/docs/manual/reference/connection-string-options/

What was answered 2xx is on the majority's disks, and every later answer of any process shows it. That takes the
primary's reads and the concerns of the majority, for whatever the connection is opened.
"""

from __future__ import annotations

import logging
from urllib.parse import unquote_plus

from app.errors import Unavailable

# What is not the operator's to choose, with the value that the server has for it; others are told in the log.
_OURS = {
    "appname": "",
    "fsync": "",
    "journal": "true",
    "maxstalenessseconds": "-1",
    "readconcernlevel": "majority",
    "readpreference": "primary",
    "readpreferencetags": "",
    "retrywrites": "true",
    # It would cut off a commit, whose outcome is then known to nobody.
    "timeoutms": "",
    "w": "majority",
    "wtimeoutms": "",
}

log = logging.getLogger(__name__)


def settled(uri: str) -> str:
    """The connection string without the options that the server chooses itself; the log says which were others.

    Raises Unavailable for one that leads to a sharded cluster.
    """
    start, mark, options = uri.partition("?")
    if not mark:
        return uri
    kept, overridden = [], []
    for option in options.replace(";", "&").split("&"):
        name, value = (unquote_plus(part) for part in _pair(option))
        if name.lower() == "loadbalanced" and value.lower() == "true":
            raise Unavailable(f"The MongoDB URI says loadBalanced: {NO_MONGOS}")
        if name.lower() not in _OURS:
            kept.append(option)
        elif value.lower() != _OURS[name.lower()]:
            overridden.append(name)
    if overridden:
        log.warning(
            "options of the MongoDB URI left out, since what is answered would not hold with them: %s",
            ", ".join(overridden),
            extra={"action": "database", "options": overridden},
        )
    return start + mark + "&".join(kept) if kept else start


NO_MONGOS = (
    "it leads to a sharded cluster. CareRelay needs a replica set: its commits, its ledger and its audit are not "
    "proved on several shards. Name the members of one replica set."
)


def _pair(option: str) -> tuple[str, str]:
    name, _, value = option.partition("=")
    return name, value
