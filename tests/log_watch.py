"""Listens to all logs of the whole suite: a test whose server logs somebody's data fails, whatever else it is about.

Records are formatted as the server formats them, from the configuration that it is started with, and at a level of more
detail than its own; what is attached to them is looked at too. What child processes print is heard where the tests
capture it. `tests/private_words.py` says whose words are looked for.
"""

from __future__ import annotations

import logging
import logging.config
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

import httpx
import pytest

from app.runtime import logs
from tests.private_words import PrivateWords

# What every record has; and a logical id, which may be logged whatever it is made of.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "id"}
# That id where a line has it among its fields.
_ID = re.compile(r' id=(?:"(?:\\.|[^"\\])*"|\S+)')
# When a line was written is nobody's birth date.
_STAMP = re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z?")
# Code, which has no data: a frame of a traceback with the line of source, and the marks below it.
_FRAME = re.compile(r'^ *File "[^"\n]+", line \d+, in .*(?:\n {4}.*){0,2}', re.MULTILINE)


class LogWatch(logging.Handler):
    """`leaks`: lines with words of somebody's, since they were last looked at."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.leaks: list[str] = []
        self._private = PrivateWords()
        self.setFormatter(_formatter())

    def emit(self, record: logging.LogRecord) -> None:
        said = _ID.sub("", self.format(record).removeprefix(record.asctime), count=1)
        attached = {name: each for name, each in vars(record).items() if name not in _OWN}
        self.look(f"{said} {attached}" if attached else said)

    def look(self, said: str) -> None:
        """At what was said, in one line or many."""
        for line in _STAMP.sub("", _FRAME.sub("", said)).splitlines():
            if found := self._private.found_in(line):
                self.leaks.append(f"{found} in: {line}")

    def verify(self) -> None:
        """Raises AssertionError where somebody's data were logged since the last time."""
        leaks, self.leaks = self.leaks, []
        assert not leaks, "somebody's data in the log:\n" + "\n".join(leaks)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Listening to all loggers, those of the server at every level, and to all requests."""
        self._private.hear_examples()
        server, root = logging.getLogger("app"), logging.getLogger()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(httpx.AsyncClient, "send", self._heard(httpx.AsyncClient.send))
            patch.setattr(httpx.Client, "send", self._heard(httpx.Client.send))
            server.setLevel(logging.DEBUG)
            root.addHandler(self)
            yield
            root.removeHandler(self)
            server.setLevel(logging.NOTSET)

    def _heard(self, send: Any) -> Any:
        def heard(client: Any, request: httpx.Request, **options: Any) -> Any:
            self._private.hear(request)
            return send(client, request, **options)

        return heard


def _formatter() -> logging.Formatter:
    """That of the handler that the server writes its log with."""
    name = logs.CONFIG["handlers"]["stderr"]["formatter"]
    configurator = logging.config.DictConfigurator(logs.CONFIG)
    return cast(
        logging.Formatter, configurator.configure_formatter(logs.CONFIG["formatters"][name])
    )


class HeardOutput:
    """A child's output as a test reads it; what was read is kept in `said`."""

    def __init__(self, output: IO[str]) -> None:
        self._output = output
        self.said = ""

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")

    def readline(self) -> str:
        line = self._output.readline()
        self.said += line
        return line

    def read(self) -> str:
        rest = self._output.read()
        self.said += rest
        return rest

    def close(self) -> None:
        self._output.close()


WATCH = LogWatch()
