"""The process that works on large bodies: `python -m app.runtime.codec_worker SOCKET`, started by codec_process.py.

It reads a task from the socket, writes what comes of it, and goes on with the next until the socket is closed. It has
no database, no network and no secrets: what it reads comes from strangers.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from app.errors import FhirError
from app.fhir import codec
from app.runtime.codec_messages import DONE, FAILED, READY, REFUSED, Refusal, Task, frame
from app.runtime.logs import places

# Requests are answered by the server, and it comes first where cores are few.
_NICENESS = 5
# Where memory runs out, the kernel ends this process before the server and the database.
_OOM_SCORE = "700"


def serve(incoming: BinaryIO, outgoing: BinaryIO) -> None:
    """Work on task after task until there are no more."""
    outgoing.write(READY)
    outgoing.flush()
    while line := incoming.readline():
        task = msgspec.json.decode(line, type=Task)
        blobs = [incoming.read(size) for size in task.sizes]
        outgoing.write(_outcome(task, blobs, outgoing))
        outgoing.flush()
        del blobs


def _outcome(task: Task, blobs: list[bytes], outgoing: BinaryIO) -> bytes:
    """The last frame of a task, after those of its pieces."""
    try:
        for kind, text in codec.run(task.name, task.parameters, blobs):
            outgoing.write(frame(kind, text))
    except FhirError as error:
        return frame(REFUSED, msgspec.json.encode(Refusal.of(error)))
    except Exception as error:
        # As in the server: the places in the code and no text, which may hold patients' data.
        return frame(FAILED, places(error).encode())
    return frame(DONE, b"")


def main(descriptor: int) -> None:
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    with socket.socket(fileno=descriptor) as connection:
        serve(connection.makefile("rb"), connection.makefile("wb"))


if __name__ == "__main__":
    with suppress(BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        main(int(sys.argv[1]))
