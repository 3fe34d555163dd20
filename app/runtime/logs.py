"""What reaches the log: what happened, to which row and where in the code, never with what data.

A line ends with its fields, `action=match resource_type=Encounter id=e1 version_id=3 error=KeyError`: what the code
attaches to a record by `extra`, as far as `FIELDS` has it. They are ids, counts and words of our own.

The text of an exception may hold anything (MongoDB names the values of a duplicate key, a KeyError its key), so an
exception is logged as its type and the places in the code, without its text.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from types import TracebackType
from typing import Any

from bson import ObjectId

# Every field of a line, in its order. Libraries attach others, which may hold anything and are left out.
FIELDS = (
    "action",
    "resource_type",
    "id",
    "version_id",
    "number",
    "subscription",
    "delivery",
    "contract",
    "client_id",
    "owner",
    "collection",
    "index",
    "step",
    "host",
    "hash",
    "reason",
    "request_id",
    "count",
    "tries",
    "assumed",
    "options",
    "code",
    "error",
)
_LONGEST_VALUE = 200
# What needs no quotes; anything else could look like another field, or another line.
_PLAIN = re.compile(r"[\w.:/|,@+\-]+", re.ASCII)

_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


# What asyncio says of a task or callback that failed goes on with its representation, which has the exception's text.
_ASYNCIO = re.compile(r"Exception in callback|[^\n]*")


class SafeFormatter(logging.Formatter):
    """Writes a record's fields after its message, and exceptions without their texts, causes included."""

    def format(self, record: logging.LogRecord) -> str:
        # The formatter of another handler may have left the exception in the record, text and all.
        left, record.exc_text = record.exc_text, None
        try:
            return super().format(record)
        finally:
            record.exc_text = left

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        if record.name == "asyncio" and (said := _ASYNCIO.match(record.message)):
            record.message = said[0]
        line, newline, rest = super().formatMessage(record).partition("\n")
        return f"{line}{fields(record)}{newline}{rest}"

    def formatException(self, ei: _Info) -> str:  # noqa: N802 - logging's name
        return "" if ei[1] is None else places(ei[1])


def fields(record: logging.LogRecord) -> str:
    """The fields of a record as ` name=value`, one after the other; empty where it has none."""
    attached = vars(record)
    return "".join(f" {name}={_shown(attached[name])}" for name in FIELDS if name in attached)


def _shown(value: object) -> str:
    """A value in one word: what is no id, count or word is named by its type."""
    if not isinstance(value, str | int | float | ObjectId | None):
        return type(value).__name__
    text = str(value)[:_LONGEST_VALUE]
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def places(error: BaseException) -> str:
    """The type of an exception and where it was raised, after those of what caused it."""
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:
        chain.append(each)
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
    return "\nwhich led to\n".join(_place(link) for link in reversed(chain))


def _place(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    return f"{frames}\n{type(error).__name__}" if frames else type(error).__name__


# The database driver's debug log holds whole commands, asyncio's the representations of what it waits for.
_QUIET = ("pymongo", "motor", "asyncio", "httpx", "httpcore", "aiohttp")

# For logging.config.dictConfig, as uvicorn's `log_config`: everything to stderr, from WARNING.
CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "safe": {
            "()": "app.runtime.logs.SafeFormatter",
            "format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
        }
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "safe",
            "stream": "ext://sys.stderr",
        }
    },
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {name: {"level": "WARNING"} for name in (*_QUIET, "uvicorn")},
}
