"""Large bodies, worked on in a process of their own: one of them at a time, and the server waits for nobody meanwhile.

docs/decisions/0027-large-bodies-in-a-process-of-their-own.md. The process is started by the first large body, ends with
this one, and ends after a minute without work. One that takes too long is killed; the next body starts another.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from app.errors import FhirError, Issue, Unavailable, Unprocessable
from app.fhir import codec, formats, json as fhir_json, pieces
from app.fhir.formats import FHIR_XML
from app.fhir.json import Resource
from app.fhir.patch.json_patch import Patch
from app.fhir.patch.patch_formats import patch_of
from app.fhir.pieces import Joining, Piece
from app.fhir.shape import AnswerShape
from app.runtime import child_process, pace
from app.runtime.codec_messages import DONE, FAILED, HEAD, READY, REFUSED, Refusal, Task

log = logging.getLogger(__name__)

# What is longer is worked on elsewhere. Reading XML, patches and the models of `$validate` take many times as long.
LARGE = 256 * 1024
LARGE_AND_SLOW = 32 * 1024
_IDLE_SECONDS = 60.0
_START_SECONDS = 30.0
_SENT_AT_ONCE = 256 * 1024
_SECRETS = "CARERELAY_"


class CodecProcess:
    """Does what app/fhir/codec.py can do: what is small at once, what is large in the process."""

    def __init__(self, most_elements: int, seconds: float) -> None:
        """`most_elements` of a body, and `seconds` that a task may take."""
        self._most = most_elements
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self._idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """The process while there is one."""
        return self._worker.process.pid if self._worker else None

    @property
    def is_busy(self) -> bool:
        return self._turn.locked()

    async def decode(self, content_type: str, body: bytes) -> Resource:
        """A resource in the format that its Content-Type names; what follows on a large one is long work.

        Raises as `formats.decode`, and Unprocessable for more elements than may be sent at once.
        """
        media_type = formats.check(content_type)
        if len(body) <= (LARGE_AND_SLOW if media_type == FHIR_XML else LARGE):
            return formats.decode(content_type, body)
        parameters = {"content_type": content_type, "most": self._most}
        resource: Resource = await self._joined("decode", parameters, body)
        return resource

    async def read_patch(self, media_type: str, body: bytes) -> AnyPatch:
        """The patch in a body. Raises UnsupportedMediaType, BadRequest or Unprocessable."""
        if len(body) <= LARGE_AND_SLOW:
            return AnyPatch(self, media_type, body, patch_of(media_type, body))
        await self._joined("read_patch", {"media_type": media_type, "most": self._most}, body)
        return AnyPatch(self, media_type, body, None)

    async def patched(self, media_type: str, body: bytes, text: str) -> Resource:
        """The resource of a stored text with a patch applied."""
        resource: Resource = await self._joined(
            "apply_patch", {"media_type": media_type}, body, text.encode()
        )
        return resource

    async def judge(self, resource: Resource, *, with_models: bool) -> list[Issue]:
        """What the judges of `$validate` say."""
        text = fhir_json.encode(resource)
        if len(text) <= LARGE_AND_SLOW:
            return codec.judge(resource, with_models=with_models)
        text = await pace.aside(len(text), lambda: fhir_json.encode(pieces.exact(resource)))
        found = await self._joined("validate", {"with_models": with_models}, text)
        return msgspec.convert(found, list[Issue])

    async def render(self, body: str | bytes, shape: AnswerShape, *, is_result: bool) -> bytes:
        """An answer's JSON text in the shape that was asked for; `is_result` as `AnswerShape.cut` has it."""
        if len(body) <= LARGE or shape.is_plain:
            return shape.render(body, is_result=is_result)
        found: list[bytes] = []
        text = body.encode() if isinstance(body, str) else body
        parameters = {"shape": msgspec.to_builtins(shape), "is_result": is_result}
        await self._run("render", parameters, [text], lambda p: found.append(p[1]))
        return b"".join(found)

    async def stop(self) -> None:
        self._end()

    async def _joined(self, name: str, parameters: Mapping[str, Any], *blobs: bytes) -> Any:
        joining = Joining()
        await self._run(name, parameters, blobs, joining.add)
        return joining.value

    async def _run(
        self,
        name: str,
        parameters: Mapping[str, Any],
        blobs: Sequence[bytes],
        take: Callable[[Piece], None],
    ) -> None:
        """Have a task done and take its pieces. Raises Unprocessable where that takes too long, Unavailable where the
        process ends meanwhile, and what the task raises.
        """
        pace.begin()
        async with self._turn:
            worker = await self._working()
            try:
                async with asyncio.timeout(self._seconds):
                    failure = await worker.run(
                        Task(name, dict(parameters), [len(blob) for blob in blobs]), blobs, take
                    )
            except TimeoutError:
                self._end()
                log.warning("a body took too long", extra={"action": "codec", "reason": name})
                raise Unprocessable(
                    f"The body takes longer than {self._seconds:g} s to be read; send it in parts",
                    code="too-costly",
                ) from None
            except (OSError, asyncio.IncompleteReadError):
                self._end()
                log.error("the codec process ended", extra={"action": "codec", "reason": name})
                raise _unread() from None
            except BaseException:  # given up halfway: what it still says is nobody's answer
                self._end()
                raise
            self._rest()
        if failure is not None:
            raise failure

    async def _working(self) -> _Worker:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._worker is not None and self._worker.process.poll() is not None:
            self._end()
        if self._worker is None:
            self._worker = await _Worker.start()
        return self._worker

    def _rest(self) -> None:
        self._idle = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end)

    def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._worker is not None:
            self._worker.end()
            self._worker = None


def _unread() -> Unavailable:
    return Unavailable("The body could not be read; try again", headers={"Retry-After": "5"})


class AnyPatch:
    """A patch that was read: applied at once, or in the process where it or the resource is large."""

    def __init__(
        self, codec_: CodecProcess, media_type: str, body: bytes, apply: Patch | None
    ) -> None:
        self._codec = codec_
        self._media_type = media_type
        self._body = body
        self._apply = apply

    async def __call__(self, text: str) -> Resource:
        """The resource of a stored text with the patch applied. Raises what the patch raises."""
        if self._apply is not None and len(text) <= LARGE_AND_SLOW:
            return self._apply(fhir_json.decode_stored(text))
        return await self._codec.patched(self._media_type, self._body, text)


class _Worker:
    """The process and the connection to it."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls) -> _Worker:
        ours, theirs = socket.socketpair()
        number = str(theirs.fileno())
        try:
            process = child_process.spawn(
                [sys.executable, "-m", "app.runtime.codec_worker", number],
                pass_fds=[theirs.fileno()],
                env={k: v for k, v in os.environ.items() if not k.startswith(_SECRETS)},
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await reader.readexactly(len(READY))
        except (TimeoutError, asyncio.IncompleteReadError):
            worker.end()
            log.error("the codec process did not start", extra={"action": "codec"})
            raise _unread() from None
        except BaseException:
            worker.end()
            raise
        return worker

    async def run(
        self, task: Task, blobs: Sequence[bytes], take: Callable[[Piece], None]
    ) -> FhirError | None:
        """Have a task done and take its pieces; returns what it was refused with."""
        self._writer.write(msgspec.json.encode(task) + b"\n")
        for blob in blobs:
            for start in range(0, len(blob), _SENT_AT_ONCE):
                self._writer.write(blob[start : start + _SENT_AT_ONCE])
                await self._writer.drain()
        while True:
            kind, length = HEAD.unpack(await self._reader.readexactly(HEAD.size))
            text = await self._reader.readexactly(length)
            if kind == DONE:
                return None
            if kind == REFUSED:
                return msgspec.json.decode(text, type=Refusal).error()
            if kind == FAILED:
                log.error("a body failed\n%s", text.decode(), extra={"action": "codec"})
                return FhirError("Internal error; the server's log has the details")
            take((kind, text))
            await pace.breathe()

    def end(self) -> None:
        """At once: what it works on is nobody's any more."""
        self._writer.close()
        self.process.kill()
        self.process.wait()
