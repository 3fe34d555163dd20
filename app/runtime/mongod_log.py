"""The log of the embedded mongod, without what clients asked and stored.

https://www.mongodb.com/docs/manual/reference/log-messages/

mongod writes the commands of its clients into its log where one fails or takes long, with every value: names that were
searched, records that were written. Only MongoDB Enterprise can leave them out. So it writes into a pipe, and a thread
of the parent takes lines from there into the file. Until the first client could have come that is everything, since a
failed start has to be understood; afterwards it is what happened, with details only from parts of mongod that see no
commands.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Parts of mongod that do not see what clients ask; details (`attr`) of all others are left out.
_BLIND = frozenset({"ASIO", "CONTROL", "ELECTION", "NETWORK", "RECOVERY", "REPL", "STORAGE"})
# mongod waits where the pipe is full: this is room for what it says while the parent does not get to read it.
_PIPE_BYTES = 1024 * 1024


class MongodLog:
    """The file at `path`; what an earlier run left goes to `<path>.1`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_whole = True
        self._reader: threading.Thread | None = None

    @contextmanager
    def writing(self) -> Iterator[int]:
        """A descriptor for mongod to write to; the parent's copy is closed with the context."""
        if self.path.exists():
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", 0)
        self._is_whole = True
        out, into = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # a larger pipe is Linux's to give
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._reader = threading.Thread(
            target=self._copy, args=(os.fdopen(out, "rb"), file), daemon=True
        )
        self._reader.start()
        try:
            yield into
        finally:
            os.close(into)

    def hold_back(self) -> None:
        """From now on details stay out of the file."""
        self._is_whole = False

    def close(self) -> None:
        """Return once all that mongod said is in the file. It has ended."""
        if self._reader is not None:
            self._reader.join()
            self._reader = None

    def _copy(self, out: IO[bytes], file: IO[bytes]) -> None:
        with out, file:
            for line in out:
                with contextlib.suppress(OSError):  # a full disk: mongod says so by itself
                    file.write(line if self._is_whole else without_values(line))


def without_values(line: bytes) -> bytes:
    """A line of the log without details that can hold what a client asked or stored."""
    try:
        entry = json.loads(line)
        if entry["c"] in _BLIND:
            return line
        kept = {name: entry[name] for name in ("t", "s", "c", "id", "ctx", "msg")}
    except (ValueError, KeyError, TypeError):
        return b"(a line that is not as mongod's are)\n"
    return json.dumps(kept).encode() + b"\n"
